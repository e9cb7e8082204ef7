from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from monitoring.chunks import chunk_bounds, chunk_numbers, deal_reference, split_factor
from tests.monitoring.conftest import micros

widths = st.sampled_from([timedelta(minutes=15), timedelta(hours=1), timedelta(days=1), timedelta(days=7)])
instants = st.timedeltas(timedelta(0), timedelta(days=40_000)).map(lambda age: datetime(1969, 1, 1, tzinfo=UTC) + age)


@given(instants, widths)
def test_an_instant_lies_within_its_chunk_and_chunks_start_at_the_epoch(at: datetime, width: timedelta) -> None:
    (number,) = chunk_numbers(np.array([micros(at)]), width)
    start, end = chunk_bounds(int(number), width)
    assert start <= at < end
    assert end - start == width
    assert micros(start) % (width // timedelta(microseconds=1)) == 0


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=400).map(sorted), st.sampled_from([1, 2, 4]), st.integers(1, 60)
)
def test_dealing_keeps_time_chunks_apart_and_parts_even(numbers: list[int], factor: int, least: int) -> None:
    times = np.array(numbers)
    dealt = deal_reference(times, factor, min_rows=least)
    kinds, counts = np.unique(times, return_counts=True)
    large = set(kinds[counts >= least].tolist())
    if len(large) * factor >= 3:
        assert dealt is not None
        assert {int(t) for t, d in zip(times, dealt, strict=True) if d >= 0} == large
        for kind in large:
            _, sizes = np.unique(dealt[times == kind], return_counts=True)
            assert len(sizes) == min(factor, (times == kind).sum())
            assert sizes.max() - sizes.min() <= 1
        parts = {(int(t), int(d)) for t, d in zip(times, dealt, strict=True) if d >= 0}
        assert len({part for _, part in parts}) == len(parts)
    elif len(times) // least >= 3:
        assert dealt is not None
        _, sizes = np.unique(dealt, return_counts=True)
        assert len(sizes) == len(times) // least
        assert sizes.min() >= least
        assert (np.diff(dealt) >= 0).all()
    else:
        assert dealt is None


def test_dealing_is_the_same_every_time() -> None:
    times = np.repeat(np.arange(4), 100)
    assert (deal_reference(times, 4, min_rows=50) == deal_reference(times, 4, min_rows=50)).all()


def test_a_part_of_a_chunk_spans_the_whole_chunk() -> None:
    dealt = deal_reference(np.zeros(1000, int), 4, min_rows=100)
    assert dealt is not None
    for part in range(4):
        rows = np.flatnonzero(dealt == part)
        assert rows.min() < 50
        assert rows.max() > 950


def test_the_reference_is_dealt_to_the_size_of_the_chunk_it_judges() -> None:
    times = np.repeat(np.arange(10), 1600)
    factors = [split_factor(times, rows, min_rows=100) for rows in (5000, 1600, 1300, 800, 400, 100, 1)]
    assert factors == [1, 1, 1, 2, 4, 16, 16]
    assert split_factor(np.array([], int), 100, min_rows=100) == 1
