"""Rows in merged runs are those of a plain list, whatever is merged when, and by whom."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asof import runs
from asof.runs import HashSet, Run, Runs

SCHEMA = pa.schema([("key", pa.int64()), ("at", pa.int64()), ("number", pa.int64())])
SPAN = 10

rows = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=9)


def run_of(rows: list[tuple[int, int, int]]) -> Run:
    table = pa.table({name: [row[place] for row in rows] for place, name in enumerate(SCHEMA.names)}, schema=SCHEMA)
    return Run.of(table, table["key"].to_numpy().astype(np.uint64), ("key",))


def within_span(rows: pa.RecordBatch, _: np.ndarray, now: int) -> np.ndarray:
    return rows["at"].to_numpy() > now - SPAN


def told(batches: list[pa.RecordBatch]) -> list[tuple[int, int, int]]:
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


@settings(max_examples=80, deadline=None)
@given(
    added=st.lists(st.tuples(rows, st.booleans()), min_size=1, max_size=40),
    at_once=st.sampled_from([0, 8, 1 << 16]),
    asked=st.sets(st.integers(0, 6)),
)
def test_rows_of_some_keys(added, at_once, asked):
    numbers = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "ROWS_AT_ONCE", at_once)
        kept = Runs(run_of([]), within_span)
        everything, left_out = [], []
        for now, (some, waits) in enumerate(added):
            numbered = [(key, at, next(numbers)) for key, at in some]
            left_out += told(kept.add(run_of(numbered), now))
            everything += numbered
            held = told(kept.all().to_batches())
            assert sorted(held + left_out) == sorted(everything)
            assert all(at <= now - SPAN for _, at, _ in left_out)
            found = told(kept.rows_of(np.array(sorted(asked), np.uint64), ["at", "key", "number"]))
            for wanted in range(7):  # those of one key in the order they came
                want = sorted((row for row in held if row[0] == wanted and wanted in asked), key=lambda row: row[2])
                assert [(key, at, number) for at, key, number in found if key == wanted] == want
            if waits and kept._under_way:
                kept._under_way.merged.result()


def test_runs_are_few_and_what_no_longer_matters_goes():
    kept = Runs(run_of([]), within_span)
    for now in range(1000):
        kept.add(run_of([(now % 7, now, now)]), now)
        assert len(kept._runs) <= 8
    assert kept.all().num_rows <= 4 * SPAN


def test_nobody_waits_for_a_merge_of_many_rows(monkeypatch):
    monkeypatch.setattr(runs, "ROWS_AT_ONCE", 3)
    go, began = threading.Event(), threading.Event()

    def slow(rows: pa.RecordBatch, _: np.ndarray, now: int) -> np.ndarray:
        if len(rows) > 3:
            began.set()
            assert go.wait(30)
        return np.ones(len(rows), bool)

    kept = Runs(run_of([(0, 0, n) for n in range(3)]), slow)
    for number in range(3, 20):
        kept.add(run_of([(0, 0, number)]), 0)
    assert began.wait(30)
    assert kept.all().num_rows == 20
    go.set()
    merged, _ = kept._under_way.merged.result()
    kept.add(run_of([(0, 0, 20)]), 0)
    assert merged in kept._runs
    assert kept.all().num_rows == 21


@given(st.lists(st.lists(st.integers(0, 30), max_size=6), min_size=1, max_size=20), st.lists(st.integers(0, 30)))
def test_a_set_of_hashes(added, asked):
    there = HashSet(np.array(added[0], np.uint64))
    for more in added[1:]:
        there.add(np.array(more, np.uint64))
    assert there.holds_any(np.array(asked, np.uint64)) == bool(set(asked) & {each for more in added for each in more})
