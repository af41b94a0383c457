# Everything a developer does, by name. `just` lists it.

python := env("PYTHON", "python3")
venv := env("VENV", ".venv")
bin := venv / "bin"

[private]
default:
    @just --list --unsorted

# Make the virtual environment with what `vaultfs` itself needs.
install:
    test -x {{bin}}/python || {{python}} -m venv {{venv}}
    {{bin}}/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
    {{bin}}/python -m compileall -q src

# The same, with all that tests and checks need.
setup: install
    {{bin}}/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,check]'

# The main job on real input: put, change, put again, get, compare, verify.
demo *ARGS: install
    {{bin}}/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest build/demo -r bench/demo-packages.txt
    {{bin}}/python -m bench.unpack build/demo
    {{bin}}/vaultfs demo --also build/demo/unpacked {{ARGS}}

# All tests.
test *ARGS: setup
    {{bin}}/python -m pytest {{ARGS}}

# The tests of the core and of the memory adapters: seconds.
test-fast *ARGS: setup
    {{bin}}/python -m pytest -q -m "not slow" tests/domain tests/services tests/test_architecture.py \
        tests/adapters/test_memory_objects.py {{ARGS}}

# Lint, types, layers: what CI checks besides the tests.
check: lint types layers

# Style and formatting.
lint:
    {{bin}}/ruff check
    {{bin}}/ruff format --check

# Two type checkers, strict.
types:
    {{bin}}/mypy
    {{bin}}/pyright --pythonpath {{bin}}/python

# Which layer may import which.
layers:
    {{bin}}/lint-imports

# Write the code as the formatter wants it.
fmt:
    {{bin}}/ruff check --fix --quiet || true
    {{bin}}/ruff format

# kill -9 at every effect of put, move, delete, rebuild, requests, batches, collections, migrations.
crash *ARGS:
    VAULTFS_CRASH_ALL=1 {{bin}}/python -m pytest tests/services/test_crashes.py \
        tests/services/test_batch_faults.py tests/services/test_collection_faults.py \
        tests/services/test_migration_faults.py tests/entrypoints/test_http_crashes.py {{ARGS}}

# Batches of four processes that overlap, on both databases: some minutes.
overlap ROUNDS="2000" *ARGS:
    VAULTFS_ROUNDS={{ROUNDS}} {{bin}}/python -m pytest tests/services/test_batch_faults.py \
        -k overlap {{ARGS}}

# kill -9 and SIGSTOP of processes that hold locks or wait for them, many times: some ten minutes.
nemesis BLOWS="200" SEED="1" *ARGS:
    VAULTFS_NEMESIS={{BLOWS}} VAULTFS_SEED={{SEED}} {{bin}}/python -m pytest \
        tests/services/test_lock_processes.py -k survives {{ARGS}}

# Batches against single requests and the drivers, on both databases: two minutes.
bench-batch *ARGS:
    {{bin}}/python -m bench.batch {{ARGS}}

# Garbage collection beside restic and borg, of 100 GB of rows, and beside traffic: ten minutes.
bench-collect *ARGS:
    {{bin}}/python -m bench.collect {{ARGS}}

# The figures, with the peers beside them. Hours.
bench:
    {{bin}}/python -m bench.startup
    {{bin}}/python -m bench.upload
    {{bin}}/python -m bench.small_files
    {{bin}}/python -m bench.metadata
    {{bin}}/python -m bench.postgres
    {{bin}}/python -m bench.verify
    {{bin}}/python -m bench.large
    {{bin}}/python -m bench.http
    {{bin}}/python -m bench.service
    {{bin}}/python -m bench.http_files
    {{bin}}/python -m bench.locks
    {{bin}}/python -m bench.link
    {{bin}}/python -m bench.puts
    {{bin}}/python -m bench.postgres_locks
    {{bin}}/python -m bench.stores
    {{bin}}/python -m bench.migrate

# How soon a killed server of a million nodes serves again, and memory for 10 GB. Minutes.
bench-service *ARGS:
    {{bin}}/python -m bench.service {{ARGS}}

# Sizes and speeds of deltas, beside xdelta3 and zstd. Minutes.
bench-delta *ARGS:
    {{bin}}/python -m bench.delta {{ARGS}}

# Adapters of stores in clouds beside the client libraries that they use. Minutes.
bench-stores *ARGS:
    {{bin}}/python -m bench.stores {{ARGS}}

# Write the description of the HTTP API into docs/openapi.json.
openapi:
    {{bin}}/python -m bench.openapi
