"""Bounds that hold however often one looks: confidence sequences for shares, and what follows from them.

A confidence interval is right at one look; looking every second until it excludes something rolls back good versions.
A confidence sequence is a series of intervals, one after each row, that holds the true share at *every* row at once
with a chance of at least 1 - alpha. Here it is the mixture of likelihood ratios over all shares, weighted by a beta
distribution: for the true share the mixture is a martingale that begins at 1, so the chance that it ever reaches
1 / alpha is at most alpha (Ville's inequality; the mixture is Robbins', 1970). Rows are taken for independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln

ALPHA = 0.01
"""Chance, for one check of one stage, that a version without fault is ever convicted, whenever and however often it is
looked at."""
_PRIOR = 0.5  # of the mixture, at both ends: half its weight is on small and on large shares, which is where faults are
_HALVINGS = 60


def share_bounds(bad: ArrayLike, total: ArrayLike, alpha: float) -> tuple[Any, Any]:
    """Lowest and highest share that `bad` of `total` rows leave possible, at all times together but for `alpha`.

    Args:
        bad: rows that count; arrays are taken element by element.
        total: rows in all.
        alpha: chance that the true share is ever outside, either side.

    >>> low, high = share_bounds(30, 1000, 0.01)
    >>> bool(0.01 < low < 0.03 < high < 0.06)
    True
    """
    s, n = np.broadcast_arrays(np.asarray(bad, float), np.asarray(total, float))
    level = betaln(_PRIOR + s, _PRIOR + n - s) - betaln(_PRIOR, _PRIOR) + np.log(alpha)
    middle = np.divide(s, n, out=np.full(s.shape, 0.5), where=n > 0)
    inside, outside = middle, np.zeros_like(s)
    bounds = []
    for end in (0.0, 1.0):
        inside, outside = middle, np.full(s.shape, end)
        for _ in range(_HALVINGS):
            half = (inside + outside) / 2
            possible = level < _log_likelihood(half, s, n)
            inside, outside = np.where(possible, half, inside), np.where(possible, outside, half)
        free = (n - s if end else s) == 0  # no row speaks against a share of nothing (or of all)
        bounds.append(np.where(free, end, outside))
    return bounds[0][()], bounds[1][()]


@dataclass(frozen=True, slots=True)
class Excess:
    """Whether a version's share of bad rows is shown to be above what is allowed and above the champion's."""

    low: float
    """The least its own share can be."""
    excused: float
    """The most that is excused: what is allowed, or the most that the champion's share over the same time can be."""

    @property
    def convicted(self) -> bool:
        """Whether no innocent share is left possible."""
        return self.low > self.excused


def excess(bad: int, total: int, allowed: float, *, beside: tuple[int, int]) -> Excess:
    """Judge `bad` of `total` against a fixed allowance and against the champion's (bad, total) of the same time.

    What troubles both, a slow machine or a store that is down, is no fault of the version: it is convicted only beyond
    the champion's upper bound. Where the champion answered nothing there is nobody to be compared with.

    >>> excess(4, 4, 0.01, beside=(0, 60)).convicted, excess(40, 100, 0.01, beside=(300, 900)).convicted
    (True, False)
    """
    low, _ = share_bounds(bad, total, ALPHA / 2)
    _, high = share_bounds(*beside, ALPHA / 2) if beside[1] else (0.0, 0.0)
    return Excess(float(low), max(allowed, float(high)))


def least_stability(expected: np.ndarray, found: np.ndarray, alpha: float = ALPHA) -> Any:
    """The least population stability index that two counts by bin leave possible, at all times but for `alpha`.

    The bins must have been fixed before the counting began. Every bin's two shares have a confidence sequence of their
    own and `alpha` is divided among them; where two intervals overlap the bin may hold no difference at all.

    Args:
        expected: rows by bin, the bins along the last axis.
        found: the same of the other version.
        alpha: chance that the true index is ever below what is returned.
    """
    each = alpha / (2 * expected.shape[-1])
    low_p, high_p = share_bounds(expected, expected.sum(axis=-1, keepdims=True), each)
    low_q, high_q = share_bounds(found, found.sum(axis=-1, keepdims=True), each)
    p = np.where(low_q > high_p, high_p, np.where(low_p > high_q, low_p, 1.0))
    q = np.where(low_q > high_p, low_q, np.where(low_p > high_q, high_q, 1.0))
    return np.sum((q - p) * np.log(np.maximum(q, 1e-300) / np.maximum(p, 1e-300)), axis=-1)[()]


def _log_likelihood(share: np.ndarray, bad: np.ndarray, total: np.ndarray) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        good = total - bad
        return np.where(bad > 0, bad * np.log(share), 0.0) + np.where(good > 0, good * np.log1p(-share), 0.0)
