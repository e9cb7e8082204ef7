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

    Two overlapping blocks of length 2**level cover a range (a sparse table, one level alive at a time).
    """
    pick = np.maximum if largest else np.minimum
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


def kth_smallest(values: Ints, k: Ints, lo: Ints, hi: Ints) -> Ints:
    """The k-th smallest (from 0) of values[lo:hi] for each range; values in [0, n], k inside the range."""
    answer = np.zeros(len(lo), np.int64)
    lo, hi, k = lo.copy(), hi.copy(), k.copy()
    for bit, zeros, split in _levels(values, int(values.max(initial=0))):
        zero_lo, zero_hi = zeros[lo], zeros[hi]
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
