"""The gate before an ASGI application: asks for the token that a path needs, and logs who was refused, not what."""

from __future__ import annotations

import base64
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import orjson

from serving.access import Access, Kind, Refused

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Paths that whoever decides about this replica's life asks without a token."""
CONSOLE = "/console"
"""For people with a browser, which asks for a password and cannot send a bearer token: the password is the token."""
ADMINISTRATION = ("/admin", CONSOLE)
_log = logging.getLogger(__name__)


def kind_of(path: str) -> Kind | None:
    """What a path needs a token for; None for nothing."""
    if path in OPEN:
        return None
    return "administration" if any(_is_below(path, each) for each in ADMINISTRATION) else "prediction"


def _is_below(path: str, at: str) -> bool:
    return path == at or path.startswith(f"{at}/")


def _authorization(path: str, headers: Mapping[bytes, bytes]) -> str:
    given = headers.get(b"authorization", b"").decode("latin-1")
    scheme, _, value = given.partition(" ")
    if scheme.lower() != "basic" or not _is_below(path, CONSOLE):
        return given
    try:
        return f"Bearer {base64.b64decode(value, validate=True).decode('latin-1').partition(':')[2]}"
    except ValueError:
        return ""


class Gate:
    """Lets requests through to an application.

    Args:
        inner: the application.
        access: who may.
    """

    def __init__(self, inner: Asgi, access: Access) -> None:
        self._inner = inner
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection's event stream."""
        kind = kind_of(scope["path"]) if scope["type"] == "http" else None
        if kind is not None:
            headers = {name.lower(): value for name, value in scope["headers"]}
            try:
                self._access.check(kind, _authorization(scope["path"], headers))
            except Refused as refused:
                _tell(refused, kind, scope, headers.get(b"x-request-id", b"").decode("latin-1"))
                await _refuse(refused, _is_below(scope["path"], CONSOLE), send)
                return
        await self._inner(scope, receive, send)


def _tell(refused: Refused, kind: Kind, scope: Scope, asked: str) -> None:
    client = scope.get("client")
    _log.warning(
        "request refused",
        extra={
            "status": refused.status,
            "reason": refused.reason,
            "why": refused.fact,
            "kind": kind,
            "method": scope["method"],
            "path": scope["path"][:200],
            "client": client[0] if client else "",
            "request_id": asked[:128],
        },
    )


async def _refuse(refused: Refused, browser: bool, send: Send) -> None:
    body = orjson.dumps({"error": {"field": "", "value": None, "expected": "", "message": refused.fact}})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    if refused.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="skewless"' if browser else b"Bearer"))
    if refused.retry_seconds is not None:
        headers.append((b"retry-after", b"%d" % refused.retry_seconds))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
