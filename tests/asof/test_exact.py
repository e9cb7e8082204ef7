"""Sums that do not depend on where the scan began."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asof import exact

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
moderate = st.floats(min_value=-1e100, max_value=1e100, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-100)


def ranges_of(size: int):
    pairs = [(lo, hi) for lo in range(size + 1) for hi in range(lo, size + 1)]
    return (np.array(column, np.int64) for column in zip(*pairs, strict=True))


@given(st.lists(finite.filter(lambda x: abs(x) < 1e300), max_size=9))
def test_every_range_is_the_correctly_rounded_sum(values):
    column = np.array(values, np.float64)
    lo, hi = ranges_of(len(values))
    got = exact.ExactSums(column).total(lo, hi).round()
    assert got.tolist() == [math.fsum(values[a:b]) for a, b in zip(lo, hi, strict=True)]


@given(st.lists(moderate, min_size=2, max_size=7))
def test_variance_is_that_of_exact_fractions(values):
    column = np.array(values, np.float64)
    sums, squares = exact.ExactSums(column), exact.ExactSquares(column)
    lo, hi = ranges_of(len(values))
    got = exact.variance(hi - lo, sums.total(lo, hi), squares.total(lo, hi))
    for a, b, variance in zip(lo, hi, got, strict=True):
        if b - a < 2:
            assert math.isnan(variance)
        else:
            want = float(statistics.variance([Fraction(value) for value in values[a:b]]))
            assert variance == pytest.approx(want, rel=1e-15, abs=0)


@given(st.lists(st.integers(-(1 << 20), 1 << 20) | st.integers(-(1 << 29), 1 << 29), min_size=2, max_size=7))
def test_variance_of_whole_numbers_is_the_same(values):
    column = np.array(values, np.int64)
    lo, hi = ranges_of(len(values))
    sums, squares = (exact.Prefix(numbers).between(lo, hi) for numbers in (column, column * column))
    got = exact.variance_of_whole(hi - lo, sums, squares)
    floats = column.astype(np.float64)
    totals = exact.ExactSums(floats).total(lo, hi), exact.ExactSquares(floats).total(lo, hi)
    np.testing.assert_array_equal(got, exact.variance(hi - lo, *totals))


def test_a_constant_has_no_variance_whatever_its_last_digit():
    column = np.full(1000, 0.1)
    sums, squares = exact.ExactSums(column), exact.ExactSquares(column)
    lo, hi = np.array([0, 3]), np.array([1000, 5])
    assert exact.variance(hi - lo, sums.total(lo, hi), squares.total(lo, hi)).tolist() == [0.0, 0.0]


def test_a_huge_value_outside_the_range_leaves_no_trace():
    sums = exact.ExactSums(np.array([1e300, 0.1, 0.2, -1e300, 5e-324]))
    assert sums.total(np.array([1, 0, 4]), np.array([3, 4, 5])).round().tolist() == [0.1 + 0.2, 0.1 + 0.2, 5e-324]


@given(
    st.lists(st.tuples(finite.filter(lambda x: abs(x) < 1e300), st.integers(0, 9)), min_size=1, max_size=9), st.data()
)
def test_ends_may_be_counted_in_another_order(rows, data):
    values, priority = (np.array(column) for column in zip(*rows, strict=True))
    order = np.argsort(priority, kind="stable")
    hi = data.draw(st.integers(0, len(values)))
    lo = max(n for n in range(len(values) + 1) if set(range(n)) <= set(order[:hi].tolist()))
    want = math.fsum(values[i] for i in order[:hi] if i >= lo)
    got = exact.ExactSums(values, order).total(np.array([lo]), np.array([hi])).round()
    assert got.tolist() == [want]


def test_numbers_of_different_size_add_up():
    one = exact.ExactSums(np.array([1e200])).total(np.array([0]), np.array([1]))
    other = exact.ExactSums(np.array([1e-200])).total(np.array([0]), np.array([1]))
    minus = exact.ExactSums(np.array([-1e200])).total(np.array([0]), np.array([1]))
    assert (one + other + minus).round().tolist() == [1e-200]
