"""Events out of runs are those a scan would give, or none where a hash might stand for two keys."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from asof.events import Events
from asof.runs import Hashes, Run, hashes_of

COLUMNS = {"x": "raw_x"}


def rows(*rows: tuple[str | None, int | None, int | None, float]) -> pa.Table:
    """Rows (key, event, created, x); times in microseconds."""
    key, event, created, x = (list(column) for column in zip(*rows, strict=True))
    times = (pa.array(moments, pa.int64()).cast(pa.timestamp("us", "UTC")) for moments in (event, created))
    return pa.table([pa.array(key, pa.string()), *times, x], ["key", "ts", "created", "raw_x"])


def run_of(table: pa.Table, key: Hashes | None = None) -> Run:
    return Run.of(table, hashes_of(table.select(["key"])) if key is None else np.array(key, np.uint64), ("key",))


def test_what_a_scan_would_give():
    kept = run_of(rows(("b", 5, 5, 1.0), ("c", 6, 6, 2.0), ("a", 7, 30, 3.0), ("a", None, 8, 4.0), (None, 9, 9, 5.0)))
    pushed = run_of(rows(("a", 10, None, 6.0), ("b", 3, 12, 7.0), ("a", 21, 21, 8.0), (None, 9, 9, 9.0)))
    events = Events.of([kept, pushed], np.unique(pushed.key), COLUMNS, "ts", "created")
    scanned = events.scanned(pa.table({"code": [1, 0], "k0": ["a", "b"]}), ["x"], 4, 20)
    assert sorted(map(tuple, scanned.to_pandas().to_numpy().tolist())) == [(0, 5, 5, 1.0), (1, 10, 10, 6.0)]
    everything = events.scanned(pa.table({"code": [1, 0], "k0": ["a", "b"]}), ["x"], None, 30)
    assert sorted(everything["c0"].to_pylist()) == [1.0, 3.0, 6.0, 7.0, 8.0]


def test_two_keys_of_one_hash_are_not_told_apart_by_it():
    one, other = rows(("a", 5, 5, 1.0)), rows(("b", 6, 6, 2.0))
    asked = np.array([7], np.uint64)
    assert Events.of([run_of(one, [7]), run_of(one, [7])], asked, COLUMNS, "ts", "created") is not None
    assert Events.of([run_of(one, [7]), run_of(other, [7])], asked, COLUMNS, "ts", "created") is None
    both = run_of(pa.concat_tables([one, other]), [7, 7])
    assert Events.of([both, run_of(one, [7])], asked, COLUMNS, "ts", "created") is None
