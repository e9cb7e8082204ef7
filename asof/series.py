"""The last so many values of each window, oldest first: what an array feature is made of.

Grain: R = one event of an axis, Q = one question, V = one value of one answer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from asof.column import Ints, Numbers, Values
from asof.exact import cumulated
from asof.rangequery import kth_smallest
from asof.timeline import Ranges
from asof.windowed import WindowColumn

Series = tuple[Numbers, Ints]
"""Values of all answers one after another (grain V), and how many of them each answer has (grain Q)."""

_VALUES_AT_ONCE = 1 << 21
"""Looked for together: bounds the memory of windows with late events."""


def last_values(column: WindowColumn, ranges: Ranges, count: int) -> Series:
    """The last `count` values of each window, in order of event time, then of known time, then as the axis has them."""
    have = column.counts.between(ranges.gone, ranges.seen)
    lengths = np.minimum(have, count)
    if column.order is None:
        rows = np.flatnonzero(column.valid)
        ends = cumulated(column.valid)[ranges.seen]
        return column.numbers[rows[_runs(ends - lengths, lengths)]], lengths
    # What is known is not a run of rows in order of event time: each value is looked for by its rank in the window.
    rank = np.where(column.valid, np.arange(len(column.valid)), len(column.valid))
    known = rank[column.order]
    found = [np.zeros(0, np.int64)]
    for part in _parts(lengths):
        asked = np.repeat(np.arange(part.start, part.stop), lengths[part])
        k = _runs((have - lengths)[part], lengths[part])
        found.append(kth_smallest(rank, k, ranges.gone[asked], ranges.seen[asked], known))
    return column.numbers[np.concatenate(found)], lengths


def as_arrays(values: Values, series: Series) -> pa.Array:
    """A list column of the values' own type; null where a window has none."""
    numbers, lengths = series
    flat = values.restore((numbers, np.ones(len(numbers), bool)))
    # A null in the offsets makes the list that begins there a null.
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int64(), mask=np.append(lengths == 0, False))
    return pa.LargeListArray.from_arrays(offsets, flat)


def _runs(starts: Ints, lengths: Ints) -> Ints:
    """start, start + 1, ... for each start, so many as its length, one after another."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)


def _parts(lengths: Ints) -> Iterator[slice]:
    """Runs of questions with few enough values."""
    upto = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        before = upto[first - 1] if first else 0
        end = max(int(np.searchsorted(upto, before + _VALUES_AT_ONCE, "right")), first + 1)
        yield slice(first, end)
        first = end
