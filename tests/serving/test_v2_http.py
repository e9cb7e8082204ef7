"""The Open Inference Protocol over REST, asked by its stock client and by callers who get it wrong."""

from __future__ import annotations

import gzip
import json
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from serving.v2_tensors import Tensor, from_bytes, to_bytes

INFER = "/v2/models/parcel_late/infer"
ROWS: list[dict[str, Any]] = [
    {
        "parcel": "v1",
        "depot_id": "north",
        "courier_id": 7,
        "ready_at": "2024-03-05T10:00:00Z",
        "weight": 2.5,
        "pieces": 3,
        "fragile": False,
        "label": "glass",
    },
    {
        "parcel": "v2",
        "depot_id": "south",
        "courier_id": 9,
        "ready_at": "2024-03-05T12:00:00+02:00",
        "weight": -1.25,
        "pieces": 0,
        "fragile": True,
        "label": "größer",
    },
]
DATATYPES = {"courier_id": "INT64", "weight": "FP64", "pieces": "INT64", "fragile": "BOOL"}
DTYPES: dict[str, Any] = {"INT64": np.int64, "FP64": np.float64, "BOOL": np.bool_, "BYTES": np.object_}


def tensors(rows: list[dict[str, Any]], binary: bool = True, shape: Callable[[int], list[int]] = lambda n: [n]) -> Any:
    made = []
    for name in rows[0]:
        datatype = DATATYPES.get(name, "BYTES")
        column = np.array([row[name] for row in rows], DTYPES[datatype]).reshape(shape(len(rows)))
        made.append(triton.InferInput(name, list(column.shape), datatype))
        made[-1].set_data_from_numpy(column, binary_data=binary)
    return made


def plain(rows: list[dict[str, Any]] = ROWS, **changes: Any) -> list[dict[str, Any]]:
    """Inputs as JSON; `changes` replace or, with `...`, remove one."""
    made = []
    for name in rows[0]:
        entry = {
            "name": name,
            "datatype": DATATYPES.get(name, "BYTES"),
            "shape": [len(rows)],
            "data": [row[name] for row in rows],
        }
        change = changes.get(name, {})
        if change is not ...:
            made.append(entry | change)
    return made


@pytest.fixture(scope="module")
def client(served: Any) -> Iterator[Any]:
    """The stock client of a replica that really listens."""
    server = uvicorn.Server(uvicorn.Config(served.replica.asgi, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as found:
        yield found
    server.should_exit = True
    thread.join()


def infer(served: Any, inputs: Any, headers: dict[str, str] | None = None, **content: Any) -> httpx.Response:
    answer: httpx.Response = served.request("POST", INFER, json={"inputs": inputs, **content}, headers=headers)
    return answer


class TestTheStockClient:
    def test_it_finds_server_and_model(self, client: Any) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("parcel_late")
        assert client.is_model_ready("parcel_late", "1")
        assert not client.is_model_ready("parcel_late", "2")
        assert not client.is_model_ready("nobody")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        found = client.get_model_metadata("parcel_late", "1")
        assert (found["name"], found["versions"], found["platform"]) == ("parcel_late", ["1"], "skewless_onnx")
        assert [(each["name"], each["datatype"], each["shape"]) for each in found["inputs"]] == [
            ("parcel", "BYTES", [-1]),
            ("depot_id", "BYTES", [-1]),
            ("courier_id", "INT64", [-1]),
            ("ready_at", "BYTES", [-1]),
            ("weight", "FP64", [-1]),
            ("pieces", "INT64", [-1]),
            ("fragile", "BOOL", [-1]),
            ("label", "BYTES", [-1]),
        ]
        assert [(each["name"], each["datatype"]) for each in found["outputs"]] == [
            ("score", "FP64"),
            ("decision", "INT64"),
            ("version", "INT64"),
            ("variant", "BYTES"),
        ]

    @pytest.mark.parametrize("binary", [True, False])
    @pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
    def test_its_answer_is_the_native_one(self, client: Any, served: Any, binary: bool, compression: str) -> None:
        native = served.ask(*ROWS).json()["predictions"]
        asked = tensors(ROWS, binary, lambda n: [n, 1] if binary else [n])
        answer = client.infer("parcel_late", asked, request_compression_algorithm=compression, model_version="1")
        said = answer.get_response()
        assert (said["model_name"], said["model_version"], "parameters" in said) == ("parcel_late", "1", False)
        assert answer.as_numpy("score").tolist() == [each["score"] for each in native]
        assert answer.as_numpy("decision").tolist() == [each["decision"] for each in native]
        assert answer.as_numpy("version").tolist() == [1, 1]
        assert [bytes(each) for each in answer.as_numpy("variant").tolist()] == [b"champion"] * 2
        logged = [row for row in served.logged() if row["request_id"] == said["id"]]
        assert [row["case_id"] for row in logged] == ["v1", "v2"]
        assert json.loads(logged[1]["inputs"]) == {name: v for name, v in ROWS[1].items() if name != "parcel"}

    def test_it_chooses_outputs_and_how_each_comes(self, client: Any) -> None:
        wanted = [triton.InferRequestedOutput("variant"), triton.InferRequestedOutput("score", binary_data=False)]
        answer = client.infer("parcel_late", tensors(ROWS), outputs=wanted)
        variant, score = answer.get_response()["outputs"]
        assert (variant["name"], variant["parameters"]) == ("variant", {"binary_data_size": 24})
        assert (score["name"], len(score["data"])) == ("score", 2)
        assert answer.as_numpy("variant").tolist() == [b"champion"] * 2

    def test_a_repeated_id_is_answered_from_the_log_and_says_so(self, client: Any, served: Any) -> None:
        first = client.infer("parcel_late", tensors(ROWS), request_id="v2-once")
        again = client.infer("parcel_late", tensors(ROWS), request_id="v2-once")
        assert again.get_response()["parameters"] == {"degraded": "repeated"}
        assert again.as_numpy("score").tolist() == first.as_numpy("score").tolist()
        assert sum(row["request_id"] == "v2-once" for row in served.logged()) == 2

    def test_a_mistake_comes_as_its_exception(self, client: Any) -> None:
        with pytest.raises(InferenceServerException, match="Input 'depot_id', row 1, is 'mars'; expected a value that"):
            client.infer("parcel_late", tensors([ROWS[0], ROWS[1] | {"depot_id": "mars"}]))
        with pytest.raises(InferenceServerException, match="task is 'nobody'; expected one of parcel_late"):
            client.infer("nobody", tensors(ROWS))
        with pytest.raises(InferenceServerException, match="version is '9'; expected 1, the version being served"):
            client.infer("parcel_late", tensors(ROWS), model_version="9")


class TestNull:
    """Whichever way a caller says it, a missing value is what null is to the native endpoint."""

    def vector(self, served: Any, answer: httpx.Response, key: str) -> dict[str, Any]:
        assert answer.status_code == 200, answer.text
        request_id = answer.json()[key]
        [row] = [row for row in served.logged() if row["request_id"] == request_id]
        return {name: repr(value) for name, value in row.items() if name.startswith(("feature.", "inputs"))}

    @pytest.mark.parametrize("name", ["weight", "courier_id", "label", "fragile", "ready_at"])
    def test_in_json_and_as_marks(self, served: Any, name: str) -> None:
        native = self.vector(served, served.ask(ROWS[0] | {name: None}), "request_id")
        assert native != self.vector(served, served.ask(ROWS[0]), "request_id")
        as_json = infer(served, plain([ROWS[0] | {name: None}]))
        marks = {"name": f"{name}.null", "datatype": "BOOL", "shape": [1], "data": [True]}
        for inputs in (plain([ROWS[0]]), [marks]), ([marks], plain([ROWS[0]])):
            assert self.vector(served, infer(served, [*inputs[0], *inputs[1]]), "id") == native
        assert self.vector(served, as_json, "id") == native
        unmarked = infer(served, [*plain([ROWS[0]]), marks | {"data": [False]}])
        assert self.vector(served, unmarked, "id") != native

    def test_nan_in_a_binary_tensor(self, client: Any, served: Any) -> None:
        native = served.ask(ROWS[0] | {"weight": None}).json()["predictions"][0]["score"]
        answer = client.infer("parcel_late", tensors([ROWS[0] | {"weight": float("nan")}]))
        assert answer.as_numpy("score").tolist() == [native]


def test_narrower_numbers_are_taken_for_what_they_are(served: Any) -> None:
    native = served.ask(ROWS[0]).json()["predictions"][0]["score"]
    changes = {"weight": {"datatype": "FP32"}, "courier_id": {"datatype": "UINT8"}, "pieces": {"datatype": "INT16"}}
    answer = infer(served, plain([ROWS[0]], **changes))
    assert answer.json()["outputs"][0] == {"name": "score", "datatype": "FP64", "shape": [1], "data": [native]}
    nested = infer(served, plain([ROWS[0]], weight={"shape": [1, 1], "data": [[2.5]]}))
    assert nested.json()["outputs"][0]["data"] == [native]


MARK = {"name": "label.null", "datatype": "BOOL", "shape": [2], "data": [True, False]}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no inputs": ({"inputs": []}, "inputs is missing; expected tensors named parcel, depot_id"),
    "inputs no list": ({"inputs": {"a": 1}}, "inputs is \"{'a': 1}\"; expected a list of objects"),
    "not an object": ({"inputs": [3]}, "inputs is '[3]'; expected a list of objects"),
    "missing input": ({"inputs": plain(weight=...)}, "Input 'weight', row 0, is missing; expected a finite number"),
    "unknown input": (
        {"inputs": [*plain(), {"name": "wieght", "datatype": "FP64", "shape": [2], "data": [1, 2]}]},
        "Input 'wieght', row 0, is 1; expected no such field; did you mean 'weight'?",
    ),
    "twice": ({"inputs": [*plain(), *plain()]}, "inputs is 'parcel'; expected each input once"),
    "nameless": ({"inputs": [{"datatype": "BOOL"}]}, "inputs.name is missing; expected a string"),
    "datatype": (
        {"inputs": plain(courier_id={"datatype": "FP64"})},
        "inputs.courier_id.datatype is 'FP64'; expected INT64",
    ),
    "no datatype": ({"inputs": plain(label={"datatype": "TEXT"})}, "inputs.label.datatype is 'TEXT'; expected one of"),
    "shape": ({"inputs": plain(label={"shape": [1, 2]})}, "inputs.label.shape is '[1, 2]'; expected [N] or [N, 1]"),
    "shapeless": ({"inputs": plain(label={"shape": 2})}, "inputs.label.shape is 2; expected [N] or [N, 1]"),
    "count": ({"inputs": plain(label={"data": ["a"]})}, "inputs.label.data is '1 values'; expected a list of 2"),
    "rows": (
        {"inputs": plain(label={"shape": [1], "data": ["a"]})},
        "inputs.label is '1 rows'; expected 2 rows, as 'parcel' has",
    ),
    "no data": ({"inputs": plain(label={"data": None})}, "inputs.label.data is missing; expected a list of 2 values"),
    "kind": ({"inputs": plain(pieces={"data": [1, 1.5]})}, "inputs.pieces.data is 1.5; expected values of INT64"),
    "bool": ({"inputs": plain(pieces={"data": [1, True]})}, "inputs.pieces.data is True; expected values of INT64"),
    "time zone": (
        {"inputs": plain(ready_at={"data": ["2024-03-05T10:00:00Z", "2024-03-05T10:00:00"]})},
        "Input 'ready_at', row 1, is '2024-03-05T10:00:00'; expected an ISO 8601 instant with a time zone",
    ),
    "marks alone": ({"inputs": [*plain(label=...), MARK]}, "inputs.label.null is 'BOOL'; expected BOOL, beside an"),
    "marks of numbers": (
        {"inputs": [*plain(), MARK | {"datatype": "INT8", "data": [1, 0]}]},
        "inputs.label.null is 'INT8'; expected BOOL, beside an input 'label'",
    ),
    "repeated case": ({"inputs": plain(parcel={"data": ["a", "a"]})}, "Input 'parcel', row 1, is 'a'; expected each"),
    "output": ({"inputs": plain(), "outputs": [{"name": "odds"}]}, "outputs is 'odds'; expected of score, decision"),
    "classes": (
        {"inputs": plain(), "outputs": [{"name": "score", "parameters": {"classification": 2}}]},
        "outputs.parameters.classification is 2; expected no classification",
    ),
    "id": ({"inputs": plain(), "id": "a b"}, "request_id is 'a b'; expected 1 to 128 printable ASCII characters"),
    "id number": ({"inputs": plain(), "id": 7}, "id is 7; expected a string"),
    "parameters": ({"inputs": plain(), "parameters": 1}, "parameters is 1; expected an object"),
    "shared memory": (
        {"inputs": plain(label={"parameters": {"shared_memory_region": "r"}})},
        "inputs.label is 'r'; expected data in the request",
    ),
    "binary beyond": (
        {"inputs": plain(label={"parameters": {"binary_data_size": 8}})},
        "inputs.label.binary_data_size is 8; expected at most 0 bytes",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_in_one_sentence(served: Any, name: str) -> None:
    content, message = WRONG[name]
    before = len(served.logged())
    answer = served.request("POST", INFER, json=content)
    assert answer.status_code in (400, 422), answer.text
    assert list(answer.json()) == ["error"]
    assert answer.json()["error"].startswith(message)
    assert len(served.logged()) == before


def framed(content: Any, raw: bytes, said: str | None = None) -> tuple[bytes, dict[str, str]]:
    head = json.dumps(content).encode()
    return head + raw, {"inference-header-content-length": str(len(head)) if said is None else said}


def binary(size: int, raw: bytes, said: str | None = None) -> tuple[bytes, dict[str, str]]:
    label = {"name": "label", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": size}}
    return framed({"inputs": [*plain(label=...), label]}, raw, said)


GOOD = to_bytes(Tensor("label", "BYTES", ["glass", "ö"]))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (binary(len(GOOD), GOOD + b"x"), "body is '1 bytes behind the last tensor'"),
        (binary(len(GOOD), GOOD[:-1]), "inputs.label.binary_data_size is 15; expected at most 14 bytes"),
        (binary(14, GOOD[:-1]), "inputs.label is '14 bytes'; expected each text with its length before it"),
        (binary(2, GOOD[:2]), "inputs.label is '2 bytes'; expected each text with its length before it"),
        (binary(9, GOOD[:9]), "inputs.label is '1 texts'; expected 2 of them"),
        (binary(15, GOOD[:-2] + b"\xff\xfe"), "inputs.label is \"b'\\\\xff\\\\xfe'\"; expected text in UTF-8"),
        (binary(15, GOOD, "-1"), "inference-header-content-length is '-1'"),
        (binary(15, GOOD, "99999999"), "inference-header-content-length is '99999999'"),
        (binary(15, GOOD, "3"), "body is '{\"i'; expected JSON"),
        ((b"[]", {}), "body is '[]'; expected an object"),
        (
            (gzip.compress(b"{}")[:-6], {"content-encoding": "gzip"}),
            "body is '16 bytes'; expected a whole body in gzip",
        ),
        ((b"{}", {"content-encoding": "gzip"}), "body is '2 bytes'; expected a body in gzip"),
        ((b"{}", {"content-encoding": "br"}), "content-encoding is 'br'; expected gzip, deflate or none"),
        ((zlib.compress(b" " * 70_000), {"content-encoding": "deflate"}), "body is 'more than 65536 bytes unpacked'"),
        ((b" " * 70_000, {}), "content-length is 70000; expected at most 65536 bytes"),
    ],
)
def test_a_body_of_the_wrong_form_is_refused(served: Any, body: tuple[bytes, dict[str, str]], message: str) -> None:
    answer = served.request("POST", INFER, content=body[0], headers=body[1])
    assert answer.status_code in (400, 413, 415)
    assert answer.json()["error"].startswith(message)


def test_numbers_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(ValueError, match="'7 bytes'; expected 8 bytes, 2 of INT32"):
        from_bytes("n", "INT32", 2, b"1234567")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["INT8", "UINT16", "INT64", "FP16", "FP32", "FP64", "BOOL", "BYTES"]), st.data())
def test_bytes_come_back_as_they_went(datatype: str, data: Any) -> None:
    one: dict[str, Any] = {
        "INT8": st.integers(-128, 127),
        "UINT16": st.integers(0, 65535),
        "INT64": st.integers(-(2**63), 2**63 - 1),
        "BOOL": st.booleans(),
        "BYTES": st.text(max_size=5),
    }
    width = int(datatype[2:]) if datatype.startswith("FP") else 64
    values = data.draw(st.lists(one.get(datatype, st.floats(width=width, allow_nan=False)), max_size=6))
    raw = to_bytes(Tensor("t", datatype, values))
    assert from_bytes("t", datatype, len(values), raw).values == values
    if datatype == "BYTES":
        assert raw == b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in values)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v2/nothing", 404, "path is '/v2/nothing'; expected one of /v2,"),
        ("GET", "/v2/models/nobody", 404, "task is 'nobody'"),
        ("GET", "/v2/models/parcel_late/versions/9", 404, "version is '9'"),
        ("POST", "/v2/health/live", 405, "method is 'POST'; expected GET"),
        ("GET", INFER, 405, "method is 'GET'; expected POST"),
        ("POST", "/v2/models/infer", 405, "method is"),
        ("POST", "/v2/infer", 404, "path is"),
        ("GET", "/v2/models/infer", 404, "task is 'infer'"),
        ("POST", "/v2/models/nobody/infer", 404, "task is 'nobody'"),
    ],
)
def test_other_paths_are_refused(served: Any, method: str, path: str, status: int, message: str) -> None:
    answer = served.request(method, path)
    assert (answer.status_code, answer.json()["error"][: len(message)]) == (status, message)
    assert ("allow" in answer.headers) is (status == 405)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(
        st.sampled_from([*ROWS[0], "label.null"]),
        st.dictionaries(st.sampled_from(["name", "datatype", "shape", "data", "parameters"]), json_values, min_size=1),
        max_size=3,
    ),
    extra=st.dictionaries(st.sampled_from(["id", "outputs", "parameters", "inputs", "more"]), json_values, max_size=1),
    raw=st.binary(max_size=8),
)
def test_no_request_is_answered_with_a_server_error(
    served: Any, changes: dict[str, Any], extra: dict[str, Any], raw: bytes
) -> None:
    before = served.balance()
    body, headers = framed({"inputs": plain(**changes), **extra}, raw)
    answer = served.request("POST", INFER, content=body, headers=headers)
    assert answer.status_code in (200, 400, 404, 422), answer.text
    after = served.balance()
    repeated = answer.status_code == 200 and "parameters" in answer.json()
    assert after.answered - before.answered == (2 if answer.status_code == 200 and not repeated else 0)
    assert after.balanced


class TestNothingDeployed:
    def test_it_is_live_but_not_ready(self, serve: Callable[..., Any]) -> None:
        served = serve()
        assert served.request("GET", "/v2/health/live").status_code == 200
        assert served.request("GET", "/v2/health/ready").status_code == 503
        assert served.request("GET", "/v2/models/parcel_late").json()["versions"] == []
        for path in ("/v2/models/parcel_late/ready", "/v2/models/parcel_late/versions/1"):
            assert served.request("GET", path).status_code == 503
        answer = infer(served, plain())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["error"] == "Task 'parcel_late' has no version deployed."


def test_inferences_are_counted_with_the_other_predictions(served: Any) -> None:
    def count(code: int) -> float:
        line = f'skewless_requests_total{{code="{code}",task="parcel_late"}} '
        found = [each for each in served.request("GET", "/metrics").text.splitlines() if each.startswith(line)]
        return float(found[0].split()[-1]) if found else 0.0

    before = {code: count(code) for code in (200, 400)}
    infer(served, plain())
    infer(served, [])
    assert {code: count(code) - before[code] for code in (200, 400)} == {200: 1, 400: 1}
