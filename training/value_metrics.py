"""Metrics of predicted values and quantiles, as weighted sums over cases like those of a binary score.

Grain: N = one case, B = one resample, q = one quantile.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.resampling import Metric


class Errors:
    """Labels and answers, and every metric of them.

    Args:
        labels: [N], finite.
        answers: [N, 1 + q], the value and then the quantiles, in the label's unit.
        quantiles: q levels.
    """

    def __init__(self, labels: np.ndarray, answers: np.ndarray, quantiles: Sequence[float]) -> None:
        label, answer = labels.astype(np.float64), answers.astype(np.float64)
        error = answer[:, 0] - label
        self._each: dict[str, np.ndarray] = {"mae": np.abs(error), "rmse": error**2, "bias": error}
        if quantiles:
            below = label[:, None] - answer[:, 1:]
            losses = np.maximum(np.array(quantiles) * below, (np.array(quantiles) - 1) * below)
            self._each["pinball"] = losses.mean(axis=1)
            for at, level in enumerate(quantiles):
                self._each[coverage_name(level)] = (below[:, at] <= 0).astype(np.float64)
            for low, high in intervals(quantiles):
                inside = (below[:, quantiles.index(low)] >= 0) & (below[:, quantiles.index(high)] <= 0)
                self._each[interval_name(low, high)] = inside.astype(np.float64)
        self.names: tuple[str, ...] = tuple(self._each)

    def metric(self, name: str) -> Metric:
        """One of mae, rmse, bias; with quantiles also pinball (their mean), a coverage a level and one an interval.

        Coverage is the share of cases whose label is at or below the predicted quantile: its level, when all is well.
        An interval's is the share whose label is between two quantiles, both included.
        """
        each = self._each[name]

        def mean(counts: np.ndarray) -> np.ndarray:
            return counts @ each / counts.sum(axis=1)

        return (lambda counts: np.sqrt(mean(counts))) if name == "rmse" else mean


def coverage_name(level: float) -> str:
    """The metric that says how many labels lie at or below the quantile of that level: `coverage.0.9`."""
    return f"coverage.{level:g}"


def intervals(quantiles: Sequence[float]) -> list[tuple[float, float]]:
    """The intervals that levels make: the outermost two, the next two inside them, and so on."""
    return [(quantiles[at], quantiles[-1 - at]) for at in range(len(quantiles) // 2)]


def interval_name(low: float, high: float) -> str:
    """The metric that says how many labels lie between the quantiles of two levels: `interval.0.1-0.9`."""
    return f"interval.{low:g}-{high:g}"


def error_cost(labels: np.ndarray, values: np.ndarray, *, too_high: float, too_low: float) -> np.ndarray:
    """What each error costs, [N]: its size times the price of its side."""
    error = values.astype(np.float64) - labels
    return np.where(error > 0, too_high * error, -too_low * error)
