"""The Open Inference Protocol over gRPC, asked by its stock client; what both transports share is tested over REST."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from serving import v2_messages
from serving.front import Front
from serving.v2_grpc import GrpcPortBusy, V2Grpc
from serving.v2_messages import message

ROW: dict[str, Any] = {
    "parcel": "g1",
    "depot_id": "north",
    "courier_id": 7,
    "ready_at": "2024-03-05T10:00:00Z",
    "weight": 2.5,
    "pieces": 3,
    "fragile": False,
    "label": "größer",
}
DATATYPES = {"courier_id": "INT64", "weight": "FP64", "pieces": "INT64", "fragile": "BOOL"}
FIELDS = {
    "INT64": "int64_contents",
    "FP64": "fp64_contents",
    "FP32": "fp32_contents",
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
    "UINT16": "uint_contents",
    "INT8": "int_contents",
}


def tensors(**changes: Any) -> list[Any]:
    made = []
    for name, value in (ROW | changes).items():
        datatype = DATATYPES.get(name, "BYTES")
        made.append(triton.InferInput(name, [1], datatype))
        dtype = {"INT64": np.int64, "FP64": np.float64, "BOOL": np.bool_}.get(datatype, np.object_)
        made[-1].set_data_from_numpy(np.array([value], dtype))
    return made


class Listening:
    """The gRPC side of a replica, on an event loop of its own."""

    def __init__(self, front: Front) -> None:
        self.loop = asyncio.new_event_loop()
        self.server = V2Grpc(front, "127.0.0.1:0")
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.run(self.server.start())
        self.address = f"127.0.0.1:{self.server.port}"

    def run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def close(self) -> None:
        self.run(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def listening(served: Any) -> Iterator[Listening]:
    found = Listening(served.replica.asgi._front)
    yield found
    found.close()


@pytest.fixture(scope="module")
def client(listening: Listening) -> Iterator[Any]:
    with triton.InferenceServerClient(listening.address) as found:
        yield found


@pytest.fixture(scope="module")
def call(listening: Listening) -> Iterator[Any]:
    """Sends a ModelInferRequest as it is."""
    with grpc.insecure_channel(listening.address) as channel:
        method = channel.unary_unary(
            f"/{v2_messages.SERVICE}/ModelInfer",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=message("ModelInferResponse").FromString,
        )
        yield method


def request(raw: bool = False, **changes: Any) -> Any:
    """A question with typed contents; `changes` give (data type, values) of one input."""
    made = message("ModelInferRequest")(model_name="parcel_late")
    for name, value in ROW.items():
        datatype, values = changes.get(name, (DATATYPES.get(name, "BYTES"), [value]))
        tensor = made.inputs.add(name=name, datatype=datatype, shape=[1])
        values = [each.encode() if isinstance(each, str) else each for each in values]
        getattr(tensor.contents, FIELDS.get(datatype, "fp32_contents")).extend(values)
    return made


def test_the_messages_are_the_protocols() -> None:
    def shape(descriptor: Descriptor) -> dict[str, Any]:
        def one(field: FieldDescriptor) -> Any:
            inner = shape(field.message_type) if field.message_type else None
            oneof = field.containing_oneof.name if field.containing_oneof else None
            return field.number, field.type, field.is_repeated, oneof, inner

        return {field.name: one(field) for field in descriptor.fields}

    for name in v2_messages._MESSAGES:
        theirs: Any = service_pb2
        for part in name.split("."):
            theirs = getattr(theirs, part)
        assert shape(message(name).DESCRIPTOR) == shape(theirs.DESCRIPTOR), name
        assert message(name).DESCRIPTOR.full_name == theirs.DESCRIPTOR.full_name
    assert service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name == v2_messages.SERVICE


class TestTheStockClient:
    def test_it_finds_server_and_model(self, client: Any, served: Any) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("parcel_late", "1")
        assert not client.is_model_ready("parcel_late", "2")
        assert not client.is_model_ready("nobody")
        over_http = served.request("GET", "/v2").json()
        assert client.get_server_metadata(as_json=True) == over_http
        described = client.get_model_metadata("parcel_late", as_json=True)
        over_http = served.request("GET", "/v2/models/parcel_late").json()
        for port in [*described["inputs"], *described["outputs"]]:
            port["shape"] = [int(each) for each in port["shape"]]
        assert described == over_http
        with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*task is 'nobody'"):
            client.get_model_metadata("nobody")

    def test_its_answer_is_the_native_one(self, client: Any, served: Any) -> None:
        [native] = served.ask(ROW).json()["predictions"]
        answer = client.infer("parcel_late", tensors(), request_id="g-once", model_version="1")
        said = answer.get_response()
        assert (said.model_name, said.model_version, said.id) == ("parcel_late", "1", "g-once")
        assert answer.as_numpy("score").tolist() == [native["score"]]
        assert answer.as_numpy("decision").tolist() == [native["decision"]]
        assert answer.as_numpy("version").tolist() == [1]
        assert answer.as_numpy("variant").tolist() == [b"champion"]
        assert [row["case_id"] for row in served.logged() if row["request_id"] == "g-once"] == ["g1"]
        again = client.infer("parcel_late", tensors(), request_id="g-once")
        assert again.get_response().parameters["degraded"].string_param == "repeated"
        assert again.as_numpy("score").tolist() == [native["score"]]

    def test_outputs_are_chosen(self, client: Any) -> None:
        answer = client.infer("parcel_late", tensors(), outputs=[triton.InferRequestedOutput("variant")])
        assert [each.name for each in answer.get_response().outputs] == ["variant"]

    @pytest.mark.parametrize(
        ("changes", "named", "message"),
        [
            ({"depot_id": "mars"}, {}, r"INVALID_ARGUMENT.*Input 'depot_id', row 0, is 'mars'; expected a value"),
            ({"ready_at": "soon"}, {}, r"INVALID_ARGUMENT.*Input 'ready_at', row 0, is 'soon'"),
            ({}, {"model_version": "9"}, r"NOT_FOUND.*version is '9'"),
            ({}, {"outputs": [triton.InferRequestedOutput("odds")]}, r"INVALID_ARGUMENT.*outputs is 'odds'"),
            ({"label": "x" * 70_000}, {}, r"INVALID_ARGUMENT.*expected at most 65536 bytes"),
        ],
    )
    def test_a_mistake_comes_as_its_exception(
        self, client: Any, served: Any, changes: Any, named: Any, message: str
    ) -> None:
        before = len(served.logged())
        with pytest.raises(InferenceServerException, match=message):
            client.infer("parcel_late", tensors(**changes), **named)
        assert len(served.logged()) == before


class TestTypedContents:
    def test_they_are_answered_in_kind(self, call: Any, served: Any) -> None:
        [native] = served.ask(ROW).json()["predictions"]
        answer = call(request(weight=("FP32", [2.5]), courier_id=("UINT16", [7]), pieces=("INT8", [3])))
        assert not answer.raw_output_contents
        outputs = {each.name: each.contents for each in answer.outputs}
        assert list(outputs["score"].fp64_contents) == [native["score"]]
        assert list(outputs["decision"].int64_contents) == [native["decision"]]
        assert list(outputs["variant"].bytes_contents) == [b"champion"]

    def test_nan_is_null(self, call: Any, served: Any) -> None:
        [native] = served.ask(ROW | {"weight": None}).json()["predictions"]
        answer = call(request(weight=("FP64", [math.nan])))
        assert list(answer.outputs[0].contents.fp64_contents) == [native["score"]]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"weight": ("FP64", [])}, "inputs.weight is '0 values'; expected 1 values in contents.fp64_contents"),
            ({"weight": ("FP16", [2.5])}, "inputs.weight is '0 values'; expected raw contents"),
            ({"label": ("BYTES", [b"\xff"])}, "inputs.label is \"b'\\\\xff'\"; expected text in UTF-8"),
            ({"label": ("TEXT", [])}, "inputs.label.datatype is 'TEXT'; expected one of BOOL"),
        ],
    )
    def test_what_is_wrong_is_told(self, call: Any, changes: Any, message: str) -> None:
        with pytest.raises(grpc.RpcError) as error:
            call(request(**changes))
        told: Any = error.value
        assert told.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert told.details().startswith(message)

    def test_raw_contents_are_one_an_input(self, call: Any) -> None:
        asked = request()
        asked.raw_input_contents.append(b"")
        with pytest.raises(grpc.RpcError, match="raw_input_contents is '1 tensors'; expected 8, one an input"):
            call(asked)


def test_nothing_deployed_is_unavailable_and_says_when_to_ask_again(serve: Any) -> None:
    listening = Listening(serve().replica.asgi._front)
    try:
        with triton.InferenceServerClient(listening.address) as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
            assert not client.is_model_ready("parcel_late")
        with grpc.insecure_channel(listening.address) as channel:
            method = channel.unary_unary(
                f"/{v2_messages.SERVICE}/ModelInfer", request_serializer=lambda asked: asked.SerializeToString()
            )
            with pytest.raises(grpc.RpcError) as error:
                method(request())
        told: Any = error.value
        assert told.code() is grpc.StatusCode.UNAVAILABLE
        assert ("retry-after", "5") in [(each.key, each.value) for each in told.trailing_metadata()]
    finally:
        listening.close()


def test_a_port_that_is_taken_is_told(listening: Listening) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = V2Grpc(listening.server._front, f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(GrpcPortBusy, match="gRPC cannot listen at"):
            listening.run(taken.start())


def test_the_application_starts_and_stops_it(served: Any) -> None:
    from serving.metrics import Metrics
    from serving.protocol import Protocol

    front = served.replica.asgi._front
    sent: list[dict[str, Any]] = []

    async def live(address: str) -> V2Grpc:
        beside = V2Grpc(front, address)
        messages = ["lifespan.startup", "lifespan.shutdown"]

        async def receive() -> dict[str, str]:
            if len(messages) == 1 and beside.port:
                async with grpc.aio.insecure_channel(f"127.0.0.1:{beside.port}") as channel:
                    ask = channel.unary_unary(
                        f"/{v2_messages.SERVICE}/ServerLive",
                        response_deserializer=message("ServerLiveResponse").FromString,
                    )
                    assert (await ask(b"")).live
            return {"type": messages.pop(0)}

        async def send(content: dict[str, Any]) -> None:
            sent.append(content)

        await Protocol(front, {}, Metrics(), beside)({"type": "lifespan"}, receive, send)
        return beside

    asyncio.run(live("127.0.0.1:0"))
    assert [each["type"] for each in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    sent.clear()
    asyncio.run(live("203.0.113.1:80"))
    assert sent[0]["type"] == "lifespan.startup.failed"
    assert "gRPC cannot listen at 203.0.113.1:80" in sent[0]["message"]
