"""Metrics with bootstrap intervals, all resamples at once: over whole days where a holdout has enough of them.

Grain: N = one case, B = one resample; a resample is a row of counts, how often each case was drawn, so every metric is
a weighted sum and two models are compared on the very same draws.

Cases of one day share their weather, their news, their outage: drawn one by one, as if independent, they give intervals
that are too narrow. So days are drawn whole. With few days a bootstrap itself is too narrow, as the mean of few values
is; the percentiles taken are therefore those of Student's t (the expanded percentile interval; Hesterberg, 2015). Of
fewer than `LEAST_DAYS` days nothing can be said about how much days differ: cases are then drawn one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEAST_DAYS = 10
"""Days from which on days are drawn, not cases."""
MOST_CASES = 100_000
"""An interval is found on a sample of so many cases where there are more."""
RESAMPLES = 300
_CELLS = 4_000_000
"""Largest resamples-times-cases block in memory at once."""
_OUTSIDE = 0.025
"""Share of resamples on either side of an interval."""
_DAY = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


Metric = Callable[[np.ndarray], np.ndarray]
"""Counts [B, N] to values [B]."""
Rows = np.ndarray | slice
"""Which cases: their positions, or all."""
ALL = slice(None)


def estimate(
    metrics: Callable[[Rows], Mapping[str, Metric]], cases: int, seed: int, stamps: np.ndarray | None = None
) -> dict[str, Estimate]:
    """Every metric on the same draws. A draw on which one is undefined (a single class) is left out of its interval.

    Values are of all cases. Where there are more than `MOST_CASES`, the interval is of a sample: of cases drawn one by
    one it is narrowed to the size of the whole; of days drawn whole it is left as it is, somewhat too wide.

    Args:
        metrics: those of some of the cases, by name.
        cases: N.
        seed: of the draws.
        stamps: int64 [N], when each was asked about, in microseconds; None draws cases one by one.
    """
    whole, chosen, few = metrics(ALL), np.arange(cases), cases <= MOST_CASES
    if not few:
        chosen = np.sort(np.random.default_rng(seed).choice(cases, MOST_CASES, replace=False))
    days = None if stamps is None or days_drawn(stamps) == 0 else days_of(stamps[chosen])
    drawn = whole if few else metrics(chosen)
    values: dict[str, list[np.ndarray]] = {name: [] for name in drawn}
    for counts in draws(len(chosen), seed, days):
        for name, metric in drawn.items():
            values[name].append(metric(counts))
    outside = _OUTSIDE if days is None else _expanded(int(days.max()) + 1)
    narrowed = np.sqrt(len(chosen) / cases) if cases and days is None else 1.0
    found = {}
    for name, each in values.items():
        sampled = np.concatenate(each)
        value = float(sampled[0]) if few else point(whole[name], cases)
        low, high = _interval(sampled[1:], outside)
        if not few:
            low, high = (value + narrowed * (bound - sampled[0]) for bound in (low, high))
        found[name] = Estimate(value, float(low), float(high))
    return found


def point(metric: Metric, cases: int) -> float:
    """A metric of the cases as they are, each once."""
    return float(metric(np.ones((1, cases)))[0])


def draws(cases: int, seed: int, together: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Blocks of counts [B, N]; the first row of the first block is every case once, for the value itself.

    Args:
        cases: N.
        seed: of the draws.
        together: int [N], a number from 0 on for each case; cases of one number are drawn together or not at all.
    """
    rng = np.random.default_rng(seed)
    units = cases if together is None else int(together.max(initial=-1)) + 1
    left = RESAMPLES
    yield np.ones((1, cases))
    while left:
        block = min(left, max(1, _CELLS // max(cases, 1)))
        drawn = rng.integers(0, units, (block, units)) + np.arange(block)[:, None] * units
        counts = np.bincount(drawn.ravel(), minlength=block * units).reshape(block, units).astype(np.float64)
        yield counts if together is None else counts[:, together]
        left -= block


def days_drawn(stamps: np.ndarray) -> int:
    """How many whole days (UTC) are drawn of cases with these instants; 0 where they are too few and cases are."""
    days = len(np.unique(stamps // _DAY))
    return days if days >= LEAST_DAYS else 0


def days_of(stamps: np.ndarray) -> np.ndarray:
    """int64 [N], a number from 0 on for the day (UTC) of each instant in microseconds, none of them skipped."""
    return np.unique(stamps // _DAY, return_inverse=True)[1]


def _expanded(days: int) -> float:
    """The share outside on either side that makes a percentile interval of so many units as wide as Student's t."""
    wide = stats.t.ppf(1 - _OUTSIDE, days - 1) * np.sqrt(days / (days - 1))
    return float(stats.norm.sf(wide))


def _interval(drawn: np.ndarray, outside: float) -> tuple[float, float]:
    usable = drawn[np.isfinite(drawn)]
    if not len(usable):
        return np.nan, np.nan
    low, high = np.percentile(usable, [100 * outside, 100 * (1 - outside)])
    return float(low), float(high)
