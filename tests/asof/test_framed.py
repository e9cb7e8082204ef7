"""SQLite takes out of a frame what was put in."""

from __future__ import annotations

import sqlite3

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asof.framed import SMALL, Frame


def taken_out(frame: Frame, places: int) -> list[bytes | None]:
    query = f"select {frame.sql('?1', '?2 - 1')}"
    with sqlite3.connect(":memory:") as connection:
        return [connection.execute(query, (frame.content, place + 1)).fetchone()[0] for place in range(places)]


@given(st.data(), st.integers(0, 12), st.integers(1, 4))
def test_sqlite_takes_out_what_was_put_in(data: st.DataObject, rows: int, width: int) -> None:
    values = st.one_of(st.none(), st.binary(max_size=3), st.binary(max_size=300))
    columns = [data.draw(st.lists(values, min_size=rows, max_size=rows)) for _ in range(width)]
    frame = Frame.of([pa.array(column, pa.large_binary()) for column in columns])
    assert frame is not None
    assert taken_out(frame, rows * width) == [column[row] for row in range(rows) for column in columns]


def test_a_part_of_an_array_is_framed_as_such() -> None:
    frame = Frame.of([pa.array([b"aa", b"b", None, b"cccc", b"d"], pa.large_binary())[1:4]])
    assert frame is not None
    assert taken_out(frame, 3) == [b"b", None, b"cccc"]


@pytest.mark.parametrize(("long", "framed"), [(SMALL // 10, True), (SMALL, False)])
def test_a_long_value_among_short_ones_is_not_padded_for(long: int, framed: bool) -> None:
    frame = Frame.of([pa.array([b"a"] * 9 + [b"b" * long], pa.large_binary())])
    assert (frame is not None) == framed
