"""`skewless run`: the whole way once, from raw data to a served, watched and retrained model, in virtual time.

The task's first `training.window` of history trains a version; the days after it are lived through hour by hour:
features are materialized, requests are asked over HTTP, the version climbs from shadow to champion; then the log is
watched, a decision is taken, and a second version is trained on the latest window and handed to shadow.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow.compute as pc

from contracts.errors import SkewlessError
from contracts.spine import read_spine
from contracts.task import Task


class RunRefused(SkewlessError, RuntimeError):
    """A run that would harm what is there, or has too little to run on."""


@dataclass(frozen=True, slots=True)
class Period:
    """The instants a run is made of."""

    first: datetime
    """The first case of the spine, at midnight UTC."""
    cutoff: datetime
    """Training sees what was known here; serving starts here."""
    end: datetime
    """The last day served ends here; retraining sees what is known here."""


def plan_period(task: Task, days: int) -> Period:
    """Place the run: `training.window` of history, then `days` of serving.

    Raises:
        RunRefused: the spine is shorter than that.
    """
    far = datetime(9999, 1, 1, tzinfo=UTC)
    stamps = read_spine(task, start=datetime(1, 1, 2, tzinfo=UTC), end=far, known_at=far)[task.spine.event_timestamp]
    if not len(stamps):
        raise RunRefused(f"Task {task.name!r}: the spine has no rows.", hint="run `skewless ingest` first.")
    bounds = pc.min_max(stamps).as_py()
    first = bounds["min"].replace(hour=0, minute=0, second=0, microsecond=0)
    cutoff = first + task.training.window
    end = cutoff + timedelta(days=days)
    if end > bounds["max"]:
        raise RunRefused(
            f"Task {task.name!r}: the spine ends {bounds['max']:%F %H:%M}, a run needs cases until {end:%F %H:%M} "
            f"(training.window {task.training.window.days} days, then {days} days of serving).",
            hint="serve fewer days with --days, or shorten training.window.",
        )
    return Period(first, cutoff, end)
