"""Range questions against slices."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asof.rangequery import count_below, extreme, extreme_of_late, kth_smallest


@st.composite
def columns_and_ranges(draw, low=0):
    values = draw(st.lists(st.integers(low, 12), min_size=1, max_size=20))
    edges = draw(st.lists(st.tuples(st.integers(0, len(values)), st.integers(0, len(values))), min_size=1, max_size=8))
    lo, hi = (np.array(column, np.int64) for column in zip(*(sorted(edge) for edge in edges), strict=True))
    return np.array(values, np.int64), lo, hi


@given(columns_and_ranges(low=-12), st.booleans())
def test_extreme(case, largest):
    values, lo, hi = case
    pick = max if largest else min
    got = extreme(values, lo, hi, largest=largest)
    for a, b, value in zip(lo, hi, got, strict=True):
        if a < b:
            assert value == pick(values[a:b])


@given(columns_and_ranges(), st.data())
def test_count_below(case, data):
    values, lo, hi = case
    bound = np.array([data.draw(st.integers(0, 14)) for _ in lo], np.int64)
    want = [int((values[a:b] < x).sum()) for a, b, x in zip(lo, hi, bound, strict=True)]
    assert count_below(values, bound, lo, hi).tolist() == want


@given(columns_and_ranges(), st.data())
def test_kth_smallest(case, data):
    values, lo, hi = case
    keep = lo < hi
    lo, hi = lo[keep], hi[keep]
    k = np.array([data.draw(st.integers(0, int(b - a) - 1)) for a, b in zip(lo, hi, strict=True)], np.int64)
    want = [sorted(values[a:b])[i] for a, b, i in zip(lo, hi, k, strict=True)]
    assert kth_smallest(values, k, lo, hi).tolist() == want


@st.composite
def two_orders(draw):
    """Values, another order of them, and ranges: `lo` counts in the first order, `hi` in the other one."""
    values = draw(st.lists(st.integers(0, 12), min_size=1, max_size=20))
    order = draw(st.permutations(range(len(values))))
    hi = np.array(draw(st.lists(st.integers(0, len(values)), min_size=1, max_size=8)), np.int64)
    most = [max(n for n in range(len(values) + 1) if set(range(n)) <= set(order[:end])) for end in hi]
    lo = np.array([draw(st.integers(0, n)) for n in most], np.int64)
    return np.array(values, np.int64), np.array(order, np.int64), lo, hi


@given(two_orders(), st.data())
def test_kth_smallest_of_a_difference(case, data):
    values, order, lo, hi = case
    lo, hi = lo[lo < hi], hi[lo < hi]
    k = np.array([data.draw(st.integers(0, int(b - a) - 1)) for a, b in zip(lo, hi, strict=True)], np.int64)
    inside = [sorted(values[i] for i in order[:b] if i >= a) for a, b in zip(lo, hi, strict=True)]
    want = [rows[i] for rows, i in zip(inside, k, strict=True)]
    assert kth_smallest(values, k, lo, hi, values[order]).tolist() == want


@given(two_orders(), st.booleans(), st.data())
def test_extreme_of_late(case, largest, data):
    values, rank, _, seen = case
    gone = np.array([data.draw(st.integers(0, len(values))) for _ in seen], np.int64)
    pick, nothing = (max, -1) if largest else (min, 99)
    want = [
        pick([nothing, *(values[i] for i in range(end) if rank[i] >= begun)])
        for begun, end in zip(gone, seen, strict=True)
    ]
    assert extreme_of_late(values, rank, gone, seen, nothing, largest=largest).tolist() == want


def test_nothing_asked():
    nothing = np.zeros(0, np.int64)
    assert extreme(np.array([1, 2]), nothing, nothing, largest=True).tolist() == []
    assert count_below(nothing, nothing, nothing, nothing).tolist() == []
