"""From a learner's raw outputs to what is answered: heads fitted on validation rows, which also go into the graph.

A binary task's margin becomes a probability by a sigmoid: it keeps the ranking (an isotonic step function would tie
rows) and needs few rows. Source: Platt, 1999, with the smoothed targets given there; fitted by Newton's method.

A regression's quantiles are each moved by one number, so that on the validation rows as many outcomes lie at or below
them as their level says, and are then put in order. Source: conformalized quantile regression, Romano, Patterson and
Candes, 2019, one side at a time; rearrangement, Chernozhukov, Fernandez-Val and Galichon, 2010.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_STEPS = 100
_DIGITS = 6
"""Sums differ in the last bit between processors; the model's bytes must not."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """probability = sigmoid(slope * margin + offset)."""

    slope: float
    offset: float

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """float64 of the same shape, in (0, 1)."""
        return _sigmoid(self.slope * raw + self.offset)


@dataclass(frozen=True, slots=True)
class Shifts:
    """Each output moved by its own number; then the quantiles, which are all but the first, in order."""

    offsets: tuple[float, ...]
    """One an output, in the label's unit; the value's own is 0."""

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """float64 [N, k], the quantiles rising."""
        moved = raw + np.array(self.offsets)
        return np.column_stack([moved[:, :1], np.sort(moved[:, 1:], axis=1)])


Head = Calibration | Shifts
"""The last step of a model, one kind a kind of task: `apply` maps the learner's raw [N, k] to what is answered."""


def fit_shifts(raw: np.ndarray, labels: np.ndarray, quantiles: Sequence[float]) -> Shifts:
    """The numbers that give each quantile its level on these rows.

    Args:
        raw: float64 [N, 1 + q].
        labels: [N].
        quantiles: q levels.
    """
    missed = labels[:, None] - raw[:, 1:]
    offsets = [float(np.quantile(missed[:, at], level)) for at, level in enumerate(quantiles)]
    return Shifts((0.0, *(round(offset, _DIGITS) for offset in offsets)))


def fit_calibration(margins: np.ndarray, labels: np.ndarray) -> Calibration:
    """The sigmoid of least log loss on these rows; the plain one where a fit would turn the ranking round.

    Args:
        margins: float64 [N], the learner's raw scores.
        labels: [N], 0 or 1, both present.
    """
    positives = float(labels.sum())
    negatives = len(labels) - positives
    target = np.where(labels > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    slope, offset = 1.0, 0.0
    loss = _loss(slope * margins + offset, target)
    for _ in range(_STEPS):
        p = _sigmoid(slope * margins + offset)
        gradient = np.array([(p - target) @ margins, (p - target).sum()])
        weight = p * (1 - p)
        cross = weight @ margins
        curvature = np.array([[weight @ margins**2, cross], [cross, weight.sum()]]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        for _ in range(40):  # halve until it goes downhill: a full Newton step may overshoot on separable rows
            tried = _loss((slope - step[0]) * margins + (offset - step[1]), target)
            if tried <= loss:
                break
            step = step / 2
        slope, offset, gained, loss = slope - step[0], offset - step[1], loss - tried, tried
        if gained < 1e-12 * len(labels):
            break
    if slope <= 0:
        return Calibration(1.0, 0.0)
    return Calibration(round(float(slope), _DIGITS), round(float(offset), _DIGITS))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    half = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + half), half / (1 + half))


def _loss(x: np.ndarray, target: np.ndarray) -> float:
    return float((np.logaddexp(0, x) - target * x).sum())
