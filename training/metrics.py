"""Metrics of a binary score with bootstrap intervals, all resamples at once.

Grain: N = one case, B = one resample; a resample is a row of counts, how often each case was drawn, so every metric is
a weighted sum and two models are compared on the very same draws. Cases are drawn one by one, as if independent, unless
the caller says which belong together (those of one day, say): only then does an interval say how much days differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

_CELLS = 4_000_000
"""Largest resamples-times-cases block in memory at once."""
BINS = 10
"""Of calibration, each of about equally many cases."""
_LEAST_PROBABILITY = 1e-7


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


Metric = Callable[[np.ndarray], np.ndarray]
"""Counts [B, N] to values [B]."""


def draws(cases: int, seed: int, together: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Blocks of counts [B, N]; the first row of the first block is every case once, for the value itself.

    300 resamples, fewer (100 at least) from 100,000 cases on, where intervals are narrow and memory is not.

    Args:
        cases: N.
        seed: of the draws.
        together: int [N], a number from 0 on for each case; cases of one number are drawn together or not at all.
    """
    rng = np.random.default_rng(seed)
    units = cases if together is None else int(together.max(initial=-1)) + 1
    left = int(np.clip(30_000_000 // max(cases, 1), 100, 300))
    yield np.ones((1, cases))
    while left:
        block = min(left, max(1, _CELLS // max(cases, 1)))
        drawn = rng.integers(0, units, (block, units)) + np.arange(block)[:, None] * units
        counts = np.bincount(drawn.ravel(), minlength=block * units).reshape(block, units).astype(np.float64)
        yield counts if together is None else counts[:, together]
        left -= block


def estimate(
    metrics: dict[str, Metric], cases: int, seed: int, together: np.ndarray | None = None
) -> dict[str, Estimate]:
    """Every metric on the same draws. A draw on which one is undefined (a single class) is left out of its interval."""
    values: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    for counts in draws(cases, seed, together):
        for name, metric in metrics.items():
            values[name].append(metric(counts))
    return {name: _interval(np.concatenate(found)) for name, found in values.items()}


def point(metric: Metric, cases: int) -> float:
    """A metric of the cases as they are, each once."""
    return float(metric(np.ones((1, cases)))[0])


def _interval(values: np.ndarray) -> Estimate:
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    return Estimate(float(values[0]), float(low), float(high))


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
