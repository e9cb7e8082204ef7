"""The Open Inference Protocol over REST: health, metadata and inference, with JSON or binary tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from serving import http_body, v2
from serving.caller import NOBODY, Caller
from serving.front import Content, Disconnected, Front, Outcome
from serving.requests import BadRequest, RequestSchema
from serving.service import PredictionService
from serving.v2_tensors import Tensor, from_bytes, from_json, rows_of, to_bytes

Headers = list[tuple[bytes, bytes]]
_JSON = b"application/json"
_SPLIT = b"inference-header-content-length"
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]*))?(/ready|/infer)?")


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back."""

    status: int
    body: bytes
    headers: Headers
    outcome: Outcome | None = None
    """Of an inference; to be handed to `Front.done` once the reply is sent."""


@dataclass(slots=True)
class _Wanted:
    """What an inference request asks of its answer."""

    id: str = ""
    version: str = ""
    ports: tuple[v2.Port, ...] = ()
    binary: frozenset[str] = frozenset()


class V2Http:
    """Answers requests below `/v2`.

    Args:
        front: asks the services.
    """

    def __init__(self, front: Front) -> None:
        self._front = front

    async def reply(
        self,
        method: str,
        path: str,
        headers: Mapping[bytes, bytes],
        receive: http_body.Receive,
        caller: Caller = NOBODY,
    ) -> Reply:
        """Answer one request; every failure is a reply. Raises Disconnected when the caller went away."""
        try:
            if path.endswith("/infer") and _model(path)[2]:
                return await self._infer(method, path, headers, receive, caller)
            if method not in ("GET", "HEAD"):
                raise BadRequest(405, "method", method, "GET")
            return self._state(path.rstrip("/"))
        except Disconnected:
            raise
        except Exception as error:
            return _refused(self._front.failed("", error))

    def _state(self, path: str) -> Reply:
        if path == "/v2":
            return _json(200, {"name": v2.NAME, "version": v2.VERSION, "extensions": v2.EXTENSIONS})
        if path == "/v2/health/live":
            return _json(200, {"live": True})
        if path == "/v2/health/ready":
            ready = v2.is_ready(self._front)
            return _json(200 if ready else 503, {"ready": ready})
        task, version, action = _model(path)
        service = self._front.service(task)
        if action == "/ready":
            served = v2.champion(service, version)
            return _json(200, {"name": task, "version": served, "ready": True})
        return _json(200, v2.metadata(service, version))

    async def _infer(
        self, method: str, path: str, headers: Mapping[bytes, bytes], receive: http_body.Receive, caller: Caller
    ) -> Reply:
        wanted = _Wanted()

        async def read(service: PredictionService) -> Content:
            if method != "POST":
                raise BadRequest(405, "method", method, "POST")
            most = service.task.serving.max_body_bytes
            body = http_body.unpacked(headers, await http_body.read(headers, receive, most), most)
            wanted.version = v2.champion(service, version)
            content, raw = _parts(headers, body)
            _want(wanted, service.schema, content)
            return v2.question(service.schema, wanted.id, _tensors(content, raw))

        task, version, _ = _model(path)
        outcome = await self._front.ask(task, read, caller)
        if outcome.answer is None:
            return _refused(outcome)
        payload = outcome.answer.payload
        content = {"model_name": task, "model_version": wanted.version, "id": wanted.id or payload["request_id"]}
        said = v2.parameters(payload)
        if said:
            content["parameters"] = said
        parts, described = [b""], []
        for tensor in v2.answered(payload, wanted.ports):
            entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
            if tensor.name in wanted.binary:
                parts.append(to_bytes(tensor))
                entry["parameters"] = {"binary_data_size": len(parts[-1])}
            else:
                entry["data"] = tensor.values
            described.append(entry)
        content["outputs"] = described
        parts[0] = orjson.dumps(content)
        if not wanted.binary:
            return Reply(200, parts[0], [(b"content-type", _JSON)], outcome)
        split = [(b"content-type", b"application/octet-stream"), (_SPLIT, b"%d" % len(parts[0]))]
        return Reply(200, b"".join(parts), split, outcome)


def _model(path: str) -> tuple[str, str, str]:
    """Task, version and action of a model's path."""
    found = _MODEL.fullmatch(path)
    if found is None:
        known = "/v2, /v2/health/live, /v2/health/ready, /v2/models/{task}[/versions/{version}][/ready | /infer]"
        raise BadRequest(404, "path", path, f"one of {known}")
    return found[1], found[2] or "", found[3] or ""


def _parts(headers: Mapping[bytes, bytes], body: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON of a request, and the binary tensors behind it."""
    said = headers.get(_SPLIT)
    if said is not None and not (said.isdigit() and int(said[:20]) <= len(body)):
        raise BadRequest(400, _SPLIT.decode(), said.decode("latin-1"), f"a number of at most {len(body)} bytes")
    size = len(body) if said is None else int(said)
    try:
        content = orjson.loads(body[:size])
    except orjson.JSONDecodeError as error:
        raise BadRequest(400, "", body[:size].decode(errors="replace"), f"JSON ({error})") from error
    if not isinstance(content, dict):
        raise BadRequest(400, "", content, 'an object such as {"inputs": [{...}]}')
    return content, body[size:]


def _want(wanted: _Wanted, schema: RequestSchema, content: Mapping[str, Any]) -> None:
    given = content.get("id", "")
    if not isinstance(given, str):
        raise BadRequest(400, "id", given, "a string")
    wanted.id = given
    named = _objects(content, "outputs")
    everything = _parameters("", content).get("binary_data_output", False)
    wanted.ports = tuple(v2.chosen(schema, [str(each.get("name")) for each in named]))
    if named:
        marked = {str(each["name"]) for each in named if _as_bytes(each, everything)}
    else:
        marked = {port.name for port in wanted.ports} if everything is True else set()
    wanted.binary = frozenset(marked)


def _as_bytes(output: Mapping[str, Any], otherwise: Any) -> bool:
    said = _parameters("outputs", output)
    if said.get("classification"):
        raise BadRequest(400, "outputs.parameters.classification", said["classification"], "no classification")
    return said.get("binary_data", otherwise) is True


def _tensors(content: Mapping[str, Any], raw: bytes) -> list[Tensor]:
    tensors, place = [], 0
    for each in _objects(content, "inputs"):
        name = each.get("name")
        if not isinstance(name, str):
            raise BadRequest(400, "inputs.name", name, "a string")
        said = _parameters(f"inputs.{name}", each)
        if "shared_memory_region" in said:
            raise BadRequest(400, f"inputs.{name}", said["shared_memory_region"], "data in the request")
        datatype = each.get("datatype")
        count = rows_of(name, datatype, each.get("shape"))
        size = said.get("binary_data_size")
        if size is None:
            tensors.append(from_json(name, str(datatype), count, each.get("data")))
            continue
        if type(size) is not int or not 0 <= size <= len(raw) - place:
            raise BadRequest(400, f"inputs.{name}.binary_data_size", size, f"at most {len(raw) - place} bytes, as sent")
        tensors.append(from_bytes(name, str(datatype), count, raw[place : place + size]))
        place += size
    if place != len(raw):
        raise BadRequest(400, "", f"{len(raw) - place} bytes behind the last tensor", "tensors that fill the body")
    return tensors


def _objects(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = content.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise BadRequest(400, name, found, "a list of objects")
    return found


def _parameters(where: str, holder: Mapping[str, Any]) -> Mapping[str, Any]:
    found = holder.get("parameters", {})
    if not isinstance(found, dict):
        raise BadRequest(400, f"{where}.parameters".lstrip("."), found, "an object")
    return found


def _refused(outcome: Outcome) -> Reply:
    headers: Headers = [(b"content-type", _JSON)]
    if outcome.retry_seconds is not None:
        headers.append((b"retry-after", b"%d" % outcome.retry_seconds))
    if outcome.status == 405:
        headers.append((b"allow", b"GET, HEAD, POST"))
    if outcome.status == 413:
        headers.append((b"connection", b"close"))
    return Reply(outcome.status, orjson.dumps({"error": v2.told(outcome)}), headers, outcome)


def _json(status: int, content: Any) -> Reply:
    return Reply(status, orjson.dumps(content), [(b"content-type", _JSON)])
