"""A push makes the online values of its keys what `as_of` says over source and pushed rows, whatever comes when."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.types import Array, Float64, Int64
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asof import hooks, runs
from asof.hooks import pusher_of
from asof.landing import replace
from asof.materialize import materialize
from asof.recent import RecentRows
from asof.session import Session

MINUTE = 60_000_000
START = 1_356_998_400_000_000
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
UTC_MICROS = pa.timestamp("us", tz="UTC")
FEATURES = ["plain:x", "windows:n", "windows:total", "windows:ever", "windows:recent"]
FEATURES += ["scalars:few", "scalars:sum_60", "scalars:newest", "scalars:different", "scalars:least"]
FOLDERS = itertools.count()

thing = Entity(name="thing", join_keys=["key"], value_type=ValueType.STRING)


def when(minutes: float) -> datetime:
    return datetime.fromtimestamp(START / 1e6, UTC) + timedelta(minutes=minutes)


def views(*, event_id: bool = False, every: str | None = None) -> list[Any]:
    tags = ({"asof.event_id": "id"} if event_id else {}) | ({"asof.every": every} if every else {})
    source = FileSource(
        name="rows",
        path="data/rows",
        timestamp_field="ts",
        created_timestamp_column="created",
        field_mapping={"raw_x": "x"},
    )
    push = PushSource(name="push", batch_source=source)
    aggregations = [
        Aggregation(column="x", function="count", time_window=timedelta(minutes=30), name="n"),
        Aggregation(column="x", function="sum", time_window=timedelta(minutes=60), name="total"),
        Aggregation(column="x", function="max", time_window=None, name="ever"),
        Aggregation(column="x", function="last_3", time_window=timedelta(minutes=60), name="recent"),
    ]
    scalars = [
        Aggregation(column="x", function="count", time_window=timedelta(minutes=15), name="few"),
        Aggregation(column="x", function="sum", time_window=timedelta(minutes=60), name="sum_60"),
        Aggregation(column="x", function="last", time_window=timedelta(minutes=60), name="newest"),
        Aggregation(column="x", function="count_distinct", time_window=timedelta(minutes=60), name="different"),
        Aggregation(column="x", function="min", time_window=None, name="least"),
    ]
    fields = [Field(name="n", dtype=Int64), Field(name="total", dtype=Float64), Field(name="ever", dtype=Float64)]
    fields.append(Field(name="recent", dtype=Array(Float64)))
    return [
        thing,
        FeatureView(
            name="plain",
            entities=[thing],
            schema=[Field(name="x", dtype=Float64)],
            source=push,
            ttl=timedelta(0),
            tags=tags,
        ),
        StreamFeatureView(
            name="windows",
            entities=[thing],
            timestamp_field="ts",
            schema=fields,
            source=push,
            aggregations=aggregations,
            tags=tags,
        ),
        StreamFeatureView(
            name="scalars",
            entities=[thing],
            timestamp_field="ts",
            schema=[
                Field(name=each.name, dtype=Int64 if each.function.startswith("count") else Float64) for each in scalars
            ],
            source=push,
            aggregations=scalars,
            tags=tags,
        ),
    ]


def row(key: str, event: float, x: float | None, id: str, created: float | None = None) -> dict[str, Any]:
    """As the oracle wants it; times in minutes from the start."""
    known = None if created is None else START + int(created * MINUTE)
    return {"key": (key,), "event": START + int(event * MINUTE), "created": known, "x": x, "id": id}


def as_table(rows: list[dict]) -> pa.Table:
    return pa.table(
        {
            "key": pa.array([r["key"][0] for r in rows], pa.string()),
            "ts": pa.array([r["event"] for r in rows], pa.int64()).cast(UTC_MICROS),
            "created": pa.array([r["created"] for r in rows], pa.int64()).cast(UTC_MICROS),
            "raw_x": pa.array([r["x"] for r in rows], pa.float64()),
            "id": pa.array([r["id"] for r in rows], pa.string()),
        }
    )


def frame(rows: list[dict]) -> pd.DataFrame:
    """Without the created column, as somebody pushes who learns of an event now."""
    return as_table(rows).to_pandas().drop(columns="created")


def push(store: FeatureStore, rows: list[dict], minutes: float, *, offline: bool = False) -> None:
    fed = [store.get_feature_view("plain"), *map(store.get_stream_feature_view, ("windows", "scalars"))]
    pusher_of(store).push(fed, frame(rows), online=True, offline=offline, clock=lambda: when(minutes))


def served(store: FeatureStore, key: str) -> tuple:
    answer = store.get_online_features(FEATURES, entity_rows={"key": [key]}).to_dict()
    x, n, total, ever, recent, few, *sums, different, least = (answer[name.partition(":")[2]][0] for name in FEATURES)
    return x, n or 0, total, ever, recent, few or 0, *sums, different or 0, least


def expected(oracle, rows: list[dict], key: str, moment: int, every: int = 0) -> tuple:
    newest = oracle.latest(rows, (key,), moment, ["x"], every)
    return (
        newest and newest["x"],
        oracle.window(rows, (key,), moment, "count", "x", 30 * MINUTE, every),
        oracle.window(rows, (key,), moment, "sum", "x", 60 * MINUTE, every),
        oracle.window(rows, (key,), moment, "max", "x", 1 << 60, every),
        oracle.window(rows, (key,), moment, "last_3", "x", 60 * MINUTE, every),
        oracle.window(rows, (key,), moment, "count", "x", 15 * MINUTE, every),
        oracle.window(rows, (key,), moment, "sum", "x", 60 * MINUTE, every),
        oracle.window(rows, (key,), moment, "last", "x", 60 * MINUTE, every),
        oracle.window(rows, (key,), moment, "count_distinct", "x", 60 * MINUTE, every),
        oracle.window(rows, (key,), moment, "min", "x", 1 << 60, every),
    )


def once(rows: list[dict]) -> list[dict]:
    """The first known row of each event; of those known at one moment the earliest event."""
    kept: dict = {}
    for each in rows:
        known = (max(each["event"], each["created"]), each["event"])
        if each["id"] not in kept or known < kept[each["id"]][0]:
            kept[each["id"]] = known, each
    return [each for _, each in kept.values()]


key_hashes = RecentRows._key_hashes


def one_hash(_: RecentRows, rows: pa.Table, __: Session) -> np.ndarray:
    return np.zeros(rows.num_rows, np.uint64)


@st.composite
def stories(draw) -> list[tuple[str, float, list[dict]]]:
    """What happens, in order: pushes (online only, or to the source too), files that land, materializations."""
    story, now, ids = [], 30.0, itertools.count()
    for _ in range(draw(st.integers(1, 6))):
        now += draw(st.sampled_from([0.5, 1, 7, 15, 40]))
        kind = draw(st.sampled_from(["online", "online", "both", "land", "materialize"]))
        rows = []
        for _ in range(draw(st.integers(1, 4)) if kind != "materialize" else 0):
            event = now - draw(st.sampled_from([0, 0.25, 1, 5, 14, 29, 31, 59, 80, -1, -10]))
            told = f"e{draw(st.integers(0, 3))}" if draw(st.integers(0, 3)) == 0 else f"n{next(ids)}"
            # One value an event of a key and moment: ties between values are for other tests.
            x = draw(st.sampled_from([None, 1.0, 2.5]))
            created = min(event, now) if kind == "land" else None
            rows.append(row(draw(st.sampled_from("ab")), event + next(ids) / 1000, x, told, created))
        story.append((kind, now, rows))
    return story


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    story=stories(),
    event_id=st.booleans(),
    every=st.sampled_from([None, "15m"]),
    forgetful=st.booleans(),
    crowded=st.booleans(),
)
def test_pushed_equals_materialized_equals_as_of(
    make_store, tmp_path, monkeypatch, oracle, story, event_id, every, forgetful, crowded
):
    # Crowded: all keys have one hash, and more than two rows are merged while others are pushed.
    monkeypatch.setattr(runs, "ROWS_AT_ONCE", 2 if crowded else 1 << 16)
    monkeypatch.setattr(RecentRows, "_key_hashes", one_hash if crowded else key_hashes)
    folder = f"repo{next(FOLDERS)}"
    source = tmp_path / folder / "data/rows"
    rows = [row("a", -500, 9.0, "old", -500), row("a", 5, 1.0, "e0", 20), row("b", 29, 2.0, "e1", 29)]
    replace(source / "first.parquet", as_table(rows))
    store = make_store(*views(event_id=event_id, every=every), folder=folder)
    step = 15 * MINUTE if every else 0
    for kind, minutes, more in story:
        moment = START + int(minutes * MINUTE)
        if forgetful:  # another process pushes
            hooks._pushers.pop(store, None)
        if kind == "materialize":
            materialize(store, LONG_AGO, when(minutes))
        elif kind == "land":
            replace(source / f"{minutes}.parquet", as_table(more))
        else:
            push(store, more, minutes, offline=kind == "both")
        rows = rows + [{**r, "created": moment} if r["created"] is None else r for r in more]
        events = once(rows) if event_id else rows
        touched = {"land": set(), "materialize": set("ab")}.get(kind, {r["key"][0] for r in more})
        for key in touched:
            assert served(store, key) == expected(oracle, events, key, moment, step), (kind, minutes, key)
