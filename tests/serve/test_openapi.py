"""What OpenAPI says is what is done: schemathesis asks everything that the description allows, and
what it does not."""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks as openapi_checks

from tests.helpers.places import DAYS
from tests.helpers.serving import Served, some_rules


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Served(tmp_path_factory.mktemp("rules"), some_rules()) as found:
        yield found


OPERATIONS = [
    ("POST", "/v1/predict"), ("GET", "/v1/constraints"), ("PUT", "/v1/constraints"),
    ("GET", "/v1/constraints/text"), ("GET", "/v1/constraints/history"), ("GET", "/healthz"),
    ("GET", "/readyz"), ("GET", "/metrics"), ("GET", "/v1/status"),
]  # fmt: skip
#: what fits the schema may still be no picture, no zone or no rule: 422 is no fault there
LEFT_OUT = [openapi_checks.positive_data_acceptance]


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_operation_does_as_it_says(
    served: Served, method: str, path: str, mode: GenerationMode
) -> None:
    operation = schemathesis.openapi.from_asgi("/openapi.json", served.app)[path][method]
    asked = []

    @settings(max_examples=12, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        asked.append(case.call_and_validate(excluded_checks=LEFT_OUT).status_code)

    try:
        ask()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE and method == "GET", "nothing can be wrong there"
        return
    assert asked


def test_every_operation_is_described(served: Served) -> None:
    value = served.ask("GET", "/openapi.json").json()
    found = {(method.upper(), path) for path, item in value["paths"].items() for method in item}
    assert found == set(OPERATIONS)
    parts = value["components"]["schemas"]
    place = parts["PlaceAsked"]["properties"]
    assert place["series"]["anyOf"][0]["minItems"] == DAYS
    day = place["series"]["anyOf"][0]["items"]
    assert day["x-ranges"] == [[-50, 50], [-95, 105]] and "level_m -50 to 50" in day["description"]
    assert "level_m, wind_m_s" in json.dumps(place) and "16 x 16 px" in json.dumps(place)
    assert "HTTPValidationError" not in json.dumps(value)
    used = {part.partition('"')[0] for part in json.dumps(value).split("#/components/schemas/")[1:]}
    assert used <= set(parts)
