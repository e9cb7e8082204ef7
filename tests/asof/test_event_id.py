"""An event that is told twice counts once, offline as online: the first known telling of it."""

from __future__ import annotations

from datetime import timedelta

import pandas as pd
import pyarrow as pa
import pytest
from feast import Entity, FeatureView, Field, FileSource, PushSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.types import Float64, Int64
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asof.repository import load_config
from asof.source import ColumnNotFound
from asof.view import InvalidView, compile_view

MINUTE = 60_000_000
START = 1_356_998_400_000_000
COLUMNS = {"x": pa.float64(), "id": pa.string(), "part": pa.int64()}

thing = Entity(name="thing", join_keys=["key"], value_type=ValueType.STRING)


def views(tag: str | None, on: str = "view") -> list:
    tags = {"asof.event_id": tag} if tag is not None else {}
    own, of_source, of_push = ({}, {}, {})
    {"view": own, "source": of_source, "push": of_push}[on].update(tags)
    source = FileSource(
        name="rows", path="data/rows.parquet", timestamp_field="ts", created_timestamp_column="created", tags=of_source
    )
    push = PushSource(name="push", batch_source=source, tags=of_push)
    plain = FeatureView(
        name="plain", entities=[thing], schema=[Field(name="x", dtype=Float64)], source=push, ttl=timedelta(0), tags=own
    )
    windows = StreamFeatureView(
        name="windows",
        entities=[thing],
        timestamp_field="ts",
        schema=[Field(name="n", dtype=Int64), Field(name="total", dtype=Float64)],
        source=push,
        aggregations=[
            Aggregation(column="x", function="count", time_window=timedelta(minutes=30), name="n"),
            Aggregation(column="x", function="sum", time_window=timedelta(minutes=30), name="total"),
        ],
        tags=own,
    )
    return [thing, plain, windows]


def once(rows: list[dict]) -> list[dict]:
    """The first known row of each event; a row without an id is an event of its own."""
    kept: dict = {}
    for row in rows:
        place = (row["id"], row["part"]) if row["id"] is not None and row["part"] is not None else id(row)
        known = max(row["event"], row["created"])
        if place not in kept or known < max(kept[place]["event"], kept[place]["created"]):
            kept[place] = row
    return list(kept.values())


@st.composite
def histories(draw) -> list[dict]:
    """Events told once or several times, later tellings with other times, keys and values."""
    rows = []
    for place in range(draw(st.integers(1, 12))):
        event = START + draw(st.integers(0, 120)) * MINUTE
        rows.append(
            {
                "key": (draw(st.sampled_from("ab")),),
                "event": event,
                # Each row becomes known at a moment of its own, so that there is a first one.
                "created": event + draw(st.integers(0, 90)) * MINUTE + place,
                "x": float(draw(st.integers(0, 5))),
                "id": draw(st.sampled_from(["one", "two", "three", None])),
                "part": draw(st.sampled_from([1, 2, None])),
            }
        )
    known = [max(row["event"], row["created"]) for row in rows]
    return rows if len(set(known)) == len(known) else rows[:1]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories(), on=st.sampled_from(["view", "source", "push"]))
def test_a_repeated_event_counts_once_in_training(make_store, tmp_path, oracle, rows_to_parquet, history, on):
    rows_to_parquet(tmp_path / "repo/data/rows.parquet", history, ["key"], COLUMNS)
    store = make_store(*views("id, part", on))
    asked = [(key, START + minutes * MINUTE) for key in "ab" for minutes in range(0, 240, 15)]
    frame = pd.DataFrame(
        {"key": [k for k, _ in asked], "event_timestamp": pd.to_datetime([t for _, t in asked], unit="us", utc=True)}
    )
    got = store.get_historical_features(frame, ["plain:x", "windows:n", "windows:total"]).to_arrow().to_pylist()
    events = once(history)
    for (key, moment), row in zip(asked, got, strict=True):
        newest = oracle.latest(events, (key,), moment, ["x"])
        assert row["x"] == (newest and newest["x"])
        assert row["n"] == oracle.window(events, (key,), moment, "count", "x", 30 * MINUTE)
        assert row["total"] == oracle.window(events, (key,), moment, "sum", "x", 30 * MINUTE)


def test_without_the_tag_every_row_counts(make_store, tmp_path, rows_to_parquet):
    row = {"key": ("a",), "event": START, "created": START, "x": 2.0, "id": "one", "part": 1}
    rows_to_parquet(tmp_path / "repo/data/rows.parquet", [row, row], ["key"], COLUMNS)
    store = make_store(*views(None))
    frame = pd.DataFrame({"key": ["a"], "event_timestamp": pd.to_datetime([START], unit="us", utc=True)})
    assert store.get_historical_features(frame, ["windows:total"]).to_df()["total"].tolist() == [4.0]


def test_a_tag_that_names_no_column_is_refused(make_store, tmp_path, rows_to_parquet):
    row = {"key": ("a",), "event": START, "created": START, "x": 2.0, "id": "one", "part": 1}
    rows_to_parquet(tmp_path / "repo/data/rows.parquet", [row], ["key"], COLUMNS)
    make_store(*views(None))
    config = load_config(tmp_path / "repo")
    with pytest.raises(InvalidView, match=r"'plain': tag asof.event_id must name columns, found 'id,'"):
        compile_view(views("id,")[1], config)
    store = make_store(*views("identity"), folder="repo")
    frame = pd.DataFrame({"key": ["a"], "event_timestamp": pd.to_datetime([START], unit="us", utc=True)})
    with pytest.raises(ColumnNotFound, match="event id 'identity'"):
        store.get_historical_features(frame, ["plain:x"]).to_df()
