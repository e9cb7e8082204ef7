"""Every feature of generated histories, against plain loops."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from feast import BatchFeatureView, Entity, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.aggregation import Aggregation
from feast.types import Float64, Int64, String
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asof import engine, newest
from asof.definition import Feature, Key, View, Window
from asof.engine import Spine, as_of
from asof.session import Session
from asof.source import Source
from asof.timeline import FOREVER
from asof.view import compile_view

MINUTE = 60_000_000
START = 1_356_998_400_000_000
FIELDS = {
    "x": Feature("x", Field(name="x", dtype=Float64), pa.float64()),
    "n": Feature("n", Field(name="n", dtype=Int64), pa.int64()),
    "s": Feature("s", Field(name="s", dtype=String), pa.string()),
}
# (1, 23) and (12, 3) read the same when run together; -1 stands before the epoch of nothing.
KEYS = [(1, "23"), (12, "3"), (1, "2"), (-1, "")]

numbers = st.one_of(
    st.sampled_from([0.1, -0.1, 2.5, 1e8 + 1, 1e8 - 1, 1e-9, math.nan, math.inf, -math.inf, 1e15]), st.none()
)
rows = st.builds(
    lambda key, event, late, x, n, s: {
        "key": key,
        "event": START + event * MINUTE,
        "created": None if late is None else START + (event + late) * MINUTE,
        "x": x,
        "n": n,
        "s": s,
    },
    st.sampled_from(KEYS[:3]),
    st.integers(0, 40),
    st.one_of(st.none(), st.integers(-3, 3), st.integers(0, 30)),
    numbers,
    st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([2**40, -(2**40)])),
    st.sampled_from([None, "a", "b", "", "é"]),
)
questions = st.tuples(
    st.sampled_from([*KEYS, (None, "23"), (1, None)]),
    st.one_of(st.none(), st.integers(-5, 80)),
)

# However a source writes its times.
KINDS = [
    pa.timestamp("us", "UTC"),
    pa.timestamp("ns", "UTC"),
    pa.timestamp("ms"),
    pa.timestamp("us", "America/New_York"),
]

FUNCTIONS = ["count", "count_distinct", "sum", "mean", "min", "max", "std", "var", "first", "last", "last_1", "last_4"]
AGGREGATIONS = [
    *itertools.product([*FUNCTIONS, "percentile_50", "percentile_90"], ["x", "n"]),
    *itertools.product(["count", "count_distinct", "first", "last", "last_3"], ["s"]),
    ("count", ""),
]


@pytest.fixture(scope="module")
def session():
    with Session(threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("histories")


_serial = itertools.count()


def view_of(path: Path, *, created: bool, every: int, ttl: int, features=("x", "n", "s"), windows=()) -> View:
    return View(
        name="v",
        keys=(Key("a", "a", pa.int64(), Int64), Key("b", "bb", pa.string(), String)),
        features=tuple(FIELDS[name] for name in features) if not windows else tuple(w.feature for w in windows),
        declared=tuple(FIELDS[name] for name in ("n", "s", "x")),
        windows=tuple(windows),
        source=Source("v", str(path), "ts", "created" if created else None),
        ttl=ttl * MINUTE,
        every=every * MINUTE,
        series=tuple(sorted({w.column for w in windows if w.function.startswith("last_")})),
    )


def spine_of(asked: list) -> Spine:
    keys = pa.table(
        {
            "a": pa.array([key[0] for key, _ in asked], pa.int64()),
            "bb": pa.array([key[1] for key, _ in asked], pa.string()),
        }
    )
    at = np.array([START + (0 if t is None else t) * MINUTE for _, t in asked], np.int64)
    return Spine(keys, at, np.array([t is not None for _, t in asked], bool))


def moment(t: int | None) -> int | None:
    return None if t is None else START + t * MINUTE


def same(got, want) -> bool:
    if got is None or want is None:
        return got is want
    if isinstance(want, float) and isinstance(got, float):
        return (math.isnan(got) and math.isnan(want)) or math.isclose(got, want, rel_tol=4e-16) or got == want
    return got == want


WAYS = {
    "searched": {},
    "some keys at a time": {"CELLS_AT_ONCE": 12, "PART_BITS": 1, "seem_ordered": lambda _: False},
    "some rows at a time": {
        "CELLS_AT_ONCE": 0,
        "PART_BITS": 1,
        "ROWS_FOR_A_KEY": 0,
        "seem_ordered": lambda _: True,
    },
    "keys with many rows joined by DuckDB": {"CELLS_AT_ONCE": 12, "CELLS_OF_A_KEY": 24, "PART_BITS": 1},
    "joined by DuckDB": {"CELLS_AT_ONCE": 0, "CELLS_OF_A_KEY": 0},
}


def follow(way: str, monkeypatch) -> None:
    for name, limit in WAYS[way].items():
        monkeypatch.setattr(newest, name, limit)
    if "ROWS_FOR_A_KEY" in WAYS[way]:  # of few rows DuckDB makes one batch
        stream = Session.stream

        def in_small_batches(self, sql: str, rows: int, *, in_order: bool = False):
            for batch in stream(self, sql, rows, in_order=in_order):
                yield from pa.Table.from_batches([batch]).to_batches(2) or [batch]

        monkeypatch.setattr(Session, "stream", in_small_batches)


@pytest.fixture
def few_rows_at_once(monkeypatch) -> None:
    follow("some keys at a time", monkeypatch)


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> None:
    follow(request.param, monkeypatch)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(rows, max_size=14),
    st.lists(questions, min_size=1, max_size=12),
    st.sampled_from([0, 7]),
    st.sampled_from([0, 10]),
    st.booleans(),
    st.sampled_from(KINDS),
    st.booleans(),
    st.booleans(),
)
def test_plain_views(
    oracle, rows_to_parquet, folder, session, way, history, asked, every, ttl, use_created, kind, renamed, in_order
):
    if in_order:
        history = sorted(history, key=lambda row: row["event"])
    if not use_created:
        history = [{**row, "created": None} for row in history]
    path = folder / f"{next(_serial)}.parquet"
    rows_to_parquet(path, history, ["a", "b"], {"x": pa.float64(), "n": pa.int64(), "s": pa.string()}, kind)
    asked = asked + asked[:2]  # a repeated row is answered twice
    view = view_of(path, created=use_created, every=every, ttl=ttl)
    if renamed:
        names = (("ts", "happened"), ("created", "told"), ("absent", "z"))
        source = replace(view.source, timestamp="happened", created="told" if use_created else None, renamed=names)
        view = replace(view, source=source)
    (answer,) = as_of([view], spine_of(asked), session)
    got = answer.features.to_pylist()
    assert len(got) == len(asked)
    for place, (key, t) in enumerate(asked):
        want = oracle.latest(history, key, moment(t), ["n", "s", "x"], every * MINUTE, ttl * MINUTE)
        assert answer.found[place] == (want is not None)
        for name in ("x", "n", "s"):
            assert same(got[place][name], None if want is None else want[name]), (place, name, want)
        if want is not None:
            assert answer.event[place] == want["event"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(rows, max_size=25),
    st.lists(questions, min_size=1, max_size=10),
    st.sampled_from([0, 7]),
    st.sampled_from([0, 4]),
    st.lists(st.sampled_from([1, 5, 12, 30, None]), min_size=1, max_size=2, unique=True),
    st.booleans(),
)
def test_windows(oracle, rows_to_parquet, folder, session, history, asked, every, slide, lengths, use_created):
    if not use_created:
        history = [{**row, "created": None} for row in history]
    path = folder / f"{next(_serial)}.parquet"
    rows_to_parquet(path, history, ["a", "b"], {"x": pa.float64(), "n": pa.int64(), "s": pa.string()})
    windows = [
        Window(
            Feature(f"{function}_{column}_{length}", Field(name="f", dtype=Float64), None),
            function,
            column,
            FOREVER if length is None else length * MINUTE,
            slide * MINUTE,
        )
        for (function, column), length in itertools.product(AGGREGATIONS, lengths)
    ]
    view = view_of(path, created=use_created, every=every, ttl=0, windows=windows)
    (answer,) = as_of([view], spine_of(asked), session)
    got = answer.features.to_pylist()
    assert len(got) == len(asked)
    for place, (key, t) in enumerate(asked):
        for window in windows:
            want = oracle.window(
                history,
                key,
                moment(t),
                window.function,
                window.column,
                window.length,
                every * MINUTE,
                slide * MINUTE,
            )
            assert same(got[place][window.feature.name], want), (key, t, window, want)


# One view asked about several things of a row, as a flight's origin and its destination: Feast's aliases.
INTEGERS, TEXTS = ("a", "i", "ab"), ("b", "s", "bb")
aliases = st.tuples(st.sampled_from(INTEGERS), st.sampled_from(TEXTS))
roles = st.fixed_dictionaries(
    {name: st.sampled_from([1, 12, -1, None]) for name in INTEGERS}
    | {name: st.sampled_from(["23", "3", "2", None]) for name in TEXTS}
    | {"at": st.one_of(st.none(), st.integers(-5, 80))}
)
ENTITIES = [
    Entity(name="of_a", join_keys=["a"], value_type=ValueType.INT64),
    Entity(name="of_b", join_keys=["b"], value_type=ValueType.STRING),
]


def feast_views(path: Path, created: bool) -> tuple[FeatureView, BatchFeatureView]:
    source = FileSource(
        name="rows", path=str(path), timestamp_field="ts", created_timestamp_column="created" if created else ""
    )
    plain = FeatureView(name="plain", entities=ENTITIES, ttl=timedelta(minutes=20), schema=SCHEMA, source=source)
    total = Aggregation(column="n", function="sum", time_window=timedelta(minutes=12), name="total")
    schema = [*KEY_FIELDS, Field(name="total", dtype=Int64)]
    windowed = BatchFeatureView(name="windowed", entities=ENTITIES, schema=schema, source=source, aggregations=[total])
    return plain, windowed


KEY_FIELDS = [Field(name="a", dtype=Int64), Field(name="b", dtype=String)]
SCHEMA = [*KEY_FIELDS, Field(name="n", dtype=Int64), Field(name="x", dtype=Float64)]
CONFIG = RepoConfig(project="p", provider="local", registry="r.db", entity_key_serialization_version=3)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(rows, max_size=14),
    st.lists(roles, min_size=1, max_size=10),
    st.lists(aliases, min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([0, engine.ROWS_WORTH_A_THREAD]),
)
def test_views_under_join_key_maps(
    oracle, rows_to_parquet, folder, session, few_rows_at_once, history, asked, maps, use_created, worth_a_thread
):
    if not use_created:
        history = [{**row, "created": None} for row in history]
    path = folder / f"{next(_serial)}.parquet"
    rows_to_parquet(path, history, ["a", "b"], {"x": pa.float64(), "n": pa.int64()})
    views = []
    for number, (integer, text) in enumerate(maps):
        # Feast keeps only what a map renames; "a" for "a" is as good as leaving it out.
        renamed = {name: column for name, column in (("a", integer), ("b", text)) if name != column}
        for feast_view in feast_views(path, use_created):
            alias = feast_view.with_name(f"{feast_view.name}_{number}").with_join_key_map(renamed)
            views.append(compile_view(alias, CONFIG))
    columns = {name: pa.array([row[name] for row in asked], pa.int64()) for name in INTEGERS}
    columns |= {name: pa.array([row[name] for row in asked], pa.string()) for name in TEXTS}
    at = np.array([START + (0 if row["at"] is None else row["at"]) * MINUTE for row in asked])
    spine = Spine(pa.table(columns), at, np.array([row["at"] is not None for row in asked]))
    with mock.patch.object(engine, "ROWS_WORTH_A_THREAD", worth_a_thread):
        answers = as_of(views, spine, session)
    for (integer, text), plain, windowed in zip(maps, answers[::2], answers[1::2], strict=True):
        for place, row in enumerate(asked):
            key = (row[integer], row[text])
            want = oracle.latest(history, key, moment(row["at"]), ["n", "x"], 0, 20 * MINUTE)
            for name in ("n", "x"):
                got = plain.features[name][place].as_py()
                assert same(got, None if want is None else want[name]), (integer, text, row, name)
            total = oracle.window(history, key, moment(row["at"]), "sum", "n", 12 * MINUTE)
            assert windowed.features["total"][place].as_py() == total, (integer, text, row)
