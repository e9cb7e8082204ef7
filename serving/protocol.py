"""The HTTP side, as one ASGI application: routes, limits, status codes. Everything else is the services' business."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import orjson

from serving import http_body, openapi
from serving.caller import REQUEST_ID, Caller, caller_of
from serving.front import Disconnected, Front, Outcome
from serving.metrics import Metrics
from serving.requests import BadRequest
from serving.service import PredictionService
from serving.v2_grpc import V2Grpc
from serving.v2_http import V2Http

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_JSON = b"application/json"
Headers = Mapping[bytes, bytes]
_PREDICT = ("/v1/tasks/", "/predict")


class Protocol:
    """The ASGI application of one replica.

    Args:
        front: asks the services.
        errors: task to why its newest deployment is not served; read at each `/readyz`.
        metrics: what `/metrics` tells.
        beside: another way in that lives as long as this one.
        echoes: whether answers carry the request's id; something around this application does otherwise.
    """

    def __init__(
        self,
        front: Front,
        errors: Mapping[str, str],
        metrics: Metrics,
        beside: V2Grpc | None = None,
        *,
        echoes: bool = True,
    ) -> None:
        self._echoes = echoes
        self._front = front
        self._v2_http = V2Http(front)
        self._beside = beside
        self._errors = errors
        self._metrics = metrics
        schemas = [service.schema for service in front.services.values()]
        self._pages: dict[str, tuple[bytes, bytes]] = {
            "/openapi.json": (_JSON, orjson.dumps(openapi.document(schemas))),
            "/docs": (b"text/html; charset=utf-8", openapi.page(schemas)),
            "/healthz": (_JSON, b'{"status":"ok"}'),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection's event stream."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            path: str = scope["path"]
            headers = {name.lower(): value for name, value in scope["headers"]}
            caller = caller_of(headers, path)
            if self._echoes or self._front.admission.draining:
                send = self._adding(send, caller)
            if path.startswith(_PREDICT[0]) and path.endswith(_PREDICT[1]):
                await self._predict(
                    path[len(_PREDICT[0]) : -len(_PREDICT[1])], scope["method"], headers, caller, receive, send
                )
            elif path == "/v2" or path.startswith("/v2/"):
                await self._v2(path, scope["method"], headers, caller, receive, send)
            else:
                await self._page(path, scope, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """Start and stop what listens beside HTTP, on the event loop that answers."""
        while True:
            message = await receive()
            stopping = message["type"] == "lifespan.shutdown"
            try:
                if self._beside is not None:
                    await (self._beside.stop() if stopping else self._beside.start())
            except Exception as error:
                await send({"type": f"{message['type']}.failed", "message": str(error)})
                return
            await send({"type": f"{message['type']}.complete"})
            if stopping:
                return

    def _adding(self, send: Send, caller: Caller) -> Send:
        """Answers that carry the request's id, and the word that no further one is wanted on this connection."""
        added = [(REQUEST_ID, caller.id.encode())] if self._echoes else []
        if self._front.admission.draining:
            added.append((b"connection", b"close"))

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        return sending

    async def _v2(self, path: str, method: str, headers: Headers, caller: Caller, receive: Receive, send: Send) -> None:
        try:
            reply = await self._v2_http.reply(method, path, headers, receive, caller)
        except Disconnected:
            return
        length = (b"content-length", b"%d" % len(reply.body))
        await send({"type": "http.response.start", "status": reply.status, "headers": [length, *reply.headers]})
        await send({"type": "http.response.body", "body": reply.body})
        if reply.outcome is not None and reply.outcome.label:
            self._front.done(reply.outcome)

    async def _page(self, path: str, scope: Scope, send: Send) -> None:
        if path not in self._pages and path not in ("/readyz", "/metrics"):
            known = "/v1/tasks/{task}/predict, /v2/…, /healthz, /readyz, /metrics, /openapi.json, /docs"
            await _refuse(send, BadRequest(404, "path", path, f"one of {known}"))
        elif scope["method"] not in ("GET", "HEAD"):
            await _refuse(send, BadRequest(405, "method", scope["method"], "GET"), (b"allow", b"GET, HEAD"))
        elif path == "/readyz":
            ready, body = self._readiness()
            await _send(send, 200 if ready else 503, orjson.dumps(body))
        elif path == "/metrics":
            await _send(send, 200, self._metrics.text(), kind=b"text/plain; version=0.0.4; charset=utf-8")
        else:
            kind, page = self._pages[path]
            await _send(send, 200, page, kind=kind)

    def _readiness(self) -> tuple[bool, dict[str, Any]]:
        tasks: dict[str, Any] = {}
        for name, service in self._front.services.items():
            live = service.live
            state: dict[str, Any] = {"ready": live is not None}
            if live is not None:
                row = live.deployment
                state |= {
                    "generation": row.generation,
                    "champion": row.champion,
                    "challenger": row.challenger,
                    "stage": row.stage,
                    "share": row.share,
                }
            error = self._errors.get(name) or (live.error if live is not None else "no version is deployed")
            tasks[name] = state | ({"error": error} if error else {})
        if self._front.admission.draining:
            return False, {"status": "draining", "tasks": tasks}
        ready = all(state["ready"] for state in tasks.values())
        return ready, {"status": "ready" if ready else "not ready", "tasks": tasks}

    async def _predict(
        self, task: str, method: str, headers: Headers, caller: Caller, receive: Receive, send: Send
    ) -> None:
        try:
            outcome = await self._front.ask(task, lambda service: _body(service, method, headers, receive), caller)
        except Disconnected:
            return
        if outcome.answer is not None:
            await _send(send, 200, orjson.dumps(outcome.answer.payload))
        else:
            await self._failed(send, outcome)
        self._front.done(outcome)

    async def _failed(self, send: Send, outcome: Outcome) -> None:
        error, seconds = outcome.error, outcome.retry_seconds
        if isinstance(error, BadRequest):
            extra = {405: (b"allow", b"POST"), 413: (b"connection", b"close")}.get(error.status)
            await _refuse(send, error, *([extra] if extra else []))
            return
        body = {"error": {"field": "", "value": None, "expected": "", "message": outcome.message}}
        after = [] if seconds is None else [(b"retry-after", b"%d" % seconds)]
        await _send(send, outcome.status, orjson.dumps(body), *after)


async def _body(service: PredictionService, method: str, headers: Headers, receive: Receive) -> bytes:
    if method != "POST":
        raise BadRequest(405, "method", method, "POST")
    kind = headers.get(b"content-type", _JSON).split(b";")[0].strip().lower()
    if kind != _JSON:
        raise BadRequest(415, "content-type", kind.decode("latin-1"), "application/json")
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding != b"identity":
        raise BadRequest(415, "content-encoding", coding.decode("latin-1"), "no content encoding")
    return await http_body.read(headers, receive, service.task.serving.max_body_bytes)


async def _refuse(send: Send, error: BadRequest, *extra: tuple[bytes, bytes]) -> None:
    await _send(send, error.status, orjson.dumps(error.to_dict()), *extra)


async def _send(send: Send, status: int, body: bytes, *extra: tuple[bytes, bytes], kind: bytes = _JSON) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
