"""Plain views over more rows than are searched at once: the same answers, and nothing left on disk."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from feast import Field
from feast.types import Float64, Int64, String

from asof import newest, search
from asof.definition import Feature, Key, View
from asof.engine import Spine, as_of
from asof.session import EngineFailure, Session
from asof.source import Source
from asof.transform import Transform

MINUTE = 60_000_000
START = 1_356_998_400_000_000
ROWS, KEYS = 12_000, 40


@pytest.fixture
def history() -> list[dict]:
    rng = np.random.default_rng(5)
    events = np.sort(rng.integers(0, 5_000, ROWS))
    return [
        {
            "key": (int(key), f"k{key % 3}"),
            "event": START + int(event) * MINUTE,
            "created": None if late > 3 else START + int(event + late * 40) * MINUTE,
            "x": float(x),
            "n": int(x * 3),
        }
        for event, key, late, x in zip(
            events,
            rng.integers(0, KEYS, ROWS) ** 2 // KEYS,
            rng.integers(0, 8, ROWS),
            rng.normal(size=ROWS),
            strict=True,
        )
    ]


@pytest.fixture
def asked() -> list[tuple]:
    rng = np.random.default_rng(6)
    spine = [
        ((int(key), f"k{key % 3}"), START + int(t) * MINUTE)
        for key, t in zip(rng.integers(0, KEYS + 2, 400), rng.integers(-10, 5_100, 400), strict=True)
    ]
    return [*spine, ((None, "k1"), START + 5_000 * MINUTE), ((1, None), START + 5_000 * MINUTE), *spine[:5]]


@pytest.fixture
def few_rows_at_once(monkeypatch) -> None:
    """Several batches of several parts, some of which are split again, however their rows are ordered."""
    limits = {"CELLS_AT_ONCE": 2_000, "PART_BITS": 2, "ROWS_OF_A_BATCH": 2_048}
    for name, limit in limits.items():
        monkeypatch.setattr(newest, name, limit)
    monkeypatch.setattr(search, "ROWS_AT_HAND", 50)
    monkeypatch.setattr(newest, "seem_ordered", lambda _: False)


def view_of(path: Path, *, created: bool, transform: Transform | None = None) -> View:
    features = (
        Feature("n", Field(name="n", dtype=Int64), pa.int64()),
        Feature("x", Field(name="x", dtype=Float64), pa.float64()),
    )
    keys = (Key("a", "a", pa.int64(), Int64), Key("b", "b", pa.string(), String))
    source = Source("v", str(path), "ts", "created" if created else None, transform=transform)
    return View("v", keys, features[1:], features, (), source, ttl=0, every=0)


def spine_of(asked: list[tuple]) -> Spine:
    keys = {
        "a": pa.array([key[0] for key, _ in asked], pa.int64()),
        "b": pa.array([key[1] for key, _ in asked], pa.string()),
    }
    return Spine(pa.table(keys), np.array([at for _, at in asked]), np.ones(len(asked), bool))


def wanted(oracle, history: list[dict], asked: list[tuple]) -> list:
    by_key: dict[tuple, list[dict]] = {}
    for row in history:
        by_key.setdefault(row["key"], []).append(row)
    rows = [oracle.latest(by_key.get(key, []), key, at, ["n", "x"]) for key, at in asked]
    return [None if row is None else row["x"] for row in rows]


def put(rows_to_parquet, path: Path, history: list[dict], *, created: bool) -> View:
    rows_to_parquet(path, history, ["a", "b"], {"x": pa.float64(), "n": pa.int64()})
    return view_of(path, created=created)


def on_time(history: list[dict]) -> list[dict]:
    return [{**row, "created": None} for row in history]


@pytest.mark.parametrize("shuffled", [False, True], ids=["in order of time", "in no order"])
@pytest.mark.parametrize("created", [False, True], ids=["known at once", "known late"])
def test_rows_searched_a_part_of_the_keys_at_a_time(
    oracle, rows_to_parquet, few_rows_at_once, history, asked, tmp_path, created, shuffled
):
    history = history if created else on_time(history)
    if shuffled:
        np.random.default_rng(7).shuffle(history)
    view = put(rows_to_parquet, tmp_path / "rows.parquet", history, created=created)
    with Session(threads=2, temp_directory=str(tmp_path / "spill")) as session:
        (answer,) = as_of([view], spine_of(asked), session)
    assert answer.features["x"].to_pylist() == wanted(oracle, history, asked)
    assert list((tmp_path / "spill").iterdir()) == []


def test_only_rows_that_tie_are_compared_by_sql(
    oracle, rows_to_parquet, few_rows_at_once, history, asked, tmp_path, monkeypatch
):
    def not_wanted(*_: object) -> None:
        raise AssertionError("the whole view was joined")

    monkeypatch.setattr(newest, "join", not_wanted)
    compared: list[int] = []
    untied = newest._untied

    def counted(view: View, code: np.ndarray, places: search.Places, *more: object) -> tuple:
        compared.append(np.count_nonzero(places.tied))
        return untied(view, code, places, *more)

    monkeypatch.setattr(newest, "_untied", counted)
    view = put(rows_to_parquet, tmp_path / "rows.parquet", on_time(history), created=False)
    with Session(threads=1) as session:
        (answer,) = as_of([view], spine_of(asked), session)
    assert answer.features["x"].to_pylist() == wanted(oracle, on_time(history), asked)
    assert 0 < sum(compared) < len(asked) // 4


def test_a_key_with_too_many_rows_is_joined_and_no_other(
    oracle, rows_to_parquet, few_rows_at_once, history, asked, tmp_path, monkeypatch
):
    monkeypatch.setattr(newest, "CELLS_OF_A_KEY", 6_000)
    joined: list[int] = []
    join = newest.join

    def counted(view: View, code: np.ndarray, at: np.ndarray, *more: object) -> search.Found:
        joined.extend(np.unique(code))
        return join(view, code, at, *more)

    monkeypatch.setattr(newest, "join", counted)
    hot = [{**row, "key": (0, "k0") if row["n"] > -2 else row["key"]} for row in history]
    view = put(rows_to_parquet, tmp_path / "rows.parquet", hot, created=True)
    with Session(threads=1) as session:
        (answer,) = as_of([view], spine_of(asked), session)
    assert answer.features["x"].to_pylist() == wanted(oracle, hot, asked)
    assert len(joined) == 1


def test_values_of_a_few_kinds_keep_their_type_on_disk(
    rows_to_parquet, few_rows_at_once, history, asked, tmp_path, monkeypatch
):
    sql = Transform(
        lambda rows: f"select *, (case when n % 2 = 0 then 'even' end)::enum('even') as e from {rows}", True
    )
    feature = Feature("e", Field(name="e", dtype=String), pa.string())
    view = put(rows_to_parquet, tmp_path / "rows.parquet", on_time(history), created=False)
    view = replace(view, source=replace(view.source, transform=sql), features=(feature, *view.features))
    answers = []
    for limit in (newest.CELLS_AT_ONCE, 1 << 30):
        monkeypatch.setattr(newest, "CELLS_AT_ONCE", limit)
        with Session(threads=1) as session:
            answers.append(as_of([view], spine_of(asked), session)[0].features)
    assert answers[0].equals(answers[1])
    assert set(answers[0]["e"].to_pylist()) == {None, "even"}


def test_an_error_halfway_leaves_no_file_open(rows_to_parquet, few_rows_at_once, history, asked, tmp_path):
    sql = Transform(
        lambda rows: (
            f"select * replace (case when ts >= '2013-01-04' then error('halfway') else x end as x) from {rows}"
        ),
        True,
    )
    view = put(rows_to_parquet, tmp_path / "rows.parquet", on_time(history), created=False)
    view = replace(view, source=replace(view.source, transform=sql))
    spill = tmp_path / "spill"
    with Session(threads=1, temp_directory=str(spill)) as session:
        with pytest.raises(EngineFailure, match="halfway"):
            as_of([view], spine_of(asked), session)
        assert session.arrow("select 1 as one")["one"].to_pylist() == [1]
    held = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert not [name for name in held if name.startswith(str(spill))]
    assert not spill.exists() or list(spill.iterdir()) == []
