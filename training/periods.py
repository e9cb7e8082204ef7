"""The primary metric through the holdout: does the model hold, or fade as its training gets older?

A stretch is a week, or a day where the holdout is shorter than two weeks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from asof.clockwork import to_micros
from contracts.task import Task
from training.answers import answered
from training.resampling import ALL, Estimate, Metric, Rows, estimate, point

_EPOCH_DAY = timedelta(days=1) // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Period:
    """One stretch of the holdout."""

    start: str
    """ISO 8601, UTC."""
    days: int
    rows: int
    metric: Estimate | None
    """The primary metric; None: inconclusive, fewer rows than `fairness.min_rows`, or one class only."""
    others: dict[str, float]
    """The primary metric of what the model is compared with, on the same rows."""


def by_period(
    task: Task,
    start: datetime,
    end: datetime,
    stamps: np.ndarray,
    labels: np.ndarray,
    answers: np.ndarray,
    others: Mapping[str, np.ndarray],
) -> tuple[Period, ...]:
    """Cut the holdout into stretches from its beginning; the last one may be shorter, an empty one is left out.

    Args:
        task: names the primary metric.
        start: of the holdout.
        end: of the holdout.
        stamps: int64 [N], microseconds since the epoch.
        labels: [N].
        answers: [N, k], the model's.
        others: by name the answers of what it is compared with, likewise.
    """
    days = 7 if end - start >= timedelta(days=14) else 1
    first = to_micros(start)
    number = (stamps - first) // (days * _EPOCH_DAY)
    found = []
    for at in np.unique(number):
        inside = number == at
        rows, label = int(inside.sum()), labels[inside]
        judged = rows >= task.fairness.min_rows and (task.kind != "binary" or label.min() < label.max())
        begins = (start + timedelta(days=int(at) * days)).isoformat()
        found.append(Period(begins, days, rows, *_measured(task, label, answers, others, inside, judged=judged)))
    return tuple(found)


def _measured(
    task: Task,
    labels: np.ndarray,
    answers: np.ndarray,
    others: Mapping[str, np.ndarray],
    inside: np.ndarray,
    *,
    judged: bool,
) -> tuple[Estimate | None, dict[str, float]]:
    if not judged:
        return None, {}
    name, own = task.success.metric, answers[inside]

    def of(rows: Rows, given: np.ndarray) -> Metric:
        return answered(task, labels[rows], given[rows]).metric(name)

    theirs = {other: point(of(ALL, each[inside]), len(labels)) for other, each in others.items()}
    return estimate(lambda rows: {"metric": of(rows, own)}, len(labels), task.training.seed)["metric"], theirs
