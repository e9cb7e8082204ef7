"""Where every transport brings a question: to which task, whether there is room, and what a failure is called."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from contracts.errors import SkewlessError
from serving.admission import Admission, TooLate, in_time
from serving.answers import Answer
from serving.caller import NOBODY, Caller
from serving.log_writer import LogUnavailable, Overloaded
from serving.logs import request_id
from serving.metrics import Metrics
from serving.requests import BadRequest
from serving.service import FeaturesUnavailable, NotDeployed, PredictionService
from serving.tracing import Tracing

_log = logging.getLogger(__name__)
_RETRY_SECONDS: dict[type[Exception], int] = {Overloaded: 1, LogUnavailable: 5, FeaturesUnavailable: 1, NotDeployed: 5}
_UNKNOWN = "(unknown)"  # one label for all names that are no task's, or anybody could make a million

Content = bytes | Mapping[str, Any]
"""A question: the JSON of a native request, or what that JSON would hold."""


class Disconnected(Exception):
    """The caller went away before the question was whole; nobody waits for an answer."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a question: an answer, or an error that says why there is none."""

    status: int
    """In HTTP's words, whatever the transport."""
    label: str
    """The task, for metrics."""
    began: float
    """When the whole question was there, by `time.perf_counter`."""
    service: PredictionService | None = None
    answer: Answer | None = None
    error: Exception | None = None
    retry_seconds: int | None = None
    """When it is worth asking again."""
    caller: Caller = NOBODY

    @property
    def message(self) -> str:
        """The error in one sentence."""
        error = self.error
        return error.fact if isinstance(error, SkewlessError) else f"{type(error).__name__}: {error}"


class Front:
    """Asks the services for the transports.

    Args:
        services: by task name.
        metrics: where to count.
        admission: how many questions may be under way; more are refused with 503.
        tracing: where spans go; nowhere when None.
    """

    def __init__(
        self,
        services: Mapping[str, PredictionService],
        metrics: Metrics,
        admission: Admission,
        tracing: Tracing | None = None,
    ) -> None:
        self.services = services
        self.admission = admission
        self._metrics = metrics
        self._tracing = tracing

    def service(self, task: str) -> PredictionService:
        """A task's service. Raises BadRequest (404) when there is none of that name."""
        found = self.services.get(task)
        if found is None:
            raise BadRequest(404, "task", task, f"one of {', '.join(self.services) or 'none'}")
        return found

    async def ask(
        self, task: str, read: Callable[[PredictionService], Awaitable[Content]], caller: Caller = NOBODY
    ) -> Outcome:
        """Put a question; whatever goes wrong is in the outcome.

        Args:
            task: a task's name, as the caller wrote it.
            read: gives the question, or raises BadRequest.
            caller: who asks.

        Raises:
            Disconnected: `read` found nobody there any more.
        """
        service = self.services.get(task)
        label = _UNKNOWN if service is None else task
        began = time.perf_counter()
        request_id.set(caller.id)
        try:
            service = self.service(task)
            deadline = caller.deadline()
            content = await read(service)
            began = time.perf_counter()
            in_time(deadline)
            self.admission.enter(task)
            try:
                answer = await service.predict(content, deadline)
            finally:
                self.admission.leave(task)
        except Disconnected:
            raise
        except Exception as error:
            return self.failed(label, error, began, caller)
        return Outcome(200, label, began, service, answer, caller=caller)

    def done(self, outcome: Outcome) -> None:
        """Count a question whose outcome was told, and let the shadow have its part."""
        if outcome.answer is not None and outcome.service is not None:
            outcome.service.finish(outcome.answer)
            self._metrics.seconds.labels(outcome.label).observe(time.perf_counter() - outcome.began)
        self._metrics.requests.labels(outcome.label, outcome.status).inc()
        if outcome.status != 200:
            _log.log(
                logging.ERROR if outcome.status >= 500 else logging.INFO,
                "request not answered",
                extra={"task": outcome.label, "status": outcome.status, "why": _why(outcome), **_of(outcome.caller)},
            )
        if self._tracing is not None:
            stages = outcome.answer.stages if outcome.answer is not None else ()
            self._tracing.record(outcome.caller, outcome.label, outcome.status, outcome.began, stages)

    def failed(self, label: str, error: Exception, began: float = 0.0, caller: Caller = NOBODY) -> Outcome:
        """The outcome of a question, or of any other request, that ended in an error."""
        if isinstance(error, BadRequest):
            return Outcome(error.status, label, began, error=error, caller=caller)
        if isinstance(error, TooLate):
            return Outcome(504, label, began, error=error, caller=caller)
        if not isinstance(error, SkewlessError):
            _log.exception("a request failed", exc_info=error)
        seconds = _RETRY_SECONDS.get(type(error))
        return Outcome(500 if seconds is None else 503, label, began, error=error, retry_seconds=seconds, caller=caller)


def _why(outcome: Outcome) -> str:
    """The error without what the request held: a log is read by others than its caller."""
    error = outcome.error
    return f"{error.field or 'body'}: expected {error.expected}" if isinstance(error, BadRequest) else outcome.message


def _of(caller: Caller) -> dict[str, str]:
    return {"request_id": caller.id, "path": caller.path[:200]} if caller is not NOBODY else {}
