"""The body of an HTTP request, read within its limits."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from serving.front import Disconnected
from serving.requests import BadRequest

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_WINDOW = {b"gzip": 31, b"deflate": 15}  # zlib's names for the two formats


async def read(headers: Mapping[bytes, bytes], receive: Receive, most: int) -> bytes:
    """The body as it was sent.

    Raises:
        BadRequest: it is longer than `most` bytes (413).
        Disconnected: the caller went away.
    """
    said = headers.get(b"content-length", b"")
    if said.isdigit() and int(said[:20]) > most:
        raise BadRequest(413, "content-length", int(said[:20]), f"at most {most} bytes")
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message.get("body", b"")
        if len(body) > most:
            raise BadRequest(413, "", f"{len(body)} bytes and more", f"at most {most} bytes")
        if not message.get("more_body", False):
            return body


def unpacked(headers: Mapping[bytes, bytes], body: bytes, most: int) -> bytes:
    """The body without its content encoding, gzip or deflate.

    Raises:
        BadRequest: another encoding (415), not of the encoding (400), or longer than `most` bytes unpacked (413).
    """
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding == b"identity":
        return body
    if coding not in _WINDOW:
        raise BadRequest(415, "content-encoding", coding.decode("latin-1"), "gzip, deflate or none")
    unpacker = zlib.decompressobj(_WINDOW[coding])
    try:
        whole = unpacker.decompress(body, most + 1)
    except zlib.error as error:
        raise BadRequest(400, "", f"{len(body)} bytes", f"a body in {coding.decode()} ({error})") from error
    if len(whole) > most:
        raise BadRequest(413, "", f"more than {most} bytes unpacked", f"at most {most} bytes")
    if not unpacker.eof:
        raise BadRequest(400, "", f"{len(body)} bytes", f"a whole body in {coding.decode()}")
    return whole
