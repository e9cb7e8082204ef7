"""The OpenAPI document, held against the application by schemathesis: what it allows is answered as it says."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

# A value may fit its schema and still be one that the online store does not know: 422 is right then.
load_all_checks()
LEFT_OUT = CHECKS.get_by_names(["positive_data_acceptance"])


@pytest.fixture(scope="module")
def described(served: Any) -> Any:
    """The document, as a client would load it from the application."""
    return schemathesis.openapi.from_asgi("/openapi.json", served.replica.asgi)


@pytest.mark.parametrize("mode", GenerationMode)
def test_every_operation_answers_as_it_says(described: Any, mode: GenerationMode) -> None:
    """With what the document allows, and with what it does not."""
    asked = set()
    for found in described.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and operation.method == "get":
            continue  # no parameters: nothing can be wrong

        @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def holds(case: Any) -> None:
            case.call_and_validate(excluded_checks=LEFT_OUT)

        holds()
        asked.add(operation.path)
    assert asked >= {"/v1/tasks/parcel_late/predict", "/v2/models/parcel_late/infer"}


def test_every_example_fits_its_schema_and_is_understood(served: Any) -> None:
    document = served.request("GET", "/openapi.json").json()
    examples = 0
    for path, item in document["paths"].items():
        for method, operation in item.items():
            parts = [each.get("content", {}) for each in operation["responses"].values()]
            request = operation.get("requestBody", {"content": {}})["content"]
            for content in [*parts, request]:
                for media in content.values():
                    if "example" in media:
                        validator = jsonschema.Draft202012Validator(
                            {**media["schema"], "components": document["components"]}
                        )
                        validator.validate(media["example"])
                        examples += 1
            if request:
                answer = served.request(method.upper(), path, json=request["application/json"]["example"])
                assert answer.status_code == 422
                assert "a value that the online store knows" in answer.text  # everything but the made-up key is right
    assert examples == 5
