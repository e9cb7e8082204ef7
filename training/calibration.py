"""Margins to probabilities: a sigmoid fitted on validation rows, which also goes into the model's graph.

A sigmoid keeps the ranking (an isotonic step function would tie rows) and needs few rows. Source: Platt, 1999, with the
smoothed targets given there; fitted by Newton's method.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_STEPS = 100


@dataclass(frozen=True, slots=True)
class Calibration:
    """probability = sigmoid(slope * margin + offset)."""

    slope: float
    offset: float

    def apply(self, margins: np.ndarray) -> np.ndarray:
        """float64 [N], in (0, 1)."""
        return _sigmoid(self.slope * margins + self.offset)


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
    # Sums differ in the last bit between processors; the model's bytes must not.
    return Calibration(round(float(slope), 6), round(float(offset), 6))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    half = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + half), half / (1 + half))


def _loss(x: np.ndarray, target: np.ndarray) -> float:
    return float((np.logaddexp(0, x) - target * x).sum())
