"""Precomputed predictions: the batch job as a person or a scheduler runs it, and as a run repeats it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from contracts.clock import Clock, SystemClock, VirtualClock
from contracts.locations import Locations
from contracts.task import Task

if TYPE_CHECKING:
    from serving.batch import BatchReport, Predictor


def predict(
    locations: Locations, task: Task, engine: Engine, *, at: datetime | None, say: Callable[[str], None]
) -> BatchReport:
    """Predict the cases to come, from what is knowable at `at`: now, when it is None."""
    from serving.batch import Predictor

    clock: Clock = VirtualClock(at) if at is not None else SystemClock()
    return Predictor(task, locations, engine).run(clock.now(), known_at=clock.now, say=say)


class Jobs:
    """Runs a batch task's job whenever it is due, in virtual time; does nothing for a task that is served online."""

    def __init__(self, task: Task, locations: Locations, engine: Engine) -> None:
        self._task, self._locations, self._engine = task, locations, engine
        self._predictor: Predictor | None = None
        self._due: datetime | None = None
        self.rows = 0
        """Predictions made so far."""

    def at(self, now: datetime) -> None:
        """The clock has come to `now`."""
        if self._task.serving_mode[0] != "batch" or (self._due is not None and now < self._due):
            return
        if self._predictor is None:
            from serving.batch import Predictor

            self._predictor = Predictor(self._task, self._locations, self._engine)
        report = self._predictor.run(now, known_at=lambda: now)
        self.rows += sum(each.rows for each in report.versions)
        self._due = now + self._task.batch.every


def forget_predictions(task: Task, locations: Locations) -> None:
    """Remove what was precomputed in another time: it would stand in the way of what is to be written."""
    from serving.batch_view import forget

    if task.serving_mode[0] == "batch":
        forget(task, locations)
