"""What goes in and out over HTTP: every wrong request is told what is wrong with it, and leaves no trace in the log."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import jsonschema
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.bundle import load_bundle
from contracts.scorer import Scorer

PREDICT = "/v1/tasks/parcel_late/predict"


def row(**changes: Any) -> dict[str, Any]:
    content = {
        "parcel": "p1",
        "depot_id": "north",
        "courier_id": 7,
        "ready_at": "2024-03-05T10:00:00Z",
        "weight": 2.5,
        "pieces": 3,
        "fragile": False,
        "label": "glass",
    }
    return {name: value for name, value in (content | changes).items() if value is not ...}


def test_a_prediction_is_the_models_score_of_the_logged_vector(served: Any) -> None:
    answer = served.ask(row(parcel=17), row(parcel=None, depot_id="south", courier_id=None, label=None, weight=None))
    assert answer.status_code == 200
    told = answer.json()
    assert (told["task"], told["degraded"]) == ("parcel_late", [])
    rows = [each for each in served.logged() if each["request_id"] == told["request_id"]]
    bundle = load_bundle(served.couriers.locations.bundles("parcel_late") / "one")
    names = [spec.name for spec in bundle.metadata.features if spec.kind == "number"]
    numbers = np.array(
        [[math.nan if each[f"feature.{name}"] is None else each[f"feature.{name}"] for name in names] for each in rows],
        np.float32,
    )
    scores = Scorer(bundle.model_path).score(numbers, np.array([["", ""]] * 2, object)).tolist()
    assert [each["score"] for each in told["predictions"]] == scores
    for each, line, score, case in zip(told["predictions"], rows, scores, ["17", None], strict=True):
        assert each == {
            "parcel": case,
            "score": score,
            "decision": int(score >= 0.5),
            "variant": "champion",
            "version": 1,
        }
        assert (line["score"], line["case_id"], line["event_timestamp"]) == (score, case, served.clock.now())
        assert (line["decision"], line["version"], line["degraded"]) == (each["decision"], 1, "")
        assert line["latency_ms"] > 0
    assert rows[0]["feature.temperature"] == 21.5
    assert json.loads(rows[0]["inputs"]) == {name: value for name, value in row().items() if name != "parcel"}
    assert json.loads(rows[0]["view_times"])["weather"] == served.clock.now().replace(minute=0).timestamp() * 1e6
    assert rows[1]["feature.age"] is None
    assert rows[1]["feature.sky"] == ""


WRONG = {
    "missing field": (row(weight=...), "rows[0].weight", None, "a finite number or null; it is missing"),
    "missing key": (row(depot_id=...), "rows[0].depot_id", None, "a string; it is missing"),
    "null key that must exist": (row(depot_id=None), "rows[0].depot_id", None, "a string"),
    "unknown key": (row(depot_id="mars"), "rows[0].depot_id", "mars", "a value that the online store knows"),
    "typo": (row(wieght=1), "rows[0].wieght", 1, "no such field; did you mean 'weight'?"),
    "stranger": (row(zzz=1), "rows[0].zzz", 1, "no such field; known are"),
    "own instant": (row(asked_at="2024-03-05T10:00:00Z"), "rows[0].asked_at", "2024-03-05T10:00:00Z", "no value"),
    "text for number": (row(weight="2.5"), "rows[0].weight", "2.5", "a finite number or null"),
    "boolean for number": (row(weight=True), "rows[0].weight", True, "a finite number or null"),
    "boolean for integer": (row(pieces=True), "rows[0].pieces", True, "an integer of 64 bits or null"),
    "fraction for integer": (row(pieces=3.0), "rows[0].pieces", 3.0, "an integer of 64 bits or null"),
    "huge integer": (row(courier_id=2**63), "rows[0].courier_id", str(2**63), "an integer of 64 bits or null"),
    "number for text": (row(label=5), "rows[0].label", 5, "a string or null"),
    "zero byte": (row(label="a\x00b"), "rows[0].label", "a\x00b", "a string or null"),
    "integer for boolean": (row(fragile=0), "rows[0].fragile", 0, "true or false or null"),
    "no time zone": (row(ready_at="2024-03-05T10:00:00"), "rows[0].ready_at", "2024-03-05T10:00:00", "an ISO 8601"),
    "no such day": (row(ready_at="2024-02-30T10:00:00Z"), "rows[0].ready_at", "2024-02-30T10:00:00Z", "an ISO 8601"),
    "before year one": (
        row(ready_at="0001-01-01T00:00:00+14:00"),
        "rows[0].ready_at",
        "0001-01-01T00:00:00+14:00",
        "an ISO",
    ),
    "epoch": (row(ready_at=1709632800), "rows[0].ready_at", 1709632800, "an ISO 8601"),
    "list": (row(label=["a"]), "rows[0].label", "['a']", "a string or null"),
    "case": (row(parcel=1.5), "rows[0].parcel", 1.5, "a string or an integer"),
    "not a row": ([], "rows[0]", "[]", "an object"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_named_with_its_value_and_what_was_expected(served: Any, name: str) -> None:
    wrong, field, value, expected = WRONG[name]
    before = len(served.logged())
    answer = served.ask(wrong)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["field"], error["value"]) == (field, value)
    assert error["expected"].startswith(expected)
    assert field in error["message"]
    assert len(served.logged()) == before


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_nan_is_told_where_it_stands(served: Any, constant: str) -> None:
    body = json.dumps({"rows": [row(), row(parcel="q", weight=float(constant))]})
    answer = served.request("POST", PREDICT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["error"] | {"message": ""} == {
        "field": "rows[1].weight",
        "value": constant,
        "expected": "a finite number or null",
        "message": "",
    }


@pytest.mark.parametrize(
    ("content", "status", "field"),
    [
        ({"rows": []}, 422, "rows"),
        ({"rows": "all"}, 422, "rows"),
        ({}, 422, "rows"),
        ([], 422, ""),
        ({"rows": [row()] * 201}, 422, "rows"),
        ({"rows": [row(), row()]}, 400, "rows[1].parcel"),
        ({"rows": [row()], "extra": 1}, 422, "extra"),
        ({"rows": [row()], "request_id": "a b"}, 422, "request_id"),
        ({"rows": [row()], "request_id": ""}, 422, "request_id"),
        ({"rows": [row()], "request_id": "x" * 129}, 422, "request_id"),
        ({"rows": [row()], "request_id": "auto-1"}, 422, "request_id"),
        ({"rows": [row()], "request_id": 5}, 422, "request_id"),
    ],
)
def test_a_wrong_request_is_refused(served: Any, content: Any, status: int, field: str) -> None:
    answer = served.request("POST", PREDICT, json=content)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)


@pytest.mark.parametrize("body", [b"", b"{", b'{"rows": [}', b"\xff\xfe", b'"\\ud800"', b"[" * 100_000, b"nul"])
def test_what_is_not_json_is_refused(served: Any, body: bytes) -> None:
    answer = served.request("POST", PREDICT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 413)
    assert answer.json()["error"]["expected"].startswith(("JSON", "at most"))


def test_a_body_over_the_limit_is_refused_unread_and_while_read(served: Any) -> None:
    async def endless() -> AsyncIterator[bytes]:
        sent = 0
        while True:
            sent += 1
            assert sent < 200, "the body was read on"
            yield b" " * 4096

    announced = served.request("POST", PREDICT, content=b" " * 70_000)
    assert (announced.status_code, announced.json()["error"]["value"]) == (413, 70_000)
    streamed = served.request("POST", PREDICT, content=endless())
    assert (streamed.status_code, streamed.headers["connection"]) == (413, "close")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/tasks/nobody/predict", {}, 404),
        ("GET", "/nothing", {}, 404),
        ("GET", PREDICT, {}, 405),
        ("DELETE", "/healthz", {}, 405),
        ("POST", PREDICT, {"content-type": "text/plain"}, 415),
        ("POST", PREDICT, {"content-encoding": "gzip"}, 415),
    ],
)
def test_other_mistakes_have_their_own_status(
    served: Any, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = served.request(method, path, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert ("allow" in answer.headers) is (status == 405)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from([*row(), "asked_at", "nonsense"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.dictionaries(names, json_values | st.just(...), max_size=3), min_size=1, max_size=3),
    extra=st.dictionaries(st.sampled_from(["request_id", "rows", "more"]), json_values, max_size=1),
)
def test_no_request_is_answered_with_a_server_error(
    served: Any, changes: list[dict[str, Any]], extra: dict[str, Any]
) -> None:
    before = served.balance()
    body = json.dumps(
        {
            "rows": [
                row(parcel=f"p{i}", **each) if "parcel" not in each else row(**each) for i, each in enumerate(changes)
            ],
            **extra,
        }
    )
    answer = served.request("POST", PREDICT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 422), answer.text
    after = served.balance()
    answered = (
        len(answer.json()["predictions"])
        if answer.status_code == 200 and "repeated" not in answer.json()["degraded"]
        else 0
    )
    assert after.answered - before.answered == answered
    assert after.balanced


def test_the_openapi_document_describes_what_is_accepted_and_answered(served: Any) -> None:
    document = served.request("GET", "/openapi.json").json()
    operation = document["paths"][PREDICT]["post"]
    schemas = document["components"]["schemas"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    jsonschema.Draft202012Validator(schemas["parcel_late.Request"]).validate(example)
    answer = served.request("POST", PREDICT, json=example)
    assert answer.json()["error"]["expected"] == "a value that the online store knows"  # right in form
    jsonschema.validate(answer.json(), schemas["Error"])
    good = served.ask(row())
    jsonschema.validate(good.json(), schemas["parcel_late.Answer"])
    for name in ("missing field", "text for number", "huge integer", "zero byte", "stranger", "case"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"rows": [WRONG[name][0]]}, schemas["parcel_late.Request"])
    assert set(operation["responses"]) >= {"200", "400", "413", "415", "422", "503"}


def test_the_pages_answer(served: Any) -> None:
    assert served.request("GET", "/healthz").json() == {"status": "ok"}
    assert served.request("HEAD", "/healthz").status_code == 200
    page = served.request("GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "courier_id" in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text
    ready = served.request("GET", "/readyz")
    assert ready.json() == {
        "status": "ready",
        "tasks": {
            "parcel_late": {
                "ready": True,
                "generation": 1,
                "champion": 1,
                "challenger": None,
                "stage": "idle",
                "share": 0.0,
            }
        },
    }


def test_metrics_tell_the_account(served: Any) -> None:
    def value(line: str) -> float:
        found = [each for each in served.request("GET", "/metrics").text.splitlines() if each.startswith(line)]
        return float(found[0].rsplit(" ", 1)[1]) if found else 0.0

    codes = {code: value(f'skewless_requests_total{{code="{code}",task="parcel_late"}}') for code in ("200", "422")}
    answered = value('skewless_answered_total{task="parcel_late"}')
    served.ask(row(), row(parcel="q"))
    served.ask(row(weight="x"))
    assert value('skewless_requests_total{code="200",task="parcel_late"}') == codes["200"] + 1
    assert value('skewless_requests_total{code="422",task="parcel_late"}') == codes["422"] + 1
    assert value('skewless_answered_total{task="parcel_late"}') == answered + 2
    assert value('skewless_logged_total{task="parcel_late"}') == answered + 2 == served.balance().logged
    assert value('skewless_lost_total{task="parcel_late"}') == 0
    assert value('skewless_predictions_total{task="parcel_late",variant="champion",version="1"}') == answered + 2
    assert value('skewless_request_seconds_count{task="parcel_late"}') == codes["200"] + 1
    assert value('skewless_log_waiting{task="parcel_late"}') == 0
    strangers = 'skewless_requests_total{code="404",task="(unknown)"}'  # one label, or anybody could make a million
    before = value(strangers)
    served.request("POST", "/v1/tasks/x/predict")
    served.request("POST", "/v1/tasks/y/predict")
    assert value(strangers) == before + 2


def test_a_caller_that_hangs_up_is_not_answered(served: Any) -> None:
    sent: list[Any] = []

    async def call() -> None:
        messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": PREDICT, "headers": []}
        await served.replica.asgi(scope, receive, send)

    asyncio.run(call())
    assert sent == []


def test_the_lifespan_is_answered(served: Any) -> None:
    sent: list[str] = []

    async def call() -> None:
        messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await served.replica.asgi({"type": "lifespan"}, receive, send)

    asyncio.run(call())
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


class TestRequestClock:
    """Replays: each row says when it is asked."""

    def test_a_row_is_answered_as_of_its_own_instant(self, serve: Callable[..., Any], couriers: Any) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")))
        served = serve(mode="request")
        old = served.ask(
            row(asked_at="2024-03-05T09:59:59.999999+00:00"), row(parcel="q", asked_at="2024-03-05T11:00:00+01:00")
        )
        assert old.status_code == 200
        first, second = served.logged()
        assert (first["event_timestamp"].isoformat(), first["feature.temperature"]) == (
            "2024-03-05T09:59:59.999999+00:00",
            None,
        )
        assert (second["event_timestamp"].isoformat(), second["feature.temperature"]) == (
            "2024-03-05T10:00:00+00:00",
            21.5,
        )
        assert second["answered_at"] == second["event_timestamp"]
        document = served.request("GET", "/openapi.json").json()
        assert (
            "asked_at"
            in document["components"]["schemas"]["parcel_late.Request"]["properties"]["rows"]["items"]["required"]
        )

    @pytest.mark.parametrize("instant", [..., None, "2024-03-05T10:00:00", 5])
    def test_a_row_without_its_instant_is_refused(self, serve: Callable[..., Any], couriers: Any, instant: Any) -> None:
        couriers.deploy(1, (1, couriers.bundle("one")))
        answer = serve(mode="request").ask(row(asked_at=instant))
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "rows[0].asked_at")


def test_orjson_reads_numbers_as_python_does(served: Any) -> None:
    """Integers beyond 64 bits must not slip in as floats."""
    body = orjson.dumps({"rows": [row()]}).replace(b'"weight":2.5', b'"weight":' + b"9" * 30)
    answer = served.request("POST", PREDICT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200  # a number may be large; as an integer field it would be refused
    body = orjson.dumps({"rows": [row()]}).replace(b'"pieces":3', b'"pieces":' + b"9" * 30)
    answer = served.request("POST", PREDICT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
