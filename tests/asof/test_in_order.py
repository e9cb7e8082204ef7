"""Plain views whose rows come in order of time: nothing put aside, the same answers, whatever comes behind its time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Field
from feast.types import Float64, Int64

from asof import newest
from asof.definition import Feature, Key, View
from asof.engine import Spine, as_of
from asof.in_order import seem_ordered
from asof.session import EngineFailure, Session
from asof.source import Source
from asof.split import Split
from asof.transform import Transform

MINUTE = 60_000_000
START = 1_356_998_400_000_000
ROWS, KEYS = 40_000, 20


@pytest.fixture(autouse=True)
def few_rows_at_once(monkeypatch) -> None:
    for name, limit in {"CELLS_AT_ONCE": 20_000, "ROWS_OF_A_BATCH": 2_048}.items():
        monkeypatch.setattr(newest, name, limit)


@pytest.fixture
def passed_on(monkeypatch) -> list[int]:
    """How many rows were searched by key: first of all, then of each part that was split again."""
    count: list[int] = []
    by_key = newest._by_key

    def counted(batches: Iterator[pa.RecordBatch], *more: object, **named: object):
        batches = list(batches)
        count.append(sum(batch.num_rows for batch in batches))
        return by_key(iter(batches), *more, **named)

    monkeypatch.setattr(newest, "_by_key", counted)
    return count


def rows_of(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    event = START + np.sort(rng.integers(0, 10_000, ROWS)) * MINUTE
    return {"k": rng.integers(0, KEYS, ROWS), "ts": event, "created": event, "x": rng.permutation(ROWS).astype(float)}


def delayed(rows: dict[str, np.ndarray], share: float, seed: int) -> dict[str, np.ndarray]:
    """Some rows are written up to some days after their time."""
    rng = np.random.default_rng(seed)
    late = rng.random(ROWS) < share
    written = np.argsort(rows["ts"] + late * rng.integers(0, 5_000, ROWS) * MINUTE, kind="stable")
    return {name: values[written] for name, values in rows.items()}


def told_late(rows: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Each row becomes known some time after its event, mostly soon, and is written then."""
    rng = np.random.default_rng(seed)
    created = rows["ts"] + np.minimum(rng.exponential(30, ROWS), 3_000).astype(int) * MINUTE
    written = np.argsort(created, kind="stable")
    return {name: values[written] for name, values in {**rows, "created": created}.items()}


def view_of(path: Path, rows: dict[str, np.ndarray], *, created: bool = False, sql: str | None = None) -> View:
    table = pa.table(rows)
    for name in ("ts", "created"):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table[name].cast(pa.timestamp("us", "UTC")))
    pq.write_table(table, path, row_group_size=4_096)
    feature = Feature("x", Field(name="x", dtype=Float64), pa.float64())
    transform = None if sql is None else Transform(lambda given: sql.format(rows=given), True)
    source = Source("v", str(path), "ts", "created" if created else None, transform=transform)
    return View("v", (Key("k", "k", pa.int64(), Int64),), (feature,), (feature,), (), source, ttl=0, every=0)


def questions(seed: int, count: int = 3_000) -> tuple[Spine, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    key, at = rng.integers(0, KEYS + 2, count), START + rng.integers(-10, 14_000, count) * MINUTE
    return Spine(pa.table({"k": key}), at, np.ones(count, bool)), key, at


def wanted(rows: dict[str, np.ndarray], key: np.ndarray, at: np.ndarray) -> list[float | None]:
    """Of the rows known at each question the one of the newest event; then the latest created, then the largest."""
    found = []
    known = np.maximum(rows["ts"], rows["created"])
    for k, moment in zip(key, at, strict=True):
        seen = np.flatnonzero((rows["k"] == k) & (known <= moment))
        order = np.lexsort((rows["x"][seen], rows["created"][seen], rows["ts"][seen]))
        found.append(float(rows["x"][seen[order[-1]]]) if len(seen) else None)
    return found


def test_rows_in_order_of_time_are_not_put_aside_nor_searched_by_key(tmp_path, passed_on, monkeypatch):
    def not_wanted(*_: object) -> None:
        raise AssertionError("rows were put aside")

    monkeypatch.setattr(Split, "__init__", not_wanted)
    rows = rows_of(1)
    spine, key, at = questions(2)
    with Session(threads=2) as session:
        (answer,) = as_of([view_of(tmp_path / "rows.parquet", rows)], spine, session)
    assert answer.features["x"].to_pylist() == wanted(rows, key, at)
    assert passed_on == []


@pytest.mark.parametrize(("share", "in_order"), [(0.001, True), (0.01, True), (0.3, False)])
def test_rows_behind_their_time_count_all_the_same(tmp_path, passed_on, share, in_order):
    rows = delayed(rows_of(3), share, 4)
    spine, key, at = questions(5)
    with Session(threads=2, temp_directory=str(tmp_path / "spill")) as session:
        (answer,) = as_of([view_of(tmp_path / "rows.parquet", rows)], spine, session)
    assert answer.features["x"].to_pylist() == wanted(rows, key, at)
    assert 0 < passed_on[0] <= ROWS * share * 1.2 if in_order else passed_on[0] == ROWS


def test_rows_that_become_known_later_are_ordered_by_when(tmp_path, passed_on):
    rows = told_late(rows_of(6), 7)
    spine, key, at = questions(8)
    with Session(threads=2) as session:
        (answer,) = as_of([view_of(tmp_path / "rows.parquet", rows, created=True)], spine, session)
    assert answer.features["x"].to_pylist() == wanted(rows, key, at)
    assert passed_on == []


def test_a_key_alone_most_of_whose_rows_come_behind_is_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(newest, "CELLS_OF_A_KEY", 30_000)
    rows = rows_of(16)
    written = np.append(np.arange(10_000) * 4, np.random.default_rng(17).permutation(ROWS))[:ROWS]
    rows = {name: values[written] for name, values in {**rows, "k": np.ones(ROWS, int)}.items()}
    key, at = np.ones(3, int), np.full(3, START + 20_000 * MINUTE)
    spine = Spine(pa.table({"k": key}), at, np.ones(3, bool))
    with Session(threads=2) as session:
        (answer,) = as_of([view_of(tmp_path / "rows.parquet", rows)], spine, session)
    assert answer.features["x"].to_pylist() == wanted(rows, key, at)


def test_every_row_of_one_moment(tmp_path):
    rows = rows_of(9)
    rows = {**rows, "ts": np.full(ROWS, START), "created": np.full(ROWS, START)}
    spine, key, at = questions(10, 200)
    with Session(threads=2) as session:
        (answer,) = as_of([view_of(tmp_path / "rows.parquet", rows)], spine, session)
    assert answer.features["x"].to_pylist() == wanted(rows, key, at)


def test_all_questions_after_the_last_row(tmp_path, passed_on):
    rows = rows_of(11)
    key, at = np.arange(KEYS), np.full(KEYS, START + 20_000 * MINUTE)
    spine = Spine(pa.table({"k": key}), at, np.ones(KEYS, bool))
    with Session(threads=2) as session:
        (answer,) = as_of([view_of(tmp_path / "rows.parquet", rows)], spine, session)
    assert answer.features["x"].to_pylist() == wanted(rows, key, at)
    assert passed_on == []


def test_what_seems_to_be_in_order_of_time():
    rng = np.random.default_rng(12)
    time, key = np.sort(rng.integers(0, 10_000, 8_000)), rng.integers(0, 50, 8_000)

    def batches(order: np.ndarray) -> list[pa.RecordBatch]:
        table = pa.table({"code": key[order], "event": time[order]})
        return table.combine_chunks().to_batches(1_000)

    of_two_threads = np.arange(8_000).reshape(2, 16, 250).transpose(1, 0, 2).ravel()
    assert seem_ordered(batches(np.arange(8_000)))
    assert seem_ordered(batches(of_two_threads))
    assert seem_ordered(batches(np.argsort(time + rng.integers(0, 50, 8_000))))
    assert not seem_ordered(batches(rng.permutation(8_000)))
    assert not seem_ordered(batches(np.lexsort((time, key))))


def test_a_stream_in_order_is_as_the_file_has_it_and_threads_come_back(tmp_path):
    view_of(tmp_path / "rows.parquet", rows_of(13))
    with Session(threads=2) as session:
        keys = session.hold("keys", pa.table({"code": np.arange(KEYS), "k": np.arange(KEYS)}))
        sql = f"select code, epoch_us(ts) as event from '{tmp_path}/rows.parquet' join {keys} using (k)"
        event = np.concatenate([batch["event"].to_numpy() for batch in session.stream(sql, 2_048, in_order=True)])
        assert len(event) == ROWS
        assert (event[1:] >= event[:-1]).all()
        left = session.stream(sql, 2_048, in_order=True)
        next(left)
        left.close()
        assert session.arrow("select current_setting('threads') as threads")["threads"].to_pylist() == [2]


def test_an_error_halfway_is_told_and_leaves_the_session_as_it_was(tmp_path):
    sql = "select * replace (case when ts >= '2013-01-04' then error('halfway') else x end as x) from {rows}"
    view = view_of(tmp_path / "rows.parquet", rows_of(14), sql=sql)
    with Session(threads=2) as session:
        with pytest.raises(EngineFailure, match="halfway"):
            as_of([view], questions(15)[0], session)
        assert session.arrow("select current_setting('threads') as threads")["threads"].to_pylist() == [2]
