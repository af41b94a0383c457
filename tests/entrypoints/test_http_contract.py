"""The server keeps to its own description, whatever it is asked: generated requests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS
from tests.entrypoints.test_http_server import Running, serve

from vaultfs.entrypoints.http.app import ROUTES

EXAMPLES = 25


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("contract") / "vault") as server:
        yield server


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [route.name for route in ROUTES])
def test_every_answer_is_one_that_the_description_has(running: Running, name: str) -> None:
    schema: Any = schemathesis.openapi.from_path(str(Path("docs/openapi.json").resolve()))
    schema.config.update(base_url=running.address)
    # Not every name is one, and a schema cannot say which: such refusals are right.
    unwanted: Any = CHECKS.get_by_names(["positive_data_acceptance"])
    operation: Any = schema.find_operation_by_id(name)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        derandomize=True,
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        answer = case.call(headers=running.headers)
        case.validate_response(answer, excluded_checks=unwanted)

    ask()
