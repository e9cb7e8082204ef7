"""Metrics of a binary score, each a weighted sum over cases, so that a resample of them costs a pass.

Grain: N = one case, B = one resample.
"""

from __future__ import annotations

import numpy as np

from training.resampling import Metric

BINS = 10
"""Of calibration, each of about equally many cases."""
_LEAST_PROBABILITY = 1e-7


class Ranked:
    """Labels and scores sorted once, so that each resample costs a pass over them.

    Args:
        labels: [N], 0 or 1.
        scores: [N], in [0, 1].
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray) -> None:
        self._order = np.argsort(scores, kind="stable")
        self._label = labels[self._order].astype(np.float64)
        self._score = scores[self._order].astype(np.float64)
        self._ties = np.flatnonzero(np.r_[True, np.diff(self._score) > 0])
        edges = np.unique(np.searchsorted(self._ties, np.linspace(0, len(labels), BINS + 1)[:-1], side="right") - 1)
        self._bins = self._ties[edges]

    names = ("roc_auc", "average_precision", "log_loss", "brier", "ece")

    def metric(self, name: str) -> Metric:
        """One of roc_auc, average_precision, log_loss, brier, ece."""
        found: Metric = getattr(self, f"_{name}")
        return found

    def reliability(self) -> list[tuple[int, float, float]]:
        """Of each bin of calibration, by rising score: cases, mean score, share of positives."""
        rows = np.diff(np.r_[self._bins, len(self._label)])
        means = [np.add.reduceat(each, self._bins) / rows for each in (self._score, self._label)]
        return [(int(count), float(score), float(share)) for count, score, share in zip(rows, *means, strict=True)]

    def _by_class(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Drawn positives and negatives [B, tie groups], by rising score."""
        drawn = counts[:, self._order]
        positives = np.add.reduceat(drawn * self._label, self._ties, axis=1)
        return positives, np.add.reduceat(drawn, self._ties, axis=1) - positives

    def _roc_auc(self, counts: np.ndarray) -> np.ndarray:
        positives, negatives = self._by_class(counts)
        below = np.cumsum(negatives, axis=1) - negatives
        won = (positives * (below + negatives / 2)).sum(axis=1)
        return _ratio(won, positives.sum(axis=1) * negatives.sum(axis=1))

    def _average_precision(self, counts: np.ndarray) -> np.ndarray:
        positives, negatives = (part[:, ::-1] for part in self._by_class(counts))
        hits = np.cumsum(positives, axis=1)
        flagged = hits + np.cumsum(negatives, axis=1)
        precision = np.divide(hits, flagged, out=np.zeros_like(hits), where=flagged > 0)
        return _ratio((precision * positives).sum(axis=1), positives.sum(axis=1))

    def _log_loss(self, counts: np.ndarray) -> np.ndarray:
        p = np.clip(self._score, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
        loss = -np.where(self._label > 0, np.log(p), np.log1p(-p))
        return (counts[:, self._order] * loss).sum(axis=1) / counts.sum(axis=1)

    def _brier(self, counts: np.ndarray) -> np.ndarray:
        return (counts[:, self._order] * (self._score - self._label) ** 2).sum(axis=1) / counts.sum(axis=1)

    def _ece(self, counts: np.ndarray) -> np.ndarray:
        """Expected calibration error over ten bins of about equally many cases; ties share a bin."""
        gaps = counts[:, self._order] * (self._score - self._label)
        return np.abs(np.add.reduceat(gaps, self._bins, axis=1)).sum(axis=1) / counts.sum(axis=1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def cost(labels: np.ndarray, acts: np.ndarray, *, false_alarm: float, missed: float) -> np.ndarray:
    """What each decision costs, [N]: `false_alarm` for acting on a 0, `missed` for not acting on a 1."""
    return np.where(acts, np.where(labels > 0, 0.0, false_alarm), np.where(labels > 0, missed, 0.0))


NEVER = 2.0
"""A threshold that no score reaches."""


def cheapest_threshold(labels: np.ndarray, scores: np.ndarray, *, false_alarm: float, missed: float) -> float:
    """The threshold of least total cost, "never act" among the choices; of equally cheap ones the highest."""
    order = np.argsort(-scores, kind="stable")
    label, score = labels[order].astype(np.float64), scores[order]
    last_of_tie = np.r_[np.diff(score) < 0, True]
    totals = missed * (label.sum() - np.cumsum(label)) + false_alarm * np.cumsum(1 - label)
    totals, choices = np.r_[missed * label.sum(), totals[last_of_tie]], np.r_[NEVER, score[last_of_tie]]
    return float(choices[np.argmin(totals)])
