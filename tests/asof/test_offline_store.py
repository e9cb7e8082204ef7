"""Retrieval through Feast's own interface."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import (
    BatchFeatureView,
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    RequestSource,
    StreamFeatureView,
    ValueType,
)
from feast.aggregation import Aggregation
from feast.data_format import FileFormat, ParquetFormat
from feast.data_source import PushMode
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Float32, Float64, Int64, String, UnixTimestamp

from asof.aggregate import AggregationTypeMismatch, UnknownAggregation
from asof.dtypes import TypeMismatch
from asof.engine import KeyTypeMismatch
from asof.entities import InvalidEntityRows
from asof.landing import LandingMismatch
from asof.offline_store import AsofOfflineStore, AsofOfflineStoreConfig, DuplicateColumn
from asof.retrieval import SavedDatasetExists
from asof.session import EngineFailure, SourceNotFound
from asof.source import ColumnNotFound, NotATimestamp
from asof.view import InvalidView, UnsupportedView, compile_view, file_source

DAY = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)

driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)


def at(hours: float) -> datetime:
    return DAY + hours * HOUR


def land(path: Path, rows: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(rows)
    for name in table.column_names:
        if pa.types.is_timestamp(table.schema.field(name).type) and table.schema.field(name).type.tz is None:
            table = table.set_column(
                table.column_names.index(name),
                name,
                table[name].cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC")),
            )
    pq.write_table(table, path)


def stats(tmp_path: Path) -> FileSource:
    land(
        tmp_path / "repo/data/stats.parquet",
        {
            "driver_id": [1, 1, 1, 2],
            "ts": [at(0), at(2), at(4), at(1)],
            "created": [at(0), at(2), at(9), at(1)],  # the third was known five hours late
            "rate": [0.5, 0.7, 0.9, 0.1],
            "trips": [1.7, 2.2, None, 7.0],
            "tags": [["a"], [], None, ["b", "c"]],
        },
    )
    return FileSource(name="stats", path="data/stats.parquet", timestamp_field="ts", created_timestamp_column="created")


def stats_view(tmp_path: Path, **more) -> FeatureView:
    return FeatureView(
        **{
            "name": "stats",
            "entities": [driver],
            "ttl": timedelta(hours=6),
            "schema": [
                Field(name="rate", dtype=Float64),
                Field(name="trips", dtype=Int64),
                Field(name="tags", dtype=Array(String)),
            ],
            "source": stats(tmp_path),
            **more,
        }
    )


ASKED = pd.DataFrame(
    {
        "driver_id": [2, 1, 1, 3, 1, 1, 1],
        "event_timestamp": [at(1), at(3), at(3), at(3), at(5), at(9), at(-1)],
        "note": list("abcdefg"),
    }
)
RATES = [0.1, 0.7, 0.7, None, 0.7, 0.9, None]


def test_rows_come_back_in_order_repeated_ones_too_and_late_values_wait(tmp_path, make_store):
    store = make_store(driver, stats_view(tmp_path))
    got = store.get_historical_features(ASKED, ["stats:rate", "stats:trips", "stats:tags"]).to_arrow()
    assert got["note"].to_pylist() == list("abcdefg")
    assert got["rate"].to_pylist() == RATES
    assert got["trips"].to_pylist() == [7, 2, 2, None, 2, None, None]  # declared Int64: the fraction is dropped
    assert got["tags"].to_pylist() == [["b", "c"], [], [], None, [], None, None]
    assert got.schema.field("event_timestamp").type == pa.timestamp("us", "UTC")
    assert got.schema.field("trips").type == pa.int64()


@pytest.mark.parametrize(
    "form", ["polars", "lazy", "arrow", "sql", "naive", "text", "new_york", "nanoseconds", "object", "views"]
)
def test_every_form_of_entity_rows_gives_the_same_features(tmp_path, make_store, form):
    store = make_store(driver, stats_view(tmp_path))
    frame = ASKED
    if form == "naive":
        frame = ASKED.assign(event_timestamp=ASKED.event_timestamp.dt.tz_localize(None))
    elif form == "text":
        frame = ASKED.assign(event_timestamp=ASKED.event_timestamp.astype(str))
    elif form == "new_york":
        frame = ASKED.assign(event_timestamp=ASKED.event_timestamp.dt.tz_convert("America/New_York"))
    elif form == "nanoseconds":
        frame = ASKED.assign(event_timestamp=ASKED.event_timestamp.astype("datetime64[ns, UTC]"))
    elif form == "object":
        frame = ASKED.assign(event_timestamp=ASKED.event_timestamp.dt.tz_convert("Asia/Tokyo").astype(object))
    elif form == "views":  # Arrow as Polars keeps it: string views, dictionaries
        coded = pl.from_pandas(ASKED).with_columns(pl.col("driver_id").cast(str), pl.col("note").cast(pl.Categorical))
        frame = coded.to_arrow(compat_level=pl.CompatLevel.newest())
        assert frame.schema.field("driver_id").type == pa.string_view()
    elif form == "polars":
        frame = pl.from_pandas(ASKED)
    elif form == "lazy":
        frame = pl.from_pandas(ASKED).lazy()
    elif form == "arrow":
        frame = pa.Table.from_pandas(ASKED)
    elif form == "sql":
        pq.write_table(pa.Table.from_pandas(ASKED), tmp_path / "repo/asked.parquet")
        frame = "select * from 'asked.parquet'"  # relative to the repository
    job = store.get_historical_features(frame, ["stats:rate"])
    assert job.to_arrow()["rate"].to_pylist() == RATES
    assert job.to_polars()["rate"].to_list() == RATES
    assert job.to_df()["rate"].fillna(-1).tolist() == [-1 if rate is None else rate for rate in RATES]


def test_the_known_filter_is_on_whether_asked_or_not(tmp_path, make_store):
    store = make_store(driver, stats_view(tmp_path))
    asked = store.get_historical_features(ASKED, ["stats:rate"], filter_by_created_timestamp=True)
    assert asked.to_arrow()["rate"].to_pylist() == RATES


def test_a_missing_key_or_time_gives_nulls(tmp_path, make_store):
    store = make_store(driver, stats_view(tmp_path))
    frame = pd.DataFrame({"driver_id": [None, 1, 1], "event_timestamp": [at(3), pd.NaT, at(3)]})
    assert store.get_historical_features(frame, ["stats:rate"]).to_arrow()["rate"].to_pylist() == [None, None, 0.7]


def test_ttl_keeps_its_boundary(tmp_path, make_store):
    store = make_store(driver, stats_view(tmp_path))
    last, tick = at(1) + timedelta(hours=6), timedelta(microseconds=1)
    frame = pd.DataFrame({"driver_id": [2, 2], "event_timestamp": [last, last + tick]})
    assert store.get_historical_features(frame, ["stats:rate"]).to_arrow()["rate"].to_pylist() == [0.1, None]


def test_full_names_and_one_view_under_two_entities(tmp_path, make_store):
    view = stats_view(tmp_path)
    pair = FeatureService(
        name="pair",
        features=[
            view[["rate"]].with_name("one").with_join_key_map({"driver_id": "one_id"}),
            view[["rate"]].with_name("other").with_join_key_map({"driver_id": "other_id"}),
        ],
    )
    store = make_store(driver, view, pair)
    frame = pd.DataFrame({"one_id": [1, 2], "other_id": [2, 1], "event_timestamp": [at(3), at(3)]})
    got = store.get_historical_features(frame, store.get_feature_service("pair"), full_feature_names=True).to_arrow()
    assert got["one__rate"].to_pylist() == [0.7, 0.1]
    assert got["other__rate"].to_pylist() == [0.1, 0.7]


def test_mapped_columns_and_a_view_without_entities(tmp_path, make_store):
    land(tmp_path / "repo/data/global.parquet", {"raw": [1.0, 2.0], "ts": [at(0), at(2)]})
    source = FileSource(
        name="g", path="data/global.parquet", timestamp_field="ts", field_mapping={"raw": "load", "absent": "x"}
    )
    view = FeatureView(name="g", entities=[], schema=[Field(name="load", dtype=Float32)], source=source)
    store = make_store(view)
    frame = pd.DataFrame({"event_timestamp": [at(1), at(3), at(-1)]})
    got = store.get_historical_features(frame, ["g:load"]).to_arrow()
    assert got["load"].to_pylist() == [1.0, 2.0, None]
    assert got.schema.field("load").type == pa.float32()


def test_times_as_features_are_whole_seconds_as_online(tmp_path, make_store):
    land(tmp_path / "repo/data/t.parquet", {"driver_id": [1], "ts": [at(0)], "seen": [at(0) + timedelta(seconds=1.5)]})
    source = FileSource(name="t", path="data/t.parquet", timestamp_field="ts")
    view = FeatureView(name="t", entities=[driver], schema=[Field(name="seen", dtype=UnixTimestamp)], source=source)
    store = make_store(driver, view)
    frame = pd.DataFrame({"driver_id": [1], "event_timestamp": [at(1)]})
    got = store.get_historical_features(frame, ["t:seen"]).to_arrow()["seen"]
    assert got.to_pylist() == [at(0) + timedelta(seconds=1)]


def test_hive_folders_skip_hidden_files_and_keep_nanoseconds_readable(tmp_path, make_store):
    for month, hours in (("01", [0, 1]), ("02", [2, 3])):
        frame = pd.DataFrame({"driver_id": [1, 1], "ts": [at(h) for h in hours], "v": [float(h) for h in hours]})
        frame["ts"] = frame["ts"].astype("datetime64[ns, UTC]")
        folder = tmp_path / f"repo/data/events/month={month}"
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pandas(frame), folder / "part.parquet")
    (folder / "_unfinished.parquet").write_bytes(b"half")
    (folder / ".hidden.parquet").write_bytes(b"half")
    view = FeatureView(
        name="e",
        entities=[driver],
        schema=[Field(name="v", dtype=Float64)],
        source=FileSource(name="e", path="data/events", timestamp_field="ts"),
    )
    store = make_store(driver, view)
    frame = pd.DataFrame({"driver_id": [1, 1], "event_timestamp": [at(1.5), at(9)]})
    assert store.get_historical_features(frame, ["e:v"]).to_arrow()["v"].to_pylist() == [1.0, 3.0]


def test_without_entity_rows_the_views_own_events_are_asked_about(tmp_path, make_store):
    store = make_store(driver, stats_view(tmp_path))
    got = store.get_historical_features(features=["stats:rate"], start_date=at(1), end_date=at(10)).to_arrow()
    rows = list(zip(*(got[name].to_pylist() for name in ("driver_id", "event_timestamp", "rate")), strict=True))
    assert rows == [(1, at(2), 0.7), (1, at(9), 0.9), (2, at(1), 0.1)]
    with pytest.raises(InvalidEntityRows, match="end date"):
        AsofOfflineStore.get_historical_features(store.config, [], [], None, store.registry, "demo")


def test_on_demand_views_run_over_the_result(tmp_path, make_store):
    view = stats_view(tmp_path)
    request = RequestSource(name="r", schema=[Field(name="factor", dtype=Float64)])

    @on_demand_feature_view(sources=[view, request], schema=[Field(name="scaled", dtype=Float64)], mode="python")
    def scaled(inputs):
        pairs = zip(inputs["rate"], inputs["factor"], strict=True)
        return {"scaled": [None if rate is None else rate * factor for rate, factor in pairs]}

    store = make_store(driver, view, request, scaled)
    frame = pd.DataFrame({"driver_id": [1, 3], "event_timestamp": [at(3), at(3)], "factor": [10.0, 10.0]})
    got = store.get_historical_features(frame, ["scaled:scaled"]).to_arrow()
    assert got["scaled"].to_pylist() == [7.0, None]


def windowed(tmp_path: Path, *aggregations: Aggregation, **more) -> StreamFeatureView:
    source = stats(tmp_path)
    return StreamFeatureView(
        **{
            "name": "w",
            "entities": [driver],
            "timestamp_field": "ts",
            "schema": [Field(name=a.resolved_name(a.time_window), dtype=Float64) for a in aggregations],
            "source": PushSource(name="push", batch_source=source),
            "aggregations": list(aggregations),
            **more,
        }
    )


def test_windows_through_feast_named_as_feast_names_them(tmp_path, make_store):
    view = windowed(
        tmp_path,
        Aggregation(column="rate", function="sum", time_window=3 * HOUR),
        Aggregation(column="rate", function="count", time_window=3 * HOUR, name="n"),
        Aggregation(column="rate", function="max", name="ever"),
    )
    store = make_store(driver, view)
    frame = pd.DataFrame({"driver_id": [1, 1, 1, 3], "event_timestamp": [at(2), at(3), at(9), at(9)]})
    got = store.get_historical_features(frame, ["w:sum_rate_10800s", "w:n", "w:ever"]).to_arrow()
    # at 3: (0, 3] leaves the event at 0 out; at 9: the late event happened at 4, outside (6, 9].
    assert got["sum_rate_10800s"].to_pylist() == [1.2, 0.7, None, None]
    assert got["n"].to_pylist() == [2.0, 1.0, 0.0, 0.0]
    assert got["ever"].to_pylist() == [0.7, 0.7, 0.9, None]


def test_saved_datasets_write_whole_and_read_back(tmp_path, make_store):
    store = make_store(driver, stats_view(tmp_path))
    frame = ASKED[ASKED.event_timestamp.notna()]
    job = store.get_historical_features(frame, ["stats:rate"])
    storage = SavedDatasetFileStorage(path="data/saved.parquet")
    store.create_saved_dataset(job, "saved", storage)
    back = store.get_saved_dataset("saved").to_df().sort_values("event_timestamp", kind="stable")
    assert len(back) == len(ASKED)
    with pytest.raises(SavedDatasetExists, match="allow_overwrite"):
        job.persist(storage)
    job.persist(storage, allow_overwrite=True)
    assert [path.name for path in (tmp_path / "repo/data").glob("*saved*")] == ["saved.parquet"]


def test_pulls(tmp_path, make_store):
    store = make_store(driver, stats_view(tmp_path))
    source = store.get_data_source("stats")
    common = (store.config, source, ["driver_id"], ["rate"], "ts", "created")
    newest = AsofOfflineStore.pull_latest_from_table_or_query(*common, at(0), at(3)).to_arrow().sort_by("driver_id")
    assert newest["rate"].to_pylist() == [0.7, 0.1]
    assert newest.schema.field("ts").type == pa.timestamp("us", "UTC")
    everything = AsofOfflineStore.pull_all_from_table_or_query(*common).to_arrow()
    assert sorted(everything["rate"].to_pylist()) == [0.1, 0.5, 0.7, 0.9]
    some = AsofOfflineStore.pull_all_from_table_or_query(*common, start_date=at(1), end_date=at(2)).to_arrow()
    assert sorted(some["rate"].to_pylist()) == [0.1, 0.7]


def test_pushing_to_the_offline_store_appends(tmp_path, make_store):
    land(tmp_path / "repo/data/p.parquet", {"driver_id": [1], "ts": [at(0)], "v": [1.0]})
    source = PushSource(name="pushed", batch_source=FileSource(name="p", path="data/p.parquet", timestamp_field="ts"))
    view = FeatureView(name="p", entities=[driver], schema=[Field(name="v", dtype=Float64)], source=source)
    store = make_store(driver, view)
    store.push("pushed", pd.DataFrame({"driver_id": [1], "ts": [at(1)], "v": [2.0]}), to=PushMode.OFFLINE)
    frame = pd.DataFrame({"driver_id": [1, 1], "event_timestamp": [at(0.5), at(2)]})
    assert store.get_historical_features(frame, ["p:v"]).to_arrow()["v"].to_pylist() == [1.0, 2.0]
    wrong = pa.table({"driver_id": [1], "v": [1.0]})
    with pytest.raises(LandingMismatch, match="ts"):
        AsofOfflineStore.offline_write_batch(store.config, view, wrong, None)


def test_writing_to_a_folder_adds_a_file(tmp_path, make_store):
    land(tmp_path / "repo/data/folder/a.parquet", {"driver_id": [1], "ts": [at(0)], "v": [1.0]})
    source = FileSource(name="p", path="data/folder", timestamp_field="ts")
    view = FeatureView(name="p", entities=[driver], schema=[Field(name="v", dtype=Float64)], source=source)
    store = make_store(driver, view)
    done = []
    rows = pa.table({"v": [2.0], "driver_id": [1], "ts": pa.array([at(1)], pa.timestamp("us", "UTC"))})
    AsofOfflineStore.offline_write_batch(store.config, view, rows, done.append)
    assert done == [1]
    assert pq.read_table(tmp_path / "repo/data/folder").num_rows == 2


def test_settings_reach_duckdb(tmp_path, make_store):
    from asof.offline_store import open_session

    yaml = (
        "project: demo\nprovider: local\nregistry: data/registry.db\nonline_store: {type: sqlite, path: data/o.db}\n"
        "offline_store: {type: asof.offline_store.AsofOfflineStore, threads: 1, memory_limit: 200MB}\n"
        "entity_key_serialization_version: 3\n"
    )
    store = make_store(driver, stats_view(tmp_path), yaml=yaml)
    assert isinstance(store.config.offline_store, AsofOfflineStoreConfig)
    with open_session(store.config) as session:
        got = session.arrow("select current_setting('threads') as t, current_setting('memory_limit') as m").to_pylist()
    assert got == [{"t": 1, "m": "190.7 MiB"}]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"schema": [Field(name="rat", dtype=Float64)]}, ColumnNotFound, "Did you mean 'rate'"),
        ({"tags": {"asof.every": "often"}}, InvalidView, "asof.every"),
        ({"tags": {"asof.every": "0h"}}, InvalidView, "asof.every"),
    ],
)
def test_a_wrong_view_is_refused_by_name(tmp_path, make_store, change, error, says):
    store = make_store(driver, stats_view(tmp_path, **change))
    feature = store.get_feature_view("stats").features[0].name
    with pytest.raises(error, match="'stats'") as caught:
        store.get_historical_features(ASKED, [f"stats:{feature}"]).to_arrow()
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("aggregation", "error", "says"),
    [
        (Aggregation(column="tags", function="sum", time_window=HOUR), AggregationTypeMismatch, "VARCHAR"),
        (Aggregation(column="nope", function="sum", time_window=HOUR), ColumnNotFound, "nope"),
        (Aggregation(column="rate", function="average_ish", time_window=HOUR), UnknownAggregation, "percentile"),
    ],
)
def test_a_wrong_window_is_refused_before_any_row_is_read(tmp_path, make_store, aggregation, error, says):
    view = windowed(tmp_path, aggregation)
    store = make_store(driver, view)
    with pytest.raises(error) as caught:
        store.get_historical_features(ASKED, [f"w:{view.features[0].name}"]).to_arrow()
    assert says in str(caught.value)


def test_a_feature_no_aggregation_yields(tmp_path, make_store):
    aggregation = Aggregation(column="rate", function="sum", time_window=HOUR, name="total")
    view = windowed(tmp_path, aggregation, schema=[Field(name="totl", dtype=Float64)])
    store = make_store(driver, view)
    with pytest.raises(InvalidView, match="'totl'; they yield total"):
        store.get_historical_features(ASKED, ["w:totl"])


def test_sources_that_are_not_there_or_hold_no_times(tmp_path, make_store):
    store = make_store(driver, stats_view(tmp_path))
    (tmp_path / "repo/data/stats.parquet").unlink()
    with pytest.raises(SourceNotFound, match=r"stats\.parquet"):
        store.get_historical_features(ASKED, ["stats:rate"]).to_arrow()
    land(tmp_path / "repo/data/stats.parquet", {"driver_id": [1], "ts": ["now"], "created": [at(0)], "rate": [1.0]})
    with pytest.raises(NotATimestamp, match="'ts' must be a timestamp, found VARCHAR"):
        store.get_historical_features(ASKED, ["stats:rate"]).to_arrow()


def test_keys_of_whole_numbers_come_as_floats_and_decimals_only_where_they_stay_whole(tmp_path, make_store):
    """pandas makes floats of whole numbers beside missing ones; a large one may then be another driver's."""
    large = 2**53 + 1
    view = stats_view(tmp_path, schema=[Field(name="rate", dtype=Float64)])
    store = make_store(driver, view)
    rows = {"driver_id": [1, large], "ts": [at(0), at(0)], "created": [at(0), at(0)], "rate": [0.1, 0.9]}
    land(tmp_path / "repo/data/stats.parquet", rows)

    def ask(keys) -> list[float | None]:
        frame = pa.table({"driver_id": keys, "event_timestamp": pa.array([at(0)] * len(keys))})
        return store.get_historical_features(frame, ["stats:rate"]).to_arrow()["rate"].to_pylist()

    assert ask(pa.array([1.0, None, float("nan"), float("inf")])) == [0.1, None, None, None]
    assert ask(pa.array([Decimal(f"{large}.0"), Decimal("1.0"), None])) == [0.9, 0.1, None]
    for keys, told in (
        (pa.array([1.0, 1.5]), "found 1.5 in a column of double, which is no whole number"),
        (pa.array([Decimal("1.5")]), "found 1.5 in a column of decimal128.2, 1., which is no whole number"),
        (pa.array([1.0, float(large)]), "from 9007199254740992 on a double has no place for every whole number"),
        (pa.array([float(2**24)], pa.float32()), "from 16777216 on a float has no place for every whole number"),
    ):
        with pytest.raises(KeyTypeMismatch, match=told) as refused:
            ask(keys)
        assert "'Int64'" in refused.value.hint


def test_entity_rows_that_cannot_be_used(tmp_path, make_store):
    store = make_store(driver, stats_view(tmp_path))

    def ask(frame) -> pa.Table:
        return store.get_historical_features(frame, ["stats:rate"]).to_arrow()

    with pytest.raises(InvalidEntityRows, match="one time column, found none"):
        ask(pa.table({"driver_id": [1]}))
    with pytest.raises(InvalidEntityRows, match="found several: a, b"):
        ask(pa.table({"a": pa.array([at(0)]), "b": pa.array([at(0)])}))
    with pytest.raises(InvalidEntityRows, match="must hold times, found int64"):
        ask(pa.table({"driver_id": [1], "event_timestamp": [3]}))
    with pytest.raises(InvalidEntityRows, match="holds what is no time"):
        ask(pa.table({"driver_id": [1], "event_timestamp": ["soon"]}))
    with pytest.raises(InvalidEntityRows, match="found list"):
        ask([1, 2])
    with pytest.raises(ColumnNotFound, match="'driver_id'"):
        ask(pa.table({"event_timestamp": pa.array([at(0)])}))
    with pytest.raises(KeyTypeMismatch, match="'driver_id'"):
        ask(pa.table({"driver_id": ["x"], "event_timestamp": pa.array([at(0)])}))
    with pytest.raises(DuplicateColumn, match="full_feature_names"):
        ask(pa.table({"driver_id": [1], "event_timestamp": pa.array([at(0)]), "rate": [1.0]}))
    with pytest.raises(EngineFailure, match="no_such_table"):
        ask("select * from no_such_table")


MIXED = {
    "zones": ([pd.Timestamp("2013-01-01", tz="America/New_York"), pd.Timestamp("2013-01-01", tz="UTC")], "America/New"),
    "offsets": (
        [datetime.fromisoformat(f"2013-01-01T00:00:00{offset}") for offset in ("-05:00", "-04:00")],
        "UTC-04:00",
    ),
    "naive and aware": ([datetime(2013, 1, 1), at(0)], "found UTC, naive"),  # noqa: DTZ001
    "text": (["2013-01-01 00:00:00", "2013-01-01T00:00:00Z"], "found naive, with an offset"),
}


@pytest.mark.parametrize("column", ["event_timestamp", "asked_at"])
@pytest.mark.parametrize("coerce", [True, False])
@pytest.mark.parametrize("kind", MIXED)
def test_entity_rows_that_mix_time_zones(tmp_path, make_store, column, kind, coerce):
    store = make_store(driver, stats_view(tmp_path))
    store.config.coerce_tz_aware = coerce
    times, says = MIXED[kind]
    frame = pd.DataFrame({"driver_id": [1, 1], column: pd.Series(times, dtype=object)})
    if kind == "text" and column == "asked_at":
        return  # text under another name is not taken for a time
    with pytest.raises(InvalidEntityRows, match=f"'{column}' mixes time zones") as caught:
        store.get_historical_features(frame, ["stats:rate"])
    assert says in str(caught.value)


def test_a_request_time_is_in_utc_whatever_the_frame(tmp_path, make_store):
    store = make_store(driver, stats_view(tmp_path))
    naive = ASKED.assign(due=ASKED.event_timestamp.dt.tz_localize(None))
    tokyo = ASKED.assign(due=ASKED.event_timestamp.dt.tz_convert("Asia/Tokyo"))
    for frame in (naive, tokyo, pl.from_pandas(naive), pl.from_pandas(tokyo), pa.Table.from_pandas(naive)):
        due = store.get_historical_features(frame, ["stats:rate"]).to_arrow()["due"]
        assert due.type.tz == "UTC"
        assert due.to_pylist() == ASKED.event_timestamp.to_list()


def test_the_hour_that_comes_twice_is_two_hours(tmp_path, make_store):
    first, second = datetime(2013, 11, 3, 5, 30, tzinfo=UTC), datetime(2013, 11, 3, 6, 30, tzinfo=UTC)  # 1:30 each
    land(tmp_path / "repo/data/t.parquet", {"driver_id": [1, 1], "ts": [first, second], "v": [1.0, 2.0]})
    source = FileSource(name="t", path="data/t.parquet", timestamp_field="ts")
    view = FeatureView(name="t", entities=[driver], schema=[Field(name="v", dtype=Float64)], source=source)
    store = make_store(driver, view)
    there = pd.Series([first, second]).dt.tz_convert("America/New_York")
    assert there.dt.hour.tolist() == [1, 1]
    for times in (there, there.astype(object)):
        frame = pd.DataFrame({"driver_id": [1, 1], "event_timestamp": times})
        assert store.get_historical_features(frame, ["t:v"]).to_arrow()["v"].to_pylist() == [1.0, 2.0]


def test_lists_with_nulls_inside_come_as_arrow_pandas_and_polars(tmp_path, make_store):
    numbers = pa.array([[1.5, None], [], None], pa.list_(pa.float64()))
    words = pa.array([["a", None], None, []], pa.large_list(pa.large_string()))
    times = pa.array([at(0), at(1), at(2)], pa.timestamp("us", "UTC"))
    (tmp_path / "repo/data").mkdir(parents=True)
    table = pa.table({"driver_id": [1, 2, 3], "ts": times, "numbers": numbers, "words": words})
    pq.write_table(table, tmp_path / "repo/data/t.parquet")
    source = FileSource(name="t", path="data/t.parquet", timestamp_field="ts")
    schema = [Field(name="numbers", dtype=Array(Float64)), Field(name="words", dtype=Array(String))]
    store = make_store(driver, FeatureView(name="t", entities=[driver], schema=schema, source=source))
    frame = pd.DataFrame({"driver_id": [3, 1, 2, 4], "event_timestamp": [at(9)] * 4})
    job = store.get_historical_features(frame, ["t:numbers", "t:words"])
    got = job.to_arrow()
    assert got["numbers"].to_pylist() == job.to_polars()["numbers"].to_list() == [None, [1.5, None], [], None]
    assert got["words"].to_pylist() == job.to_polars()["words"].to_list() == [[], ["a", None], None, None]
    assert job.to_df()["numbers"].isna().tolist() == [True, False, False, True]


def test_rows_without_a_key_or_a_time_are_counted(tmp_path, make_store, caplog):
    store = make_store(driver, stats_view(tmp_path))
    frame = pd.DataFrame({"driver_id": [None, None, 1], "event_timestamp": [at(3), at(3), pd.NaT], "note": [None] * 3})
    with caplog.at_level("WARNING", "asof"):
        store.get_historical_features(frame, ["stats:rate"])
        store.get_historical_features(ASKED, ["stats:rate"])
    assert caplog.messages == [
        "2 of 3 entity rows have no driver_id: their features are null",
        "1 of 3 entity rows have no event_timestamp: their features are null",
    ]


def test_a_view_all_of_whose_rows_were_loaded_later_says_so(tmp_path, make_store, caplog):
    rows = {"driver_id": [1, 1], "ts": [at(1), at(2)], "loaded": [at(100), at(101)], "rate": [0.5, 0.6]}
    land(tmp_path / "repo/data/late.parquet", rows)
    source = FileSource(name="late", path="data/late.parquet", timestamp_field="ts", created_timestamp_column="loaded")
    plain = FeatureView(name="plain", entities=[driver], schema=[Field(name="rate", dtype=Float64)], source=source)
    window = BatchFeatureView(
        name="window",
        mode="python",
        entities=[driver],
        schema=[Field(name="events", dtype=Int64), Field(name="best", dtype=Float64)],
        source=source,
        aggregations=[
            Aggregation(column="rate", function="count", time_window=HOUR, name="events"),
            Aggregation(column="rate", function="max", time_window=HOUR, name="best"),
        ],
    )
    store = make_store(driver, plain, window)
    wanted = ["plain:rate", "window:events", "window:best"]
    told = (
        " has no row that was known at any time asked about: the first 'loaded' is 2013-01-05 04:00:00 UTC, "
        "the last time asked about "
    )
    with caplog.at_level("WARNING", "asof"):
        for asked in (at(3), at(0), at(100)):  # after the events; before them; when the first is known
            frame = pd.DataFrame({"driver_id": [1, 2], "event_timestamp": [asked] * 2})
            store.get_historical_features(frame, wanted).to_arrow()
    assert [message.split("UTC. ")[0] for message in caplog.messages] == [
        f"view {name!r}{told}2013-01-01 03:00:00 " for name in ("plain", "window")
    ]
    assert all("created_timestamp_column" in message for message in caplog.messages)


def test_a_source_without_a_time_is_refused_by_name(tmp_path, make_store):
    store = make_store(driver, stats_view(tmp_path))
    view = BatchFeatureView(
        name="w",
        mode="python",
        entities=[driver],
        schema=[Field(name="total", dtype=Float64)],
        source=FileSource(name="stats", path="data/stats.parquet"),
        aggregations=[Aggregation(column="rate", function="sum", time_window=HOUR, name="total")],
    )
    with pytest.raises(InvalidView, match="View 'w': its source 'stats' has no timestamp_field"):
        compile_view(view, store.config)


def test_an_aggregation_over_text_names_view_column_found_and_expected(tmp_path, make_store):
    land(tmp_path / "repo/data/t.parquet", {"driver_id": [1], "ts": [at(0)], "word": ["x"]})
    source = PushSource(name="p", batch_source=FileSource(name="t", path="data/t.parquet", timestamp_field="ts"))
    view = windowed(tmp_path, Aggregation(column="word", function="sum", time_window=HOUR, name="n"), source=source)
    store = make_store(driver, view)
    with pytest.raises(AggregationTypeMismatch, match=r"View 'w', column 'word': sum needs a number.*found VARCHAR"):
        store.get_historical_features(ASKED, ["w:n"]).to_arrow()


def test_a_declared_type_the_values_do_not_fit(tmp_path, make_store):
    land(tmp_path / "repo/data/t.parquet", {"driver_id": [1], "ts": [at(0)], "v": ["many"]})
    source = FileSource(name="t", path="data/t.parquet", timestamp_field="ts")
    view = FeatureView(name="t", entities=[driver], schema=[Field(name="v", dtype=Int64)], source=source)
    store = make_store(driver, view)
    frame = pd.DataFrame({"driver_id": [1], "event_timestamp": [at(1)]})
    with pytest.raises(TypeMismatch, match="view 't', feature 'v': declared int64, found string"):
        store.get_historical_features(frame, ["t:v"]).to_arrow()


def test_sources_asof_does_not_read(tmp_path, make_store):
    config = make_store(driver, stats_view(tmp_path)).config
    with pytest.raises(UnsupportedView, match="asof reads files, its source 'r' is a RequestSource"):
        file_source(RequestSource(name="r", schema=[Field(name="v", dtype=Int64)]), "d", config)
    with pytest.raises(UnsupportedView, match=r"View 'd': asof reads Parquet and Delta, d\.csv is CsvFormat"):
        file_source(FileSource(name="d", path="d.csv", timestamp_field="ts", file_format=CsvFormat()), "d", config)


class CsvFormat(FileFormat):
    def to_proto(self):
        return ParquetFormat().to_proto()


def test_feast_finds_the_store_by_its_dotted_path(tmp_path, make_store):
    store: FeatureStore = make_store(driver, stats_view(tmp_path))
    assert type(store._get_provider().offline_store) is AsofOfflineStore


def test_importing_the_package_imports_no_framework():
    code = "import sys, asof, asof.errors; print([m for m in ('feast', 'duckdb', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_one_answer_whatever_the_threads(tmp_path, make_store):
    from concurrent.futures import ThreadPoolExecutor

    store = make_store(driver, stats_view(tmp_path))
    jobs = [store.get_historical_features(ASKED, ["stats:rate"]) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda job: job.to_arrow()["rate"].to_pylist(), jobs))
    assert answers == [RATES] * 8
    assert np.array(answers, dtype=object).shape == (8, 7)
