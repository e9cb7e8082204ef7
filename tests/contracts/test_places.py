from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.places import Arrays, place_name, place_of


@settings(deadline=None)
@given(st.lists(st.none() | st.lists(st.none() | st.integers(-9, 9), max_size=5), max_size=6), st.integers(1, 6))
def test_a_place_counts_from_the_end_and_keeps_the_type(rows, place):
    column = pa.chunked_array([pa.array(rows[:2], pa.list_(pa.int64())), pa.array(rows[2:], pa.list_(pa.int64()))])
    found = Arrays(column).at(place)
    assert found.type == pa.int64()
    assert found.to_pylist() == [row[-place] if row and len(row) >= place else None for row in rows]


def test_a_name_says_its_feature_and_place():
    assert place_of(place_name("delays", 12)) == ("delays", 12)
    assert place_of(place_name("odd[-3]", 1)) == ("odd[-3]", 1)


@pytest.mark.parametrize("name", ["delays", "delays[3]", "delays[-x]", "[-1]", "delays[-1]!"])
def test_any_other_name_is_no_place(name):
    assert place_of(name) is None
