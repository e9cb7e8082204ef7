"""What the audit sees in the frame's columns alone: missing values over time, constants, duplicates, too many texts.

Grain: N = one labelled case in time order, F = one feature, B = one bucket of time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.task import Audit
from training.arrays import feature_of
from training.findings import Finding
from training.frame import PREFIX, Frame

BUCKETS = 24
"""Stretches of time of equal length that the window is cut into."""
_SAMPLE = 5_000
"""Rows that correlations are taken over."""
_EXACT = 2**24
"""Largest integer below which a float32 holds every integer."""
_GONE, _PRESENT = 0.99, 0.5
_LEAST_PAIRS = 100


@dataclass(frozen=True, slots=True)
class Column:
    """One feature of the frame."""

    name: str
    kind: str
    """"number", "text", or what else the frame holds."""
    values: np.ndarray
    """[N]: float32 with NaN for null, or the code of each text with -1 for null."""
    missing: np.ndarray
    """bool [N]."""
    distinct: int
    """Different values, null not counted."""
    missing_by_bucket: np.ndarray
    """float64 [B], NaN where a bucket has no row."""

    @property
    def missing_share(self) -> float:
        """Of all rows."""
        return float(self.missing.mean())


def buckets(at: np.ndarray, start: int, end: int) -> np.ndarray:
    """int64 [N]: the bucket of each instant (microseconds) in [start, end)."""
    return np.clip((at - start) * BUCKETS // max(end - start, 1), 0, BUCKETS - 1)


def read_columns(frame: Frame, bucket: np.ndarray) -> list[Column]:
    """Every feature as numbers that the rules can work on."""
    rows = np.bincount(bucket, minlength=BUCKETS)
    found = []
    for spec in frame.specs:
        column = frame.table[PREFIX + spec.name].combine_chunks()
        missing = column.is_null().to_numpy(zero_copy_only=False)
        if pa.types.is_floating(column.type):
            values = column.to_numpy(zero_copy_only=False)
            distinct = len(np.unique(values[~missing]))
        elif pa.types.is_string(column.type):
            coded = column.dictionary_encode()
            values = pc.fill_null(coded.indices, -1).to_numpy().astype(np.int64)
            distinct = len(coded.dictionary)
        else:
            values, distinct = np.zeros(len(column), np.float32), int(not missing.all())
        with np.errstate(invalid="ignore"):
            share = np.bincount(bucket, missing, BUCKETS) / np.where(rows, rows, np.nan)
        found.append(Column(spec.name, spec.kind, values, missing, distinct, share))
    return found


def column_findings(columns: Sequence[Column], limits: Audit) -> Iterator[Finding]:
    """Every rule that looks at features by themselves, and at pairs of them."""
    yield from _empty(columns)
    for column in columns:
        yield from _variation(column, limits)
        yield from _missing(column, limits)
        yield from _precision(column)
    yield from _duplicates(columns, limits.near_duplicate)


def _empty(columns: Sequence[Column]) -> Iterator[Finding]:
    """A feature no row has a value of blocks; so does an array that is always empty, but not one that is never full."""
    filled = {feature_of(column.name) for column in columns if column.distinct}
    for name in dict.fromkeys(feature_of(column.name) for column in columns):
        if name not in filled:
            action = "check the view's source and join key, or take the feature out of the service"
            yield Finding("empty", name, "blocking", "no row has a value", action)
    for column in columns:
        if not column.distinct and feature_of(column.name) in filled:
            action = "lower training.array_places: no array is ever that long"
            yield Finding("empty", column.name, "warning", "no row has a value there", action)


def _variation(column: Column, limits: Audit) -> Iterator[Finding]:
    if column.distinct == 1 and column.kind in ("number", "text"):
        evidence = f"one value in all {np.count_nonzero(~column.missing):,} rows that have one"
        yield Finding("constant", column.name, "warning", evidence, "take it out of the service: nothing is learned")
    elif column.kind == "text" and column.distinct > limits.max_categories:
        evidence = f"{column.distinct:,} different texts, more than {limits.max_categories:,}"
        action = "group them in the view, or raise audit.max_categories; an id learns its rows by heart"
        yield Finding("categories", column.name, "warning", evidence, action)


def _missing(column: Column, limits: Audit) -> Iterator[Finding]:
    if column.missing.all():
        return
    if column.missing_share > limits.max_missing:
        evidence = f"{column.missing_share:.1%} of rows have no value, more than {limits.max_missing:.1%}"
        yield Finding("missing", column.name, "warning", evidence, "check the join key and the view's TTL")
    share = column.missing_by_bucket[np.isfinite(column.missing_by_bucket)]
    if len(share) < 4:
        return
    last = max(len(share) // 10, 2)
    before, ending = share[:-last].mean(), share[-last:]
    if ending.min() > _GONE and before < _PRESENT:
        evidence = f"no value in the last {last} of {len(share)} buckets of time, {before:.1%} missing before"
        action = "the source stopped, or its key changed: repair it, or end the window before it"
        yield Finding("stopped", column.name, "blocking", evidence, action)
        return
    quarter = max(len(share) // 4, 1)
    early, late = share[:-quarter].mean(), share[-quarter:].mean()
    if abs(late - early) > limits.missing_change:
        evidence = f"{early:.1%} missing at first, {late:.1%} in the last quarter of the window"
        action = "find out what changed at the source; the holdout is not like the training rows"
        yield Finding("missing_change", column.name, "warning", evidence, action)


def _precision(column: Column) -> Iterator[Finding]:
    if column.kind != "number" or column.missing.all():
        return
    largest = float(np.nanmax(np.abs(column.values)))
    if largest > _EXACT and not np.mod(column.values[~column.missing], 1).any():
        evidence = f"whole numbers up to {largest:,.0f}; a model reads float32, exact to {_EXACT:,}"
        yield Finding(
            "precision", column.name, "warning", evidence, "an id is no number: use a text, or a smaller scale"
        )


def _duplicates(columns: Sequence[Column], limit: float) -> Iterator[Finding]:
    """Each feature that says what an earlier one says: by rank correlation for numbers, one to one for texts."""
    numbers = [column for column in columns if column.kind == "number" and column.distinct > 1]
    if numbers:
        chosen = evenly(len(numbers[0].values), _SAMPLE)
        present = np.array([~column.missing[chosen] for column in numbers])
        ranks = np.array([_ranks(column.values[chosen], ok) for column, ok in zip(numbers, present, strict=True)])
        together, alike = _correlations(ranks, present)
        for j, column in enumerate(numbers):
            twins = np.flatnonzero((np.abs(together[:j, j]) >= limit) & alike[:j, j])
            if len(twins):
                other, strength = numbers[twins[0]].name, together[twins[0], j]
                yield _duplicate(column.name, other, f"rank correlation {strength:.4f}")
    texts = [column for column in columns if column.kind == "text" and column.distinct > 1]
    for j, column in enumerate(texts):
        for other_text in texts[:j]:
            if column.distinct == other_text.distinct:
                pairs = np.unique(np.stack([column.values, other_text.values]), axis=1).shape[1]
                if pairs <= column.distinct + 1:
                    yield _duplicate(column.name, other_text.name, f"{column.distinct:,} texts, one to one")
                    break


def _duplicate(name: str, other: str, evidence: str) -> Finding:
    return Finding("near_duplicate", name, "warning", f"says what {other!r} says: {evidence}", "keep one of the two")


def _ranks(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Average ranks of the values that are present, 0 elsewhere."""
    ranks = np.zeros(len(values))
    _, inverse, counts = np.unique(values[present], return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks[present] = (ends - (counts - 1) / 2)[inverse]
    return ranks


def _correlations(ranks: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[F, F]: correlation over the rows that both have, and whether they mostly have the same rows."""
    mask = present.astype(np.float64)
    count = mask @ mask.T
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (ranks @ mask.T) / count
        covariance = (ranks @ ranks.T) / count - mean * mean.T
        variance = ((ranks**2) @ mask.T) / count - mean**2
        correlation = covariance / np.sqrt(variance * variance.T)
    same = (count + (1 - mask) @ (1 - mask).T) / mask.shape[1] >= _GONE
    return np.nan_to_num(correlation), same & (count >= _LEAST_PAIRS)


def evenly(rows: int, wanted: int) -> np.ndarray:
    """Positions of about `wanted` of the rows, evenly over all of them."""
    return np.arange(rows) if rows <= wanted else np.linspace(0, rows - 1, wanted).astype(np.int64)
