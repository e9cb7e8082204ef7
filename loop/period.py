"""When a run trains and how long it serves: as long as its release is expected to take, and two days more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from contracts.duration import show_duration
from contracts.errors import SkewlessError
from contracts.spine import labels_known, read_spine
from contracts.task import Task
from loop.climb import AGAIN, DRILL_PATIENCE, DRILL_ROWS
from monitoring.maturity import usual_wait
from monitoring.usual import estimated_metric

SHADOWED = timedelta(hours=6)
"""How long the retrained version is mirrored before the run ends."""
WATCHED = timedelta(days=2)
"""How long the first version is champion, at least, before it is monitored and made again."""
_BEGINNING, _FAR = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_RECENT = timedelta(days=28)
"""The cases before the cutoff by which traffic is expected."""


class RunRefused(SkewlessError, RuntimeError):
    """Too little history to run on."""


@dataclass(frozen=True, slots=True)
class Period:
    """The instants a run is made of."""

    cutoff: datetime
    """Training sees what was known here; serving starts here."""
    end: datetime
    """Monitoring and retraining see what is known here."""
    told: str
    """How long the release is expected to take."""

    @property
    def last(self) -> datetime:
        """The retrained version has been mirrored until here."""
        return self.end + SHADOWED


def plan_period(task: Task, days: int | None) -> Period:
    """Place the run: `training.window` of history from the first case on, then days of serving.

    Args:
        task: the policy.
        days: of serving; None is as many as the release is expected to take, and `WATCHED`.

    Raises:
        RunRefused: the spine is shorter than that.
    """
    stamps = read_spine(task, start=_BEGINNING, end=_FAR, known_at=_BEGINNING)[task.spine.event_timestamp]
    if not len(stamps):
        raise RunRefused(f"Task {task.name!r}: the spine has no rows.", hint="check the spine query and its tables.")
    bounds = pc.min_max(stamps).as_py()
    cutoff = bounds["min"].replace(hour=0, minute=0, second=0, microsecond=0) + task.training.window
    climb = expected_climb(task, cutoff)
    needed = math.ceil((climb + WATCHED) / _DAY)
    told = f"a release is expected to take {climb / _DAY:.1f} days"
    if days is not None and days * _DAY < climb:
        told += f": {days} of serving are too few for a champion, {needed} would do"
    served = needed if days is None else days
    period = Period(cutoff, cutoff + served * _DAY, told)
    if period.last > bounds["max"]:
        chosen = f", as many as its release needs ({told})" if days is None else ""
        raise RunRefused(
            f"Task {task.name!r}: the spine ends {bounds['max']:%F %H:%M}, a run needs cases until "
            f"{period.last:%F %H:%M} (training.window of {show_duration(task.training.window)}, then {served} of "
            f"serving{chosen}).",
            hint="serve fewer days with --days, or shorten training.window.",
        )
    return period


def expected_climb(task: Task, cutoff: datetime) -> timedelta:
    """How long a version that passes every check takes from shadow to champion, at the traffic before `cutoff`.

    A stage takes its bake, or the time its least samples take to come, whichever is longer, and is then judged at the
    next look. No canary step ends before performance can be judged: on an estimate as soon as `monitoring.min_rows`
    rows were scored, on outcomes as soon as that many are due. The rollback drill comes before all of it.
    """
    since = cutoff - min(_RECENT, task.training.window)
    stamps = read_spine(task, start=since, end=cutoff, known_at=cutoff)[task.spine.event_timestamp]
    if not len(stamps):
        return _DAY * 0
    span = cutoff - since
    a_case = span / len(stamps)
    hours = len(pc.unique(stamps.cast(pa.int64()).to_numpy() // (_HOUR // timedelta(microseconds=1))))
    plenty = len(stamps) / hours >= DRILL_ROWS
    drill = (1 if plenty else DRILL_PATIENCE) * span / hours
    ladder = task.rollout
    judged = a_case * task.monitoring.min_rows
    if estimated_metric(task.success.metric) != task.success.metric:
        judged += usual_wait(labels_known(task, start=since, end=cutoff, known_at=cutoff)) or timedelta()
    spent = max(ladder.shadow_bake, a_case * ladder.shadow_samples)
    for share in ladder.canary_steps:
        step = max(ladder.canary_bake, a_case * ladder.canary_samples / share)
        spent = max(spent + step, judged)
    return drill + _looks(spent, 1 + len(ladder.canary_steps))


def _looks(spent: timedelta, stages: int) -> timedelta:
    """With the wait for the next look at each stage, of half the time between two on average."""
    return spent + stages * AGAIN / 2
