"""What is served is what was trained on: materialized values read back equal the offline ones."""

from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.infra.online_stores.online_store import OnlineStore
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asof import online
from asof.compute import AsofComputeEngine, AsofComputeEngineConfig
from asof.materialize import BackwardInterval, Materializer, materialize
from asof.repository import open_store
from asof.session import Session

DAY = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
UTC_MICROS = pa.timestamp("us", tz="UTC")

shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
till = Entity(name="till", join_keys=["till"], value_type=ValueType.INT64)


def at(hours: float) -> datetime:
    return DAY + hours * HOUR


def land(path: Path, events: list[dict[str, Any]]) -> None:
    """Events with hours `event` and `known`, keys and an amount."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "shop": pa.array([e["shop"] for e in events], pa.string()),
            "till": pa.array([e["till"] for e in events], pa.int64()),
            "ts": pa.array([at(e["event"]) for e in events], UTC_MICROS),
            "created": pa.array([at(e["known"]) for e in events], UTC_MICROS),
            "amount": pa.array([e["amount"] for e in events], pa.float64()),
        }
    )
    pq.write_table(table, path)


def event(shop: str, till: int, event: float, amount: float | None, known: float | None = None) -> dict[str, Any]:
    return {"shop": shop, "till": till, "event": event, "known": event if known is None else known, "amount": amount}


AGGREGATIONS = [
    Aggregation(column="amount", function=function, time_window=hours * HOUR, name=f"{function}_{hours}")
    for function, hours in itertools.product(["count", "sum", "mean", "max", "std", "last"], [2, 5])
]


def views(every: str | None = "1h") -> list[Any]:
    source = FileSource(
        name="sales", path="data/sales.parquet", timestamp_field="ts", created_timestamp_column="created"
    )
    tags = {"asof.every": every} if every else {}
    latest = FeatureView(
        name="latest",
        entities=[shop, till],
        ttl=timedelta(hours=6),
        schema=[Field(name="amount", dtype=Float64)],
        source=source,
        tags=tags,
    )
    windows = StreamFeatureView(
        name="windows",
        entities=[shop],
        timestamp_field="ts",
        schema=[Field(name=a.name, dtype=Int64 if a.function == "count" else Float32) for a in AGGREGATIONS],
        source=PushSource(name="sales_push", batch_source=source),
        aggregations=AGGREGATIONS,
        tags=tags,
    )
    return [shop, till, latest, windows]


REFERENCES = ["latest:amount", *(f"windows:{a.name}" for a in AGGREGATIONS)]
KEYS = [("a", 1), ("a", 2), ("b", 1), ("never", 9)]


def online_rows(store: FeatureStore) -> list[dict[str, Any]]:
    asked = [{"shop": s, "till": t} for s, t in KEYS]
    answer = store.get_online_features(features=REFERENCES, entity_rows=asked).to_dict()
    return [dict(zip(answer, row, strict=True)) for row in zip(*answer.values(), strict=True)]


def offline_rows(store: FeatureStore, moments: list[datetime]) -> list[dict[str, Any]]:
    asked = [{"shop": s, "till": t, "event_timestamp": moment} for moment in moments for s, t in KEYS]
    return store.get_historical_features(pd.DataFrame(asked), REFERENCES).to_arrow().to_pylist()


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return one == other


EMPTY = {a.name: 0 if a.function == "count" else None for a in AGGREGATIONS}


def assert_served_as_trained(served: dict, trained: dict, newest: float | None) -> None:
    """Online equals offline, for a reader that judges TTLs by the time kept with a value (`newest`, in hours)."""
    if newest is None or trained["event_timestamp"] - at(newest) <= timedelta(hours=6):
        assert equal(served["amount"], trained["amount"]), (served, trained)
    # A key that no window ever held is not stored: its windows are empty.
    windows = EMPTY if served["count_2"] is None else served
    for name in EMPTY:
        assert equal(windows[name], trained[name]), (name, served, trained)


histories = st.lists(
    st.builds(
        event,
        st.sampled_from(["a", "b"]),
        st.sampled_from([1, 2]),
        st.integers(0, 48).map(lambda quarter: quarter / 4),
        st.sampled_from([0.1, 0.2, -7.3, 1e6, None]),
        st.none(),
    ),
    min_size=1,
    max_size=15,
)
lateness = st.lists(st.sampled_from([0, 0, 0, 0.25, 1, 3, 8]), min_size=15, max_size=15)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=histories,
    late=lateness,
    every=st.sampled_from([None, "1h", "30m"]),
    step=st.sampled_from([0.25, 1.75, 4]),
    kept=st.booleans(),
)
def test_offline_equals_online_at_every_boundary(tmp_path_factory, history, late, every, step, kept):
    from asof.repository import load_config

    history = [{**e, "known": e["event"] + delay} for e, delay in zip(history, late, strict=False)]
    repo = tmp_path_factory.mktemp("repo")
    land(repo / "data/sales.parquet", history)
    (repo / "feature_store.yaml").write_text(
        "project: demo\nprovider: local\nregistry: data/registry.db\n"
        "online_store: {type: sqlite, path: data/online.db}\nentity_key_serialization_version: 3\n"
    )
    store = FeatureStore(repo_path=str(repo), config=load_config(repo))
    store.apply(views(every))
    grid = {None: 0, "1h": 1.0, "30m": 0.5}[every]
    boundaries = [0.5 + step * place for place in range(int(20 / step))]
    materializer = Materializer(store, session=Session(threads=1) if kept else None)
    if kept:
        materializer.keep_sources()
    done, served = at(-1), []
    for boundary in boundaries:
        materializer.run(done, at(boundary))
        done = at(boundary)
        served += online_rows(store)
    trained = offline_rows(store, [at(boundary) for boundary in boundaries])
    for place, (got, want) in enumerate(zip(served, trained, strict=True)):
        boundary = boundaries[place // len(KEYS)]
        point = boundary - boundary % grid if grid else boundary
        key = (got["shop"], got["till"])
        known = [e["event"] for e in history if e["known"] <= point and (e["shop"], e["till"]) == key]
        assert_served_as_trained(got, want, max(known, default=None))


def sales_store(make_store, tmp_path, events: list[dict[str, Any]], **more) -> FeatureStore:
    land(tmp_path / "repo/data/sales.parquet", events)
    return make_store(*views(), **more)


def dump(store: FeatureStore) -> list[tuple]:
    connection = store._get_provider().online_store._get_conn(store.config)
    tables = [row[0] for row in connection.execute("select name from sqlite_master where type='table' order by 1")]
    return [(table, *row) for table in tables for row in connection.execute(f'select * from "{table}" order by 1, 2')]


def test_a_window_that_empties_becomes_empty(make_store, tmp_path):
    store = sales_store(make_store, tmp_path, [event("a", 1, 1, 5.0)])
    materialize(store, LONG_AGO, at(2))
    assert online_rows(store)[0]["count_2"] == 1
    assert materialize(store, at(2), at(9)) == {"latest": 0, "windows": 1}
    row = online_rows(store)[0]
    assert (row["count_2"], row["count_5"], row["sum_5"], row["last_5"]) == (0, 0, None, None)


def test_a_source_in_nanoseconds_is_materialized_from_its_beginning(make_store, tmp_path):
    store = sales_store(make_store, tmp_path, [event("a", 1, 1, 5.0)])
    (file,) = (tmp_path / "repo/data").rglob("*.parquet")
    rows = pq.read_table(file)
    for place, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type):
            rows = rows.set_column(place, field.name, rows[field.name].cast(pa.timestamp("ns", tz="UTC")))
    pq.write_table(rows, file)
    assert materialize(store, LONG_AGO, at(2)) == {"latest": 1, "windows": 1}
    assert online_rows(store)[0]["count_2"] == 1


def test_running_again_changes_nothing(make_store, tmp_path):
    store = sales_store(make_store, tmp_path, [event("a", 1, 1, 5.0), event("b", 1, 1.5, 0.1)])
    materialize(store, LONG_AGO, at(3))
    before = dump(store)
    assert materialize(store, LONG_AGO, at(3)) == {"latest": 2, "windows": 2}
    assert dump(store) == before


def test_an_older_boundary_never_replaces_a_newer_one(make_store, tmp_path):
    store = sales_store(make_store, tmp_path, [event("a", 1, 1, 5.0), event("a", 1, 2, 6.0)])
    materialize(store, LONG_AGO, at(3))
    before = dump(store)
    assert materialize(store, LONG_AGO, at(1)) == {"latest": 0, "windows": 0}
    assert dump(store) == before


def test_an_event_known_late_behind_a_newer_one_does_not_win(make_store, tmp_path):
    store = sales_store(make_store, tmp_path, [event("a", 1, 2, 6.0), event("a", 1, 1, 5.0, known=3)])
    materialize(store, LONG_AGO, at(2))
    materialize(store, at(2), at(4))
    row = online_rows(store)[0]
    assert row["amount"] == 6.0
    assert row["sum_5"] == 11.0


def test_the_time_kept_with_a_value(make_store, tmp_path):
    store = sales_store(make_store, tmp_path, [event("a", 1, 1.25, 5.0)])
    materialize(store, LONG_AGO, at(3.5))
    provider = store._get_provider()
    keys = [online.EntityKey(join_keys=["shop"], entity_values=[online.Value(string_val="a")])]
    ((boundary, _),) = provider.online_read(store.config, store.get_stream_feature_view("windows"), keys)
    assert boundary == at(3)  # the grid point, not the moment of the call
    keys[0].join_keys.append("till")
    keys[0].entity_values.append(online.Value(int64_val=1))
    ((happened, _),) = provider.online_read(store.config, store.get_feature_view("latest"), keys)
    assert happened == at(1.25)


def test_only_some_views_and_only_forward(make_store, tmp_path):
    store = sales_store(make_store, tmp_path, [event("a", 1, 1, 5.0)])
    assert materialize(store, LONG_AGO, at(2), views=["latest"]) == {"latest": 1}
    with pytest.raises(BackwardInterval, match="Swap"):
        materialize(store, at(2), at(1))


def test_touching_intervals_are_kept_as_one(make_store, tmp_path):
    store = sales_store(make_store, tmp_path, [event("a", 1, 1, 5.0)])
    materializer = Materializer(store)
    for hour in range(2, 6):
        materializer.run(at(hour - 1), at(hour))
    materializer.run(at(8), at(9))
    for view in (store.get_feature_view("latest"), store.get_stream_feature_view("windows")):
        assert view.materialization_intervals == [(at(1), at(5)), (at(8), at(9))]
        assert view.most_recent_end_time == at(9)
    assert store.get_stream_feature_view("windows").aggregations == AGGREGATIONS
    store.materialize_incremental(at(10))
    assert store.get_feature_view("latest").most_recent_end_time == at(10)


def test_another_kind_of_registry_is_told_through_feast(make_store, tmp_path):
    yaml = (
        "project: demo\nprovider: local\n"
        f"registry: {{registry_type: sql, path: 'sqlite:///{tmp_path}/registry.sqlite'}}\n"
        "online_store: {type: sqlite, path: data/online.db}\nentity_key_serialization_version: 3\n"
    )
    store = sales_store(make_store, tmp_path, [event("a", 1, 1, 5.0)], yaml=yaml)
    materialize(store, at(0), at(2))
    assert store.get_feature_view("latest").materialization_intervals == [(at(0), at(2))]


def test_feast_materializes_through_the_engine_and_hears_of_failures(make_store, tmp_path):
    store = sales_store(make_store, tmp_path, [event("a", 1, 1, 5.0)])
    engine = store._get_provider().batch_engine
    assert type(engine) is AsofComputeEngine
    assert type(store.config.batch_engine) is AsofComputeEngineConfig
    store.materialize(LONG_AGO, at(2))
    assert online_rows(store)[0]["amount"] == 5.0
    (tmp_path / "repo/data/sales.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="no data at"):
        store.materialize(LONG_AGO, at(3))
    assert online_rows(store)[0]["amount"] == 5.0


class DictionaryStore(OnlineStore):
    """Keeps rows in a dictionary and, like most stores, overwrites whatever is there."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, bytes], tuple] = {}

    def online_write_batch(self, config, table, data, progress):
        for key, values, moment, _ in data:
            self.rows[table.name, key.SerializeToString()] = (moment.replace(tzinfo=None), values)

    def online_read(self, config, table, entity_keys, requested_features=None):
        return [self.rows.get((table.name, key.SerializeToString()), (None, None)) for key in entity_keys]

    def update(self, *args, **kwargs): ...

    def teardown(self, *args, **kwargs): ...


@pytest.mark.parametrize("rows_at_once", [1, 10_000])
def test_any_store_keeps_the_newer_value(make_store, tmp_path, monkeypatch, rows_at_once):
    monkeypatch.setattr(online, "ROWS_AT_ONCE", rows_at_once)
    store = sales_store(make_store, tmp_path, [event("a", 1, 1, 5.0), event("b", 1, 1, 3.0), event("a", 1, 2, 6.0)])
    other = DictionaryStore()
    store._get_provider()._online_store = other
    assert materialize(store, LONG_AGO, at(3)) == {"latest": 2, "windows": 2}
    before = dict(other.rows)
    assert materialize(store, LONG_AGO, at(1.5)) == {"latest": 1, "windows": 0}  # b's event is the same one
    assert other.rows == before
    assert len(before) == 4


def test_every_declared_type_survives_the_trip(make_store, tmp_path):
    path = tmp_path / "repo/data/kinds.parquet"
    path.parent.mkdir(parents=True)
    row = {
        "till": 1,
        "ts": at(0),
        "an_int32": 3.9,
        "a_bool": True,
        "a_string": "é",
        "a_float32": 0.1,
        "a_time": at(5),
        "numbers": [1.5, 2.5],
        "words": ["x"],
        "nothing": None,
    }
    table = pa.Table.from_pylist([row]).set_column(1, "ts", pa.array([at(0)], UTC_MICROS))
    pq.write_table(table.set_column(9, "nothing", pa.array([None], pa.float64())), path)
    kinds = {
        "an_int32": Int32,
        "a_bool": Bool,
        "a_string": String,
        "a_float32": Float32,
        "a_time": UnixTimestamp,
        "numbers": Array(Float32),
        "words": Array(String),
        "nothing": Float64,
    }
    view = FeatureView(
        name="kinds",
        entities=[till],
        schema=[Field(name=name, dtype=dtype) for name, dtype in kinds.items()],
        source=FileSource(name="kinds", path="data/kinds.parquet", timestamp_field="ts"),
    )
    store = make_store(till, view)
    references = [f"kinds:{name}" for name in kinds]
    materialize(store, LONG_AGO, at(1))
    served = store.get_online_features(references, entity_rows=[{"till": 1}]).to_dict()
    frame = pd.DataFrame({"till": [1], "event_timestamp": [at(1)]})
    trained = store.get_historical_features(frame, references).to_arrow().to_pydict()
    for name in kinds:
        got, want = served[name][0], trained[name][0]
        assert (got.replace(tzinfo=UTC) if name == "a_time" else got) == want, name


def test_a_view_without_entities(make_store, tmp_path):
    land(tmp_path / "repo/data/sales.parquet", [event("a", 1, 1, 5.0)])
    source = FileSource(name="sales", path="data/sales.parquet", timestamp_field="ts")
    view = FeatureView(name="all", entities=[], schema=[Field(name="amount", dtype=Float64)], source=source)
    store = make_store(view)
    assert materialize(store, LONG_AGO, at(0.5)) == {"all": 0}
    assert materialize(store, LONG_AGO, at(2)) == {"all": 1}
    assert store.get_online_features(["all:amount"], entity_rows=[{"__dummy_id": ""}]).to_dict()["amount"] == [5.0]


def test_a_killed_write_leaves_the_last_state(make_store, tmp_path, monkeypatch):
    store = sales_store(make_store, tmp_path, [event("a", 1, 1, 5.0), event("b", 1, 1, 5.0), event("a", 1, 2.5, 9.0)])
    materialize(store, LONG_AGO, at(2))
    before = dump(store)
    written = itertools.count()
    real = online.rows_of

    def dies(*args):
        if next(written) == 1:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(online, "ROWS_AT_ONCE", 1)
    monkeypatch.setattr(online, "rows_of", dies)
    with pytest.raises(KeyboardInterrupt):
        materialize(store, at(2), at(3), views=["windows"])
    assert dump(store) == before


def test_a_lost_database_is_made_again(make_store, tmp_path):
    store = sales_store(make_store, tmp_path, [event("a", 1, 1, 5.0)])
    (tmp_path / "repo/data/online.db").unlink()
    store = open_store(tmp_path / "repo")
    assert materialize(store, LONG_AGO, at(2)) == {"latest": 1, "windows": 1}
    assert online_rows(store)[0]["amount"] == 5.0
