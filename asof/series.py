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
from asof.timeline import Ranges, consecutive
from asof.windowed import WindowColumn

Series = tuple[Numbers, Ints]
"""Values of all answers one after another (grain V), and how many of them each answer has (grain Q)."""

_VALUES_AT_ONCE = 1 << 21
"""Looked for together: bounds the memory of windows with late events."""


def last_values(column: WindowColumn, ranges: Ranges, at: Ints, count: int) -> Series:
    """The last `count` values of each window, in order of event time, then of known time, then as the axis has them.

    Args:
        column: events of an axis.
        ranges: the windows, on that axis.
        at: where each window ends, microseconds (grain Q).
        count: of values, at most.
    """
    have = column.counts.between(ranges.gone, ranges.seen)
    lengths = np.minimum(have, count)
    if column.order is None:
        rows = np.flatnonzero(column.valid)
        ends = cumulated(column.valid)[ranges.seen]
        return column.numbers[rows[consecutive(ends - lengths, lengths)]], lengths
    return column.numbers[_known_rows(column, ranges, at, have, lengths, count)], lengths


def _known_rows(column: WindowColumn, ranges: Ranges, at: Ints, have: Ints, lengths: Ints, count: int) -> Ints:
    """The rows of all answers (grain V) where some events were not known when they happened.

    Among the last events that have happened, twice as many as are wanted, nearly always enough are known. Where not,
    each row is looked for by its rank in what the window holds.
    """
    rows, before = np.flatnonzero(column.valid), cumulated(column.valid)
    ends = before[ranges.happened]
    near = np.minimum(ends - before[ranges.gone], 2 * count)
    starts = np.cumsum(lengths) - lengths
    found = np.zeros(int(lengths.sum()), np.int64)
    for part in _parts(near):
        asked = np.repeat(np.arange(part.start, part.stop), near[part])
        row = rows[consecutive((ends - near)[part], near[part])]
        known = cumulated(column.axis.known[row] <= at[asked])
        upto = np.cumsum(near[part])
        enough = known[upto] - known[upto - near[part]] >= lengths[part]
        # So many of them, this one included, are known from it to the end of its window.
        left = known[upto][asked - part.start] - known[:-1]
        kept = (np.diff(known) == 1) & (left <= count) & enough[asked - part.start]
        sure = np.flatnonzero(enough) + part.start
        found[consecutive(starts[sure], lengths[sure])] = row[kept]
        rest = np.flatnonzero(~enough) + part.start
        if len(rest):
            found[consecutive(starts[rest], lengths[rest])] = _by_rank(column, ranges, rest, have, lengths)
    return found


def _by_rank(column: WindowColumn, ranges: Ranges, questions: Ints, have: Ints, lengths: Ints) -> Ints:
    rank = np.where(column.valid, np.arange(len(column.valid)), len(column.valid))
    asked = np.repeat(questions, lengths[questions])
    k = consecutive((have - lengths)[questions], lengths[questions])
    return kth_smallest(rank, k, ranges.gone[asked], ranges.seen[asked], rank[column.order])


def as_arrays(values: Values, series: Series) -> pa.Array:
    """A list column of the values' own type; null where a window has none."""
    numbers, lengths = series
    flat = values.restore((numbers, np.ones(len(numbers), bool)))
    # A null in the offsets makes the list that begins there a null.
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int64(), mask=np.append(lengths == 0, False))
    return pa.LargeListArray.from_arrays(offsets, flat)


def _parts(lengths: Ints) -> Iterator[slice]:
    """Runs of questions with few enough values."""
    upto = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        before = upto[first - 1] if first else 0
        end = max(int(np.searchsorted(upto, before + _VALUES_AT_ONCE, "right")), first + 1)
        yield slice(first, end)
        first = end
