"""Past, less past, least past: a time-ordered split in which nothing is fitted on a label that was not yet known.

The embargo is the label's own delay: a training row counts only if its label could be read when validation began, a
validation row only if its label could be read when the holdout began. That is exactly what a model trained at those
instants would have had.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from asof.clockwork import to_micros
from contracts.clock import as_utc
from contracts.errors import SkewlessError

_LEAST = {"train": 100, "validation": 50, "holdout": 2}
"""Fewer rows than this cannot be fitted, calibrated or ranked at all; whether they suffice is for the gates."""


class SplitError(SkewlessError, ValueError):
    """A part of the split has too few rows, or one class only."""


@dataclass(frozen=True, slots=True)
class Split:
    """Row positions of each part, in time order."""

    train: np.ndarray
    validation: np.ndarray
    holdout: np.ndarray
    bounds: dict[str, datetime]
    """`start`, `validation`, `holdout`, `cutoff`: where each part begins, and the end."""
    embargoed: dict[str, int]
    """Rows of `train` and `validation` whose label became known too late for their part."""

    def summary(self) -> dict[str, Any]:
        """Rows, embargoed rows and bounds as plain JSON."""
        rows = {name: len(getattr(self, name)) for name in ("train", "validation", "holdout")}
        bounds = {name: bound.isoformat() for name, bound in self.bounds.items()}
        return {"rows": rows, "embargoed": self.embargoed, "bounds": bounds}


def split_by_time(
    event_timestamps: np.ndarray,
    known_at: np.ndarray,
    labels: np.ndarray,
    *,
    cutoff: datetime,
    window: timedelta,
    validation: timedelta,
    holdout: timedelta,
) -> Split:
    """Holdout is the last stretch before the cutoff, validation the one before it, training the rest of the window.

    Args:
        event_timestamps: int64 [N], microseconds since the epoch.
        known_at: int64 [N], when each label could first be read, likewise.
        labels: int8 [N], 0 or 1.
        cutoff: end of the holdout, exclusive; a label known later than it is in no part.
        window: length of all three parts together.
        validation: length of the validation part.
        holdout: length of the holdout.

    Raises:
        SplitError: a part has too few rows or a single class.
    """
    cutoff = as_utc(cutoff)
    bounds = {
        "start": cutoff - window,
        "validation": cutoff - holdout - validation,
        "holdout": cutoff - holdout,
        "cutoff": cutoff,
    }
    at = {name: to_micros(bound) for name, bound in bounds.items()}
    parts, embargoed = {}, {}
    for name, begin, end in [
        ("train", "start", "validation"),
        ("validation", "validation", "holdout"),
        ("holdout", "holdout", "cutoff"),
    ]:
        inside = (event_timestamps >= at[begin]) & (event_timestamps < at[end])
        known = known_at <= at[end]
        parts[name] = np.flatnonzero(inside & known)
        embargoed[name] = int((inside & ~known).sum())
        _check(name, labels[parts[name]], bounds[begin], bounds[end], embargoed[name])
    del embargoed["holdout"]  # a label unknown at the cutoff is no row of the frame at all
    return Split(**parts, bounds=bounds, embargoed=embargoed)


def _check(name: str, labels: np.ndarray, begin: datetime, end: datetime, embargoed: int) -> None:
    where = f"The {name} part, [{begin:%F %T}, {end:%F %T}) UTC,"
    if len(labels) < _LEAST[name]:
        raise SplitError(
            f"{where} has {len(labels)} labelled rows ({embargoed} more became known too late); "
            f"it needs {_LEAST[name]} at least.",
            hint="lengthen training.window, validation or holdout in the task, or move the cutoff.",
        )
    if labels.min() == labels.max():
        raise SplitError(
            f"{where} has only the label {labels[0]} in all of its {len(labels)} rows.",
            hint="lengthen that part in the task, or check the label in the spine query.",
        )
