"""How a task is served: its sections of the task file, and the rule that chooses between the two ways there are."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from contracts.duration import Duration

Mode = Literal["online", "batch"]
StandIn = Literal["last_good", "default", "refuse"]
"""What answers for a view while the online store does not."""
ONLINE_BELOW_MS = 100.0
"""A p99 budget below this needs a compiled model that answers the request itself."""


class Section(BaseModel):
    """A part of a task file: frozen, nothing unknown, every field with a sentence of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Serving(Section):
    """What an application may ask for."""

    mode: Literal["auto", "online", "batch"] = "auto"
    """"auto" leaves it to the budget; "online" computes an answer when it is asked for, "batch" reads it."""
    max_rows: int = Field(default=1000, ge=1)
    """Cases in one request; more is refused."""
    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    """Of one request; more is refused."""
    max_in_flight: int = Field(default=256, ge=1)
    """Requests of the task under way at once in a replica; more are told to come back (503). Of all tasks, 512."""
    refuse_unknown: tuple[str, ...] = ()
    """Keys that must exist in the online store; values of the others may be new, their features are then null. Of a
    batch task only null is refused: what no job has predicted is answered with the fallback."""
    log: Literal["durable", "async"] = "durable"
    """"durable" answers what is on disk; "async" answers first, and counts what a killed process or a full disk then
    takes with it as lost. A request that brings its own id is durable either way."""
    log_keep: Duration | None = None
    """Compacted segments whose newest answer is older than this, reckoned from the log's newest, are removed; kept for
    good when not given."""


class Batch(Section):
    """Precomputed predictions, of a task that is served so."""

    every: Duration = timedelta(hours=1)
    """How often the job is run; `skewless run` keeps to it, a scheduler of your own should."""
    horizon: Duration = timedelta(hours=3)
    """A job predicts the cases that will be asked about within this time; more than `every` bears a missed job."""
    good_for: Duration = timedelta(hours=3)
    """Age beyond which a prediction is not answered any more; the TTL of its feature view."""
    ray_from_rows: int = Field(default=500_000, ge=1)
    """Cases from which Ray Data shares the scoring out over processes; fewer are done before Ray would have begun."""


class Degradation(Section):
    """What is answered while the online store does not answer. Nothing of it happens unless it is declared here, and
    every answer it touched says so."""

    otherwise: StandIn = "refuse"
    """For the views that `views` does not name."""
    views: dict[str, StandIn] = {}
    """Per view: "last_good" takes the row that was read last for the key, "default" what a key never seen has, or
    `defaults`; "refuse", or a key without a last row, leaves the case without a vector. A batch task's one view is
    called NAME_predictions."""
    defaults: dict[str, dict[str, float | str]] = {}
    """Per view with "default", values by feature; those of a key never seen (null, a count of zero) where none is
    named."""
    last_good_for: Duration = timedelta(hours=1)
    """How long after it was read a row may stand in. Its view's TTL holds besides."""
    fallback: bool = False
    """Whether a case without a vector is answered with the bundle's fallback; its request is refused otherwise."""
    read_timeout: Duration = timedelta(seconds=1)
    """What the store has to answer in; its own `socket_timeout`, where it names one, comes first."""
    breaker_failures: int = Field(default=5, ge=1)
    """Reads failed in a row after which the store is not asked for a while."""
    breaker_rest: Duration = timedelta(seconds=1)
    """That while; then one read tries, alone."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for view in self.defaults:
            if self.of(view) != "default":
                raise ValueError(f"degradation.defaults names {view!r}, whose stand-in is {self.of(view)!r}")
        return self

    def of(self, view: str) -> StandIn:
        """A view's stand-in."""
        return self.views.get(view, self.otherwise)


def serving_mode(mode: str, p99_ms: float) -> tuple[Mode, str]:
    """How a task with this `serving.mode` and `budget.p99_ms` is served, and why."""
    if mode == "online":
        return "online", "serving.mode names it"
    if mode == "batch":
        return "batch", "serving.mode names it"
    if p99_ms < ONLINE_BELOW_MS:
        return "online", f"budget p99 {p99_ms:g} ms is below {ONLINE_BELOW_MS:g} ms"
    return "batch", f"budget p99 {p99_ms:g} ms leaves time to read a precomputed prediction"
