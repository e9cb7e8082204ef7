"""The HTTP side, as one ASGI application: routes, limits, status codes. Everything else is the services' business."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import orjson

from contracts.errors import SkewlessError
from serving import openapi
from serving.log_writer import LogUnavailable, Overloaded
from serving.metrics import Metrics
from serving.requests import BadRequest
from serving.service import FeaturesUnavailable, NotDeployed, PredictionService

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_log = logging.getLogger(__name__)
_JSON = b"application/json"
_PREDICT = ("/v1/tasks/", "/predict")
_RETRY_SECONDS: dict[type[Exception], int] = {Overloaded: 1, LogUnavailable: 5, FeaturesUnavailable: 1, NotDeployed: 5}
_MOST_IN_FLIGHT = 512


class _Disconnected(Exception):
    """The caller went away before the body was whole."""


class Protocol:
    """The ASGI application of one replica.

    Args:
        services: by task name.
        errors: task to why its newest deployment is not served; read at each `/readyz`.
        metrics: where to count.
        most_in_flight: requests under way beyond which the next is refused with 503.
    """

    def __init__(
        self,
        services: Mapping[str, PredictionService],
        errors: Mapping[str, str],
        metrics: Metrics,
        *,
        most_in_flight: int = _MOST_IN_FLIGHT,
    ) -> None:
        self._services = services
        self._errors = errors
        self._metrics = metrics
        self._most_in_flight = most_in_flight
        self._in_flight = 0
        schemas = [service.schema for service in services.values()]
        self._pages: dict[str, tuple[bytes, bytes]] = {
            "/openapi.json": (_JSON, orjson.dumps(openapi.document(schemas))),
            "/docs": (b"text/html; charset=utf-8", openapi.page(schemas)),
            "/healthz": (_JSON, b'{"status":"ok"}'),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection's event stream."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            path: str = scope["path"]
            if path.startswith(_PREDICT[0]) and path.endswith(_PREDICT[1]):
                await self._predict(path[len(_PREDICT[0]) : -len(_PREDICT[1])], scope, receive, send)
            else:
                await self._page(path, scope, send)

    async def _page(self, path: str, scope: Scope, send: Send) -> None:
        if path not in self._pages and path not in ("/readyz", "/metrics"):
            known = "/v1/tasks/{task}/predict, /healthz, /readyz, /metrics, /openapi.json, /docs"
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
        for name, service in self._services.items():
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
        ready = all(state["ready"] for state in tasks.values())
        return ready, {"status": "ready" if ready else "not ready", "tasks": tasks}

    async def _predict(self, task: str, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._services.get(task)
        label = task if service is not None else "(unknown)"
        began = time.perf_counter()
        try:
            if service is None:
                raise BadRequest(404, "task", task, f"one of {', '.join(self._services) or 'none'}")
            body = await self._body(service, scope, receive)
            began = time.perf_counter()
            if self._in_flight >= self._most_in_flight:
                raise Overloaded(f"{self._in_flight} requests are under way.", hint="ask again later.")
            self._in_flight += 1
            try:
                answer = await service.predict(body)
            finally:
                self._in_flight -= 1
        except _Disconnected:
            return
        except Exception as error:
            status = await self._failed(send, error)
        else:
            status = 200
            await _send(send, 200, orjson.dumps(answer.payload))
            service.finish(answer)
            self._metrics.seconds.labels(label).observe(time.perf_counter() - began)
        self._metrics.requests.labels(label, status).inc()

    async def _failed(self, send: Send, error: Exception) -> int:
        if isinstance(error, BadRequest):
            extra = {405: (b"allow", b"POST"), 413: (b"connection", b"close")}.get(error.status)
            await _refuse(send, error, *([extra] if extra else []))
            return error.status
        seconds = _RETRY_SECONDS.get(type(error))
        if not isinstance(error, SkewlessError):
            _log.exception("a request failed", exc_info=error)
        message = error.fact if isinstance(error, SkewlessError) else f"{type(error).__name__}: {error}"
        body = {"error": {"field": "", "value": None, "expected": "", "message": message}}
        status = 500 if seconds is None else 503
        await _send(send, status, orjson.dumps(body), *([] if seconds is None else [(b"retry-after", b"%d" % seconds)]))
        return status

    async def _body(self, service: PredictionService, scope: Scope, receive: Receive) -> bytes:
        if scope["method"] != "POST":
            raise BadRequest(405, "method", scope["method"], "POST")
        headers = {name.lower(): value for name, value in scope["headers"]}
        kind = headers.get(b"content-type", _JSON).split(b";")[0].strip().lower()
        if kind != _JSON:
            raise BadRequest(415, "content-type", kind.decode("latin-1"), "application/json")
        coding = headers.get(b"content-encoding", b"identity").strip().lower()
        if coding != b"identity":
            raise BadRequest(415, "content-encoding", coding.decode("latin-1"), "no content encoding")
        most = service.task.serving.max_body_bytes
        said = headers.get(b"content-length", b"")
        if said.isdigit() and int(said[:20]) > most:
            raise BadRequest(413, "content-length", int(said[:20]), f"at most {most} bytes")
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Disconnected
            body += message.get("body", b"")
            if len(body) > most:
                raise BadRequest(413, "", f"{len(body)} bytes and more", f"at most {most} bytes")
            if not message.get("more_body", False):
                return body


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _refuse(send: Send, error: BadRequest, *extra: tuple[bytes, bytes]) -> None:
    await _send(send, error.status, orjson.dumps(error.to_dict()), *extra)


async def _send(send: Send, status: int, body: bytes, *extra: tuple[bytes, bytes], kind: bytes = _JSON) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
