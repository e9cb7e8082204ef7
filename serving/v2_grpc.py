"""The Open Inference Protocol over gRPC: a server on the replica's own event loop, asking the same front as HTTP does.

See docs/decisions/grpc-server.md for why it is not Ray Serve's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc

from contracts.errors import SkewlessError
from serving import v2
from serving.access import Access, Refused
from serving.caller import DEADLINE, Caller, caller_of
from serving.front import Content, Front, Outcome
from serving.requests import BadRequest, RequestSchema
from serving.service import PredictionService
from serving.v2_messages import SERVICE, message
from serving.v2_tensors import Tensor, from_bytes, rows_of, to_bytes

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where a tensor's values stand when they are not raw; half-precision numbers can only be raw."""
_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_DRAIN_SECONDS = 15.0
_LONGEST = 86_400.0  # a deadline beyond a day is none
_OPEN = frozenset({"ServerLive", "ServerReady"})
_log = logging.getLogger(__name__)
_ROOM = 65_536  # above the largest body, so that what is too long is told so rather than cut off

Call = Callable[[Any, Any], Awaitable[Any]]


class GrpcPortBusy(SkewlessError, OSError):
    """Another program listens where gRPC was to listen."""


class V2Grpc:
    """Answers the protocol's calls at an address.

    Args:
        front: asks the services.
        address: `host:port`; port 0 takes a free one.
        access: who may ask; everybody when None.
    """

    def __init__(self, front: Front, address: str, access: Access | None = None) -> None:
        self._front = front
        self._access = access
        self._address = address
        self._server: Any = None
        self.port = 0
        """Where it listens, once started."""

    async def start(self) -> None:
        """Listen, on the running event loop.

        Raises:
            GrpcPortBusy: the address cannot be had.
        """
        most = max((each.task.serving.max_body_bytes for each in self._front.services.values()), default=0)
        gates = [] if self._access is None or self._access.open else [_Gate(self._access)]
        server = grpc.aio.server(interceptors=gates, options=[("grpc.max_receive_message_length", most + _ROOM)])
        calls: dict[str, Call] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                call, message(f"{name}Request").FromString, message(f"{name}Response").SerializeToString
            )
            for name, call in calls.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        try:
            self.port = server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise GrpcPortBusy(
                f"gRPC cannot listen at {self._address}: {error}.", hint="serve gRPC on another port (`--grpc-port`)."
            ) from error
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Take no more calls, and finish those under way."""
        if self._server is not None:
            await self._server.stop(_DRAIN_SECONDS)

    async def _server_live(self, request: Any, context: Any) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def _server_ready(self, request: Any, context: Any) -> Any:
        return message("ServerReadyResponse")(ready=v2.is_ready(self._front))

    async def _server_metadata(self, request: Any, context: Any) -> Any:
        return message("ServerMetadataResponse")(name=v2.NAME, version=v2.VERSION, extensions=v2.EXTENSIONS)

    async def _model_ready(self, request: Any, context: Any) -> Any:
        try:
            v2.champion(self._front.service(request.name), request.version)
        except Exception:  # none of that name, none deployed, or another version: not ready in each case
            return message("ModelReadyResponse")(ready=False)
        return message("ModelReadyResponse")(ready=True)

    async def _model_metadata(self, request: Any, context: Any) -> Any:
        try:
            found = v2.metadata(self._front.service(request.name), request.version)
        except Exception as error:
            await _abort(context, self._front.failed("", error))
        return message("ModelMetadataResponse")(**found)

    async def _model_infer(self, request: Any, context: Any) -> Any:
        versions, ports = [""], []

        async def read(service: PredictionService) -> Content:
            size, most = request.ByteSize(), service.task.serving.max_body_bytes
            if size > most:
                raise BadRequest(413, "", f"{size} bytes", f"at most {most} bytes")
            versions[0] = v2.champion(service, request.model_version)
            ports.extend(v2.chosen(service.schema, [each.name for each in request.outputs]))
            return _question(service.schema, request)

        outcome = await self._front.ask(request.model_name, read, _caller(context))
        context.add_done_callback(lambda _: self._front.done(outcome))  # the shadow begins when the answer is out
        if outcome.answer is None:
            await _abort(context, outcome)
        payload = outcome.answer.payload
        response = message("ModelInferResponse")(
            model_name=request.model_name, model_version=versions[0], id=request.id or payload["request_id"]
        )
        for name, value in v2.parameters(payload).items():
            response.parameters[name].string_param = value
        for tensor in v2.answered(payload, ports):
            output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            if request.raw_input_contents:  # the caller is answered in the way it asked
                response.raw_output_contents.append(to_bytes(tensor))
            else:
                _fill(output.contents, tensor)
        return response


class _Gate(grpc.aio.ServerInterceptor):
    """Asks for the token of whoever calls, but for what decides about the replica's life."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        if details.method.rpartition("/")[2] not in _OPEN:
            said = dict(details.invocation_metadata)
            try:
                self._access.check("prediction", said.get("authorization"))
            except Refused as refused:
                told = {"status": refused.status, "reason": refused.reason, "why": refused.fact, "path": details.method}
                _log.warning("request refused", extra=told | {"request_id": str(said.get("x-request-id", ""))[:128]})
                return _turned_away(refused)
        return await continuation(details)


def _turned_away(refused: Refused) -> Any:
    async def abort(request: Any, context: Any) -> NoReturn:
        after = () if refused.retry_seconds is None else (("retry-after", str(refused.retry_seconds)),)
        await context.abort(_CODES[refused.status], refused.fact, after)
        raise AssertionError("an aborted call does not go on")

    return grpc.unary_unary_rpc_method_handler(abort)


def _caller(context: Any) -> Caller:
    """Who calls, and how long it waits: gRPC's own deadline, as a number of milliseconds."""
    said = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
    left = context.time_remaining()
    headers = {name.encode(): value.encode() for name, value in said.items()}
    if left is not None and left < _LONGEST:
        headers[DEADLINE] = b"%d" % max(1000 * left, 0)
    return caller_of(headers, "ModelInfer")


def _question(schema: RequestSchema, request: Any) -> dict[str, Any]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(400, "raw_input_contents", f"{len(raw)} tensors", f"{len(request.inputs)}, one an input")
    tensors = []
    for i, each in enumerate(request.inputs):
        count = rows_of(each.name, each.datatype, list(each.shape))
        if raw:
            tensors.append(from_bytes(each.name, each.datatype, count, raw[i]))
        else:
            tensors.append(_typed(each, count))
    return v2.question(schema, request.id, tensors)


def _typed(tensor: Any, count: int) -> Tensor:
    """A tensor whose values stand in the field of their type."""
    field = _CONTENTS.get(tensor.datatype)
    values: list[Any] = list(getattr(tensor.contents, field)) if field else []
    if len(values) != count:
        expected = f"{count} values in contents.{field}" if field else "raw contents"
        raise BadRequest(400, f"inputs.{tensor.name}", f"{len(values)} values", expected)
    if tensor.datatype == "BYTES":
        try:
            values = [value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise BadRequest(400, f"inputs.{tensor.name}", repr(error.object), "text in UTF-8") from error
    elif tensor.datatype.startswith("FP"):
        values = [None if math.isnan(value) else value for value in values]
    return Tensor(tensor.name, tensor.datatype, values)


def _fill(contents: Any, tensor: Tensor) -> None:
    values = [value.encode() for value in tensor.values] if tensor.datatype == "BYTES" else tensor.values
    getattr(contents, _CONTENTS[tensor.datatype]).extend(values)


async def _abort(context: Any, outcome: Outcome) -> NoReturn:
    code = _CODES.get(outcome.status, grpc.StatusCode.INVALID_ARGUMENT)
    after = () if outcome.retry_seconds is None else (("retry-after", str(outcome.retry_seconds)),)
    await context.abort(code, v2.told(outcome), after)
    raise AssertionError("an aborted call does not go on")
