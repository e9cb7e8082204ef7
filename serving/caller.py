"""What a transport knows of who asks: the request's id, its deadline, the trace it belongs to."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from serving.requests import BadRequest

REQUEST_ID, DEADLINE = b"x-request-id", b"x-request-deadline-ms"
_ID = re.compile(rb"[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as the transport tells it."""

    id: str = ""
    """Of the request, for logs and traces; echoed. It does not make a repetition the same question: the body's does."""
    deadline_ms: bytes | None = None
    """How long the caller waits, from the arrival on."""
    traceparent: str = ""
    tracestate: str = ""
    path: str = ""
    arrived: float = field(default_factory=time.perf_counter)

    def deadline(self) -> float | None:
        """When the caller gives up, by `time.perf_counter`. Raises BadRequest for a deadline that is no number."""
        if self.deadline_ms is None:
            return None
        if not self.deadline_ms.isdigit() or len(self.deadline_ms) > 9:
            said = self.deadline_ms.decode("latin-1")
            raise BadRequest(400, DEADLINE.decode(), said, "milliseconds from now, a whole number")
        return self.arrived + int(self.deadline_ms) / 1000


NOBODY = Caller()
"""Of whom a transport knows nothing."""


def caller_of(headers: Mapping[bytes, bytes], path: str) -> Caller:
    """The caller of an HTTP request; its header names are in lower case. An id it does not bring is made up."""
    given = headers.get(REQUEST_ID, b"")
    return Caller(
        given.decode() if _ID.fullmatch(given) else uuid.uuid4().hex,
        headers.get(DEADLINE),
        headers.get(b"traceparent", b"").decode("latin-1"),
        headers.get(b"tracestate", b"").decode("latin-1"),
        path,
    )
