"""Answers about rows [lo, hi) of a sorted column, for many ranges at once and in memory linear in the rows.

Grain: R = one row, Q = one range. Each function builds its structure level by level, answers the ranges that need the
level, and drops it: n log n time, n memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Numbers = NDArray[Any]
"""int64 or float64."""


def extreme(values: Numbers, lo: Ints, hi: Ints, *, largest: bool) -> Numbers:
    """The largest (or smallest) value of each non-empty range; of an empty range an arbitrary one.

    Two overlapping blocks of length 2**level cover a range (a sparse table, one level alive at a time). Ranges in
    order that hold no more rows than there are, taken together, are gone through as they are.
    """
    pick = np.maximum if largest else np.minimum
    if len(values) and int(np.maximum(hi - lo, 0).sum()) <= len(values) and (lo[1:] >= lo[:-1]).all():
        ends = np.stack([lo, hi], axis=1).ravel()
        return pick.reduceat(np.append(values, values[-1]), ends)[::2]
    answer = np.zeros(len(lo), values.dtype)
    level = np.frexp((hi - lo).astype(np.float64))[1] - 1  # floor(log2(length)); -1 when empty
    block, length = values, 1
    for depth in range(int(level.max(initial=-1)) + 1):
        if depth:
            block = pick(block[:-length], block[length:])
            length *= 2
        here = np.flatnonzero(level == depth)
        answer[here] = pick(block[lo[here]], block[hi[here] - length])
    return answer


def extreme_of_late(
    values: Numbers, event_rank: Ints, gone: Ints, seen: Ints, nothing: Any, *, largest: bool
) -> Numbers:
    """The largest (or smallest) value among the first `seen` rows whose event rank is `gone` or more, for each range.

    Blocks of length 2**level cover the first rows, each block sorted by event rank, one level alive at a time.

    Args:
        values: in order of known time.
        event_rank: place of each in order of event time, ascending in nothing.
        gone: event ranks below it do not count.
        seen: rows at or beyond it do not count.
        nothing: the answer where there is no such row.
        largest: whether to look for the largest.
    """
    pick = np.maximum if largest else np.minimum
    answer = np.full(len(gone), nothing, values.dtype)
    levels = int(seen.max(initial=0)).bit_length()
    size = 1 << levels
    beyond = int(event_rank.max(initial=0)) + 1
    rank = np.full(size, beyond, np.int64)
    rank[: min(len(values), size)] = event_rank[:size]
    number = np.full(size, nothing, values.dtype)
    number[: min(len(values), size)] = values[:size]
    for level in range(levels):
        here = np.flatnonzero((seen >> level) & 1 == 1)
        if not len(here):
            continue
        length = 1 << level
        order = np.argsort(rank.reshape(-1, length), axis=1, kind="stable")
        ranks = np.take_along_axis(rank.reshape(-1, length), order, 1)
        numbers = np.take_along_axis(number.reshape(-1, length), order, 1)
        best = pick.accumulate(numbers[:, ::-1], axis=1)[:, ::-1].ravel()
        blocks = (ranks + np.arange(len(ranks))[:, None] * (beyond + 1)).ravel()
        block = (seen[here] >> (level + 1)) << 1
        place = np.searchsorted(blocks, block * (beyond + 1) + np.minimum(gone[here], beyond))
        inside = place < (block + 1) * length
        rows = here[inside]
        answer[rows] = pick(answer[rows], best[place[inside]])
    return answer


def count_below(values: Ints, bound: Ints, lo: Ints, hi: Ints) -> Ints:
    """How many of values[lo:hi] are less than `bound`, for each range; values and bounds in [0, n]."""
    answer = np.zeros(len(lo), np.int64)
    lo, hi = lo.copy(), hi.copy()
    for bit, zeros, split in _levels(values, int(max(values.max(initial=0), bound.max(initial=0)))):
        zero_lo, zero_hi = zeros[lo], zeros[hi]
        up = (bound >> bit) & 1 == 1
        answer += np.where(up, zero_hi - zero_lo, 0)
        lo = np.where(up, lo - zero_lo + split, zero_lo)
        hi = np.where(up, hi - zero_hi + split, zero_hi)
    return answer


def kth_smallest(values: Ints, k: Ints, lo: Ints, hi: Ints, other: Ints | None = None) -> Ints:
    """The k-th smallest (from 0) of values[:hi] without those of values[:lo]; values in [0, n].

    Args:
        values: a column.
        k: for each range, inside it.
        lo: for each range, where it begins.
        hi: for each range, where it ends.
        other: the same values in another order, which `hi` counts in; what values[:lo] holds, other[:hi] must hold too.
    """
    answer = np.zeros(len(lo), np.int64)
    lo, hi, k = lo.copy(), hi.copy(), k.copy()
    largest = int(values.max(initial=0))
    levels = _levels(values, largest)
    # Both orders hold the same values, so their nodes begin at the same places and only the two ends need following.
    others = levels if other is None else _levels(other, largest)
    for bit, zeros, split in levels:
        ended = zeros if other is None else next(others)[1]
        zero_lo, zero_hi = zeros[lo], ended[hi]
        below = zero_hi - zero_lo
        up = k >= below
        answer |= np.where(up, 1 << bit, 0)
        k = np.where(up, k - below, k)
        lo = np.where(up, lo - zero_lo + split, zero_lo)
        hi = np.where(up, hi - zero_hi + split, zero_hi)
    return answer


def _levels(values: Ints, largest: int):  # type: ignore[no-untyped-def]
    """The levels of a wavelet matrix, from the highest bit down: (bit, zeros before each row, zeros in all)."""
    for bit in reversed(range(max(largest.bit_length(), 1))):
        one = (values >> bit) & 1 == 1
        zeros = np.zeros(len(values) + 1, np.int64)
        np.cumsum(~one, out=zeros[1:])
        yield bit, zeros, int(zeros[-1])
        values = np.concatenate([values[~one], values[one]])
