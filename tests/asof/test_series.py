"""Arrays of the last values: in what order, of the same events in every array, and the same on every path."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asof.definition import Feature, Key, View, Window
from asof.engine import Spine, as_of
from asof.session import Session
from asof.source import Source
from asof.timeline import FOREVER

MINUTE = 60_000_000
START = 1_356_998_400_000_000
UTC = pa.timestamp("us", "UTC")


def view_of(path, *functions: tuple[str, str], length: int = FOREVER, series_of=("n", "x")) -> View:
    windows = tuple(Window(Feature(f"{f}_{c}", None, None), f, c, length, 0) for f, c in functions)
    source = Source("v", str(path), "ts", "created")
    keys = (Key("k", "k", pa.int64(), None),)
    return View("v", keys, tuple(w.feature for w in windows), (), windows, source, 0, 0, tuple(series_of))


def ask(view: View, keys: list[int], at: list[int]) -> list[dict]:
    with Session() as session:
        spine = Spine(pa.table({"k": keys}), np.array(at, np.int64), np.ones(len(at), bool))
        return as_of([view], spine, session)[0].features.to_pylist()


def land(path, rows: list[tuple]) -> None:
    key, event, created, n, x = (list(column) for column in zip(*rows, strict=True))
    stamps = {"ts": pa.array(event, UTC), "created": pa.array(created, UTC)}
    pq.write_table(pa.table({"k": key, **stamps, "n": pa.array(n, pa.int64()), "x": pa.array(x, pa.float64())}), path)


def test_events_of_one_moment_have_one_order_in_all_arrays_however_the_file_holds_them(tmp_path):
    """Three events at one moment: the arrays say which n goes with which x, in whatever order they were written."""
    events = [(1, START, START, n, x) for n, x in [(1, 9.0), (2, 1.0), (1, 5.0)]]
    answers = set()
    for number, rows in enumerate(itertools.permutations(events)):
        path = tmp_path / f"{number}.parquet"
        land(path, list(rows))
        both = ask(view_of(path, ("last_2", "n"), ("last_2", "x")), [1], [START])
        answers.add(repr(both))
        # A service that asks for one of the arrays gets the same one.
        assert ask(view_of(path, ("last_2", "x")), [1], [START]) == [{"last_2_x": [9.0, 1.0]}]
    assert answers == {repr([{"last_2_n": [1, 2], "last_2_x": [9.0, 1.0]}])}


def test_an_event_is_in_the_array_from_the_moment_it_was_known_in_its_own_place(tmp_path):
    """What happened at minute 1 is told at minute 5: until then it is not there, from then on it is the first."""
    path = tmp_path / "late.parquet"
    minutes = [(0, 0, 0), (1, 5, 1), (2, 2, 2), (3, 3, 3)]
    land(path, [(1, START + e * MINUTE, START + k * MINUTE, n, float(n)) for e, k, n in minutes])
    view = view_of(path, ("last_3", "n"))
    at = [START + t * MINUTE for t in (-1, 0, 3, 4, 5)]
    found = [row["last_3_n"] for row in ask(view, [1] * 5, at)]
    assert found == [None, [0], [0, 2, 3], [0, 2, 3], [1, 2, 3]]


def test_of_two_events_of_one_moment_the_one_known_later_is_the_last_whatever_their_values(tmp_path):
    """Also where the question comes when both are known, as a materialization's does."""
    path = tmp_path / "told_apart.parquet"
    land(path, [(1, START, START + 2 * MINUTE, 1, 1.0), (1, START, START + MINUTE, 5, 5.0)])
    view = view_of(path, ("last_2", "n"))
    assert ask(view, [1], [START + 3 * MINUTE]) == [{"last_2_n": [5, 1]}]
    assert [row["last_2_n"] for row in ask(view, [1, 1], [START + MINUTE, START + 3 * MINUTE])] == [[5], [5, 1]]


def test_the_last_known_are_found_behind_any_number_that_are_not_known_yet(tmp_path):
    path = tmp_path / "silence.parquet"
    events = [(1, START + i * MINUTE, START + (i if i < 4 else 100) * MINUTE, i, float(i)) for i in range(12)]
    land(path, events)
    view = view_of(path, ("last_2", "n"), ("last_6", "n"))
    found = ask(view, [1, 1, 1], [START + t * MINUTE for t in (3, 20, 100)])
    assert [row["last_2_n"] for row in found] == [[2, 3], [2, 3], [10, 11]]
    assert [row["last_6_n"] for row in found] == [[0, 1, 2, 3], [0, 1, 2, 3], [6, 7, 8, 9, 10, 11]]
