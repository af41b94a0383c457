"""The server keeps to its own description, whatever it is asked: generated requests."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from tests.entrypoints.test_http_server import Running, serve

from vaultfs.domain.deltacodec import MEDIA_TYPE as DELTA
from vaultfs.domain.frames import MEDIA_TYPE
from vaultfs.entrypoints.http.app import ROUTES
from vaultfs.entrypoints.http.uploads import BYTES

EXAMPLES = 25
DESCRIPTION = Path(__file__).parents[2] / "docs" / "openapi.json"
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("contract") / "vault") as server:
        yield server


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [route.name for route in ROUTES])
def test_every_answer_is_one_that_the_description_has(running: Running, name: str) -> None:
    schemathesis: Any = import_module("schemathesis")  # its types are not complete
    for kind in (MEDIA_TYPE, DELTA, BYTES):
        schemathesis.serializer.alias(kind, "application/octet-stream")
    checks: Any = import_module("schemathesis.checks")
    schema: Any = schemathesis.openapi.from_path(str(DESCRIPTION))
    schema.config.update(base_url=running.address)
    # Not every name is one, and a schema cannot say which: such refusals are right.
    unwanted: Any = checks.CHECKS.get_by_names(["positive_data_acceptance"])
    operation: Any = schema.find_operation_by_id(name)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=SLOW,
        phases=[Phase.generate],
        derandomize=True,
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        answer = case.call(headers=running.headers)
        case.validate_response(answer, excluded_checks=unwanted)

    ask()
