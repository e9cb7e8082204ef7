"""How much one feature says of the label by itself, now and when it is read somewhat earlier.

A feature may be strong because the world is so. One that alone is almost perfect, or that is strong at the instant of
the question and knows nothing a little before it, more likely holds the outcome it is to predict.

Grain: N = one labelled case in time order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from contracts.duration import show_duration
from contracts.task import Audit
from training.audit_columns import Column
from training.findings import Finding

SAMPLE = 20_000
"""Rows, evenly over the window, that single features are judged on."""
EARLIER = 4_000
"""Of them, rows whose features are read again, earlier."""
_BINS = 64
_ROWS_A_BIN = 25
_PRIOR = 5.0
"""Cases of the base rate that a bin's own rate is blended with."""
_LEAST = 200


def outcome(labels: np.ndarray) -> np.ndarray:
    """bool [N]: a binary label itself; of any other number whether it is above the median."""
    return labels > 0 if set(np.unique(labels)) <= {0, 1} else labels > np.median(labels)


def power(values: np.ndarray, missing: np.ndarray, outcome: np.ndarray, *, is_text: bool) -> float:
    """ROC AUC of one feature alone, at least 0.5; NaN when it cannot be told.

    The feature is cut into bins (a text is its own bin, null another); each half of the rows in time is scored with the
    rates the other half shows. So shape does not matter, nulls count, and nothing is learned by heart.
    """
    codes = _codes(values, missing, is_text)
    middle = len(codes) // 2
    halves = (slice(None, middle), slice(middle, None))
    found = [_half(codes, outcome, fit, test) for fit, test in (halves, halves[::-1])]
    return max(float(np.mean(found)), 0.5)


def _codes(values: np.ndarray, missing: np.ndarray, is_text: bool) -> np.ndarray:
    """int64 [N], 0 for null."""
    if is_text:
        return values + 1
    present = values[~missing]
    bins = int(np.clip(len(present) // _ROWS_A_BIN, 2, _BINS))
    edges = np.unique(np.quantile(present, np.linspace(0, 1, bins + 1)[1:-1])) if len(present) else np.empty(0)
    codes = np.searchsorted(edges, np.where(missing, 0, values), side="right") + 1
    # A value that fills several quantiles is an edge itself: what lies below it must not share its bin.
    return np.where(missing, 0, codes)


def _half(codes: np.ndarray, outcome: np.ndarray, fit: slice, test: slice) -> float:
    size = int(codes.max(initial=0)) + 1
    base = outcome[fit].mean() if len(outcome[fit]) else np.nan
    rows, hits = np.bincount(codes[fit], minlength=size), np.bincount(codes[fit], outcome[fit], size)
    rate = (hits + _PRIOR * base) / (rows + _PRIOR)
    positive = np.bincount(codes[test], outcome[test], size)
    negative = np.bincount(codes[test], minlength=size) - positive
    if not positive.sum() or not negative.sum():
        return np.nan
    levels, place = np.unique(rate, return_inverse=True)
    ups, downs = np.bincount(place, positive, len(levels)), np.bincount(place, negative, len(levels))
    below = np.cumsum(downs) - downs
    return float((ups * (below + downs / 2)).sum() / (ups.sum() * downs.sum()))


def powers(columns: Sequence[Column], rows: np.ndarray, outcome: np.ndarray) -> dict[str, float]:
    """`power` of every number and text on the rows at these positions; nothing when they are too few."""
    if len(rows) < _LEAST:
        return {}
    return {
        column.name: power(column.values[rows], column.missing[rows], outcome[rows], is_text=column.kind == "text")
        for column in columns
        if column.kind in ("number", "text")
    }


def leak_findings(
    now: Mapping[str, float], same_rows: Mapping[str, float], earlier: Mapping[str, float], limits: Audit
) -> Iterator[Finding]:
    """Suspects among the features.

    Args:
        now: ROC AUC of each feature alone.
        same_rows: likewise, on the rows that were read again.
        earlier: likewise, on those rows with the feature's value `audit.shift` earlier.
        limits: of the task.
    """
    for name, auc in now.items():
        if auc >= limits.perfect_auc:
            evidence = f"alone it has ROC AUC {auc:.4f}, at or above {limits.perfect_auc:g}"
            action = "find out whether its source row is written before the question or with the outcome"
            yield Finding("leak_perfect", name, "blocking", evidence, action)
        elif name in earlier and same_rows[name] >= limits.vanishing_auc:
            had, kept = same_rows[name] - 0.5, earlier[name] - 0.5
            if kept < limits.vanishing_keeps * had:
                evidence = (
                    f"alone it has ROC AUC {same_rows[name]:.4f}, {show_duration(limits.shift)} earlier "
                    f"{earlier[name]:.4f}: {kept / had:.0%} of its power stays, {limits.vanishing_keeps:.0%} is asked"
                )
                action = "give its source a created timestamp that says when a row could be read"
                yield Finding("leak_vanishing", name, "blocking", evidence, action)
