"""What stands behind single figures: curves over thresholds, reliability, predictions beside outcomes, coverage.

Made for plots and tables; the figures that gates judge are `training.metrics`' own. Grain: N = one case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.metrics import NEVER, Ranked, cheapest_threshold
from training.resampling import Estimate
from training.value_metrics import interval_name, intervals

_POINTS = 100
"""A curve has about so many."""
_VALUE_BINS = 20
_SHOWN = 400
"""Cases drawn for a scatter plot."""
_Z = 1.96


@dataclass(frozen=True, slots=True)
class Calibrated:
    """One bin of a reliability table; bins hold about equally many cases, equal scores share one."""

    rows: int
    predicted: float
    """Mean score."""
    observed: float
    """Share of positives."""
    low: float
    """95 % interval of the share. Source: Wilson, 1927."""
    high: float


@dataclass(frozen=True, slots=True)
class CostPoint:
    """What a case costs where the model acts from a score on."""

    threshold: float
    validation: float
    holdout: float


@dataclass(frozen=True, slots=True)
class Costs:
    """Cost by threshold. The one in use was chosen on the validation rows; the holdout has no say in it."""

    points: tuple[CostPoint, ...]
    """By rising threshold; the last one is never to act."""
    hindsight_threshold: float
    """What would have been cheapest on the holdout, to see what choosing beforehand has cost."""
    hindsight_cost: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well positives come before negatives, at every threshold."""

    roc: tuple[tuple[float, float], ...]
    """False positive rate and true positive rate."""
    precision_recall: tuple[tuple[float, float], ...]
    """Recall and precision."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """Cases whose predicted values are alike, and what came of them; bins hold about equally many."""

    rows: int
    predicted: float
    observed: float
    """Mean outcome."""
    low: float
    """Tenth of the outcomes at or below."""
    high: float
    """Tenth of the outcomes above."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A predicted interval: what share of outcomes it says it holds, and what it does hold."""

    low: float
    high: float
    nominal: float
    found: Estimate
    width: float
    """Mean, in the label's unit."""


def reliability(ranked: Ranked) -> tuple[Calibrated, ...]:
    """Predicted and observed rates by bin of the score."""
    return tuple(
        Calibrated(rows, predicted, observed, *_wilson(observed, rows))
        for rows, predicted, observed in ranked.reliability()
    )


def _wilson(share: float, rows: int) -> tuple[float, float]:
    middle = share + _Z**2 / (2 * rows)
    reach = _Z * float(np.sqrt(share * (1 - share) / rows + _Z**2 / (4 * rows**2)))
    return (middle - reach) / (1 + _Z**2 / rows), (middle + reach) / (1 + _Z**2 / rows)


def ranking(labels: np.ndarray, scores: np.ndarray) -> Ranking:
    """The ROC and precision-recall curves, thinned to points evenly along each.

    Args:
        labels: [N], 0 or 1, both present.
        scores: [N].
    """
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.r_[np.diff(scores[order]) < 0, True]
    hits = np.cumsum(labels[order].astype(np.float64))[last_of_tie]
    flagged = (np.arange(len(labels)) + 1.0)[last_of_tie]
    recall, alarms = hits / hits[-1], (flagged - hits) / (flagged[-1] - hits[-1])
    corner = np.zeros(1)
    return Ranking(
        roc=_thinned(np.r_[corner, alarms], np.r_[corner, recall], by=np.r_[corner, alarms + recall]),
        precision_recall=_thinned(recall, hits / flagged, by=recall),
    )


def _thinned(x: np.ndarray, y: np.ndarray, *, by: np.ndarray) -> tuple[tuple[float, float], ...]:
    wanted = np.searchsorted(by, np.linspace(by[0], by[-1], _POINTS + 1))
    kept = np.unique(np.r_[0, np.clip(wanted, 0, len(by) - 1), len(by) - 1])
    return tuple((float(x[at]), float(y[at])) for at in kept)


def cost_curve(
    validation: tuple[np.ndarray, np.ndarray],
    holdout: tuple[np.ndarray, np.ndarray],
    *,
    false_alarm: float,
    missed: float,
) -> Costs:
    """Mean cost a case over thresholds, on the rows the threshold is chosen on and on the holdout.

    Args:
        validation: labels [N] and scores [N] of the validation rows.
        holdout: likewise of the holdout rows.
        false_alarm: price of acting on a 0.
        missed: price of not acting on a 1.
    """
    inner = np.unique(np.quantile(validation[1].astype(np.float64), np.linspace(0, 1, _POINTS + 1)))
    thresholds = np.r_[0.0, inner[inner > 0], NEVER]

    def costs(part: tuple[np.ndarray, np.ndarray], at: np.ndarray) -> np.ndarray:
        return _cost_by_threshold(*part, at, false_alarm=false_alarm, missed=missed)

    best = cheapest_threshold(*holdout, false_alarm=false_alarm, missed=missed)
    return Costs(
        tuple(
            CostPoint(*map(float, each))
            for each in zip(thresholds, costs(validation, thresholds), costs(holdout, thresholds), strict=True)
        ),
        best,
        float(costs(holdout, np.array([best]))[0]),
    )


def _cost_by_threshold(
    labels: np.ndarray, scores: np.ndarray, thresholds: np.ndarray, *, false_alarm: float, missed: float
) -> np.ndarray:
    wide = scores.astype(np.float64)
    ups, downs = np.sort(wide[labels > 0]), np.sort(wide[labels == 0])
    misses = np.searchsorted(ups, thresholds, side="left")
    alarms = len(downs) - np.searchsorted(downs, thresholds, side="left")
    costs: np.ndarray = (missed * misses + false_alarm * alarms) / len(labels)
    return costs


def predicted_and_observed(labels: np.ndarray, values: np.ndarray) -> tuple[Predicted, ...]:
    """Outcomes by bin of the predicted value, bins of about equally many cases by rising value."""
    order = np.argsort(values, kind="stable")
    parts = [part for part in np.array_split(order, _VALUE_BINS) if len(part)]
    return tuple(
        Predicted(
            len(part),
            float(values[part].mean()),
            float(labels[part].mean()),
            *(float(each) for each in np.quantile(labels[part], [0.1, 0.9])),
        )
        for part in parts
    )


def shown_cases(labels: np.ndarray, values: np.ndarray, seed: int) -> tuple[tuple[float, float], ...]:
    """Predicted value and outcome of some cases, drawn by the seed."""
    drawn = np.random.default_rng(seed).permutation(len(labels))[:_SHOWN]
    return tuple((float(values[at]), float(labels[at])) for at in np.sort(drawn))


def coverage(answers: np.ndarray, quantiles: Sequence[float], metrics: dict[str, Estimate]) -> tuple[Interval, ...]:
    """Each interval that the quantiles make.

    Args:
        answers: [N, 1 + q], the value and then the quantiles.
        quantiles: q levels.
        metrics: with each interval's share of outcomes, by its name.
    """
    return tuple(
        Interval(
            low,
            high,
            round(high - low, 9),
            metrics[interval_name(low, high)],
            float((answers[:, 1 + quantiles.index(high)] - answers[:, 1 + quantiles.index(low)]).mean()),
        )
        for low, high in intervals(quantiles)
    )
