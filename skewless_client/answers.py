"""What comes back: predictions, or an error that says which of five things went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class ClientError(Exception):
    """No prediction. `request_id` names the request in the server's log, if it got there."""

    def __init__(self, message: str, *, request_id: str = "") -> None:
        super().__init__(message)
        self.request_id = request_id


class Refused(ClientError, ValueError):
    """The request is wrong, or not allowed; repeating it changes nothing. HTTP 4xx."""

    def __init__(self, message: str, *, request_id: str, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(message, request_id=request_id)
        self.status = status
        """HTTP status."""
        self.field: str = error.get("field", "")
        """Path of the field, such as `rows[2].origin`; empty for the request as a whole."""
        self.value: Any = error.get("value")
        """What was there."""
        self.expected: str = error.get("expected", "")
        """What should have been there."""


class ServerFailed(ClientError, RuntimeError):
    """The model or an on-demand view failed on this request; it would again. HTTP 500."""


class Unavailable(ClientError, ConnectionError):
    """The server is overloaded, not ready or not there, at each attempt; or its certificate is not to be trusted."""

    def __init__(self, message: str, *, request_id: str, attempts: int, retry_after: float | None) -> None:
        super().__init__(message, request_id=request_id)
        self.attempts = attempts
        """How often it was asked."""
        self.retry_after = retry_after
        """Seconds after which the server wants to be asked again, if it said so."""


class TimedOut(ClientError, TimeoutError):
    """The time given for the call is over. Asking again under the same `request_id` counts nothing twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One row's answer."""

    case_id: str | None
    """What the request called the case."""
    version: int
    """Of the model; 0 is the naive baseline."""
    variant: str
    """`champion` or `canary`."""
    score: float | None = None
    """A binary task's probability."""
    decision: int | None = None
    """A binary task's 0 or 1 at the version's threshold."""
    value: float | None = None
    """A regression's prediction."""
    quantiles: Mapping[str, float] = field(default_factory=dict)
    """A regression's quantiles by level, such as "0.9"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to one request, its predictions in the order of the rows."""

    request_id: str
    """Names it in the prediction log."""
    task: str
    predictions: tuple[Prediction, ...]
    degraded: tuple[str, ...]
    """Why an answer is less than it should be, such as `rows[0]: fallback: …`; empty when nothing is."""

    @property
    def repeated(self) -> bool:
        """Whether an earlier request of the same id was answered, and this is its answer."""
        return "repeated" in self.degraded


_KNOWN = frozenset(("score", "decision", "value", "quantiles", "version", "variant"))


def parsed(content: Mapping[str, Any]) -> Answer:
    """An answer's JSON as an Answer. Raises KeyError or TypeError when it is something else."""
    return Answer(
        request_id=content["request_id"],
        task=content["task"],
        predictions=tuple(_prediction(row) for row in content["predictions"]),
        degraded=tuple(content["degraded"]),
    )


def _prediction(row: Mapping[str, Any]) -> Prediction:
    case = next((value for name, value in row.items() if name not in _KNOWN), None)  # under the task's own name for it
    return Prediction(case_id=case, **{name: value for name, value in row.items() if name in _KNOWN})
