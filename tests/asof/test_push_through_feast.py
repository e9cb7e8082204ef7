"""What somebody has who writes `store.push(...)` and names asof in the yaml: ways in, stores, mistakes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import sqlite3
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import (
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    StreamFeatureView,
    ValueType,
)
from feast.aggregation import Aggregation
from feast.data_source import PushMode
from feast.types import Array, Float64

from asof import hooks
from asof.intake import BadPush
from asof.landing import replace
from asof.materialize import materialize
from asof.pushed import pushed_rows
from asof.recent import RecentRows
from asof.session import Session
from asof.unwritten import StoreNotWritten

NOON = datetime(2013, 1, 1, 12, tzinfo=UTC)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
UTC_MICROS = pa.timestamp("us", tz="UTC")
PROJECTS = itertools.count()

shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
till = Entity(name="till", join_keys=["till"], value_type=ValueType.INT64)


def doubled(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(twice=rows["amount"] * 2)


def views(event_id: str | None = "id") -> list[Any]:
    source = FileSource(
        name="sales",
        path="data/sales",
        timestamp_field="ts",
        created_timestamp_column="created",
        tags={"asof.event_id": event_id} if event_id else {},
    )
    push = PushSource(name="sales_push", batch_source=source)
    hour = timedelta(hours=1)
    return [
        shop,
        till,
        FeatureView(name="latest", entities=[shop, till], schema=[Field(name="amount", dtype=Float64)], source=push),
        FeatureView(name="baskets", entities=[shop], schema=[Field(name="basket", dtype=Array(Float64))], source=push),
        FeatureView(name="anywhere", entities=[], schema=[Field(name="amount", dtype=Float64)], source=push),
        StreamFeatureView(
            name="windows",
            entities=[shop],
            timestamp_field="ts",
            schema=[Field(name="sum_1", dtype=Float64)],
            source=push,
            aggregations=[Aggregation(column="amount", function="sum", time_window=hour, name="sum_1")],
        ),
        StreamFeatureView(
            name="doubled",
            entities=[shop],
            timestamp_field="ts",
            schema=[Field(name="max_twice", dtype=Float64)],
            source=push,
            mode="pandas",
            udf=doubled,
            udf_string="def doubled(rows):\n    return rows.assign(twice=rows['amount'] * 2)\n",
            aggregations=[Aggregation(column="twice", function="max", time_window=hour, name="max_twice")],
        ),
    ]


FEATURES = ["latest:amount", "baskets:basket", "windows:sum_1", "doubled:max_twice"]


def frame(*rows: tuple[str, int, float, float, str]) -> pd.DataFrame:
    """Rows (shop, till, minutes after noon, amount, id)."""
    return pd.DataFrame(
        {
            "shop": [r[0] for r in rows],
            "till": [r[1] for r in rows],
            "ts": pd.to_datetime([NOON + timedelta(minutes=r[2]) for r in rows], utc=True),
            "amount": [r[3] for r in rows],
            "basket": [[r[3]] for r in rows],
            "id": [r[4] for r in rows],
        }
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """What Feast's ways in are told when they ask for the time."""
    now = [NOON + timedelta(minutes=30)]
    monkeypatch.setattr(hooks, "_now", lambda: now[0])
    return now


def yaml_of(section: dict[str, Any]) -> str:
    lines = "\n".join(f"  {name}: {value!r}" for name, value in section.items())
    return (
        f"project: q{next(PROJECTS)}_{os.getpid()}\nprovider: local\nregistry: data/registry.db\n"
        f"online_store:\n{lines}\n"
        "offline_store: {type: asof.offline_store.AsofOfflineStore}\n"
        "batch_engine: {type: asof.compute.AsofComputeEngine}\nentity_key_serialization_version: 3\n"
    )


def land(source: Path) -> None:
    table = pa.Table.from_pandas(frame(("a", 1, 0, 1.0, "first")), preserve_index=False)
    table = table.set_column(2, "ts", table["ts"].cast(UTC_MICROS))
    replace(source / "first.parquet", table.append_column("created", pa.array([NOON], UTC_MICROS)))


@pytest.fixture
def store(make_store, tmp_path) -> FeatureStore:
    land(tmp_path / "repo/data/sales")
    return make_store(*views(), yaml=yaml_of({"type": "sqlite", "path": "data/online.db"}))


def served(store: FeatureStore, name: str = "a", number: int = 1) -> list[Any]:
    answer = store.get_online_features(FEATURES, entity_rows=[{"shop": name, "till": number}]).to_dict()
    return [answer[feature.partition(":")[2]][0] for feature in FEATURES]


def source_rows(tmp_path: Path) -> int:
    return sum(pq.read_metadata(file).num_rows for file in (tmp_path / "repo/data/sales").glob("*.parquet"))


def test_a_push_reaches_every_view_of_its_source_at_once(store, tmp_path, clock):
    store.push("sales_push", frame(("a", 1, 29, 5.0, "second"), ("a", 2, 20, 2.0, "third")))
    assert served(store) == [5.0, [5.0], 8.0, 10.0]
    assert served(store, "a", 2)[0] == 2.0
    assert store.get_online_features(["anywhere:amount"], entity_rows=[{"__dummy_id": ""}]).to_dict()["amount"] == [5.0]
    assert source_rows(tmp_path) == 1  # online only: training does not see it
    store.push("sales_push", frame(("a", 1, 29.5, 0.5, "fourth")), to=PushMode.ONLINE_AND_OFFLINE)
    assert served(store) == [0.5, [0.5], 8.5, 10.0]
    assert source_rows(tmp_path) == 2  # once, though five views are fed
    entity = pd.DataFrame({"shop": ["a"], "till": [1], "event_timestamp": [NOON + timedelta(minutes=31)]})
    assert store.get_historical_features(entity, FEATURES).to_df()["sum_1"].tolist() == [1.5]
    store.push("sales_push", frame(("a", 1, 29.7, 7.0, "fifth")), to=PushMode.OFFLINE)
    assert served(store)[0] == 0.5
    assert source_rows(tmp_path) == 3


def test_an_older_or_repeated_or_future_event_is_what_it_is(store, clock):
    store.push("sales_push", frame(("a", 1, 29, 5.0, "second")))
    store.push("sales_push", frame(("a", 1, 10, 3.0, "third")))
    assert served(store) == [5.0, [5.0], 9.0, 10.0]
    store.push("sales_push", frame(("a", 1, 29.5, 99.0, "second")))
    assert served(store) == [5.0, [5.0], 9.0, 10.0]
    store.push("sales_push", frame(("a", 1, 40, 50.0, "fourth")))
    assert served(store) == [5.0, [5.0], 9.0, 10.0]
    clock[0] = NOON + timedelta(minutes=41)
    store.push("sales_push", frame(("a", 1, 2, 0.25, "fifth")))
    assert served(store) == [50.0, [50.0], 59.25, 100.0]


def test_the_other_ways_in(store, tmp_path, clock):
    store.write_to_online_store("windows", frame(("a", 1, 29, 5.0, "second")))
    assert served(store) == [None, None, 6.0, None]
    store.write_to_online_store("latest", inputs=frame(("a", 1, 28, 4.0, "third")).to_dict("list"))
    assert served(store)[0] == 5.0  # the event of a minute later is known from the push before
    asyncio.run(store.push_async("sales_push", frame(("a", 1, 29.5, 1.0, "fourth"))))
    assert served(store) == [1.0, [1.0], 11.0, 10.0]
    asyncio.run(store.write_to_online_store_async("windows", frame(("b", 1, 29, 2.0, "fifth"))))
    assert served(store, "b") == [None, None, 2.0, None]
    store.write_to_offline_store("windows", frame(("b", 1, 29, 2.0, "fifth")))
    assert source_rows(tmp_path) == 2
    store.push("sales_push", pl.from_pandas(frame(("a", 1, 29.9, 0.5, "sixth"))))
    assert served(store)[0] == 0.5


def test_rows_pushed_online_count_until_the_source_has_them(store, tmp_path, clock):
    store.push("sales_push", frame(("a", 1, 29, 5.0, "second")))
    log = pushed_rows(store.config)
    (path,) = log.sources()
    materialize(store, LONG_AGO, NOON + timedelta(minutes=40))
    assert served(store) == [5.0, [5.0], 6.0, 10.0]
    store.write_to_offline_store("latest", frame(("a", 1, 29, 5.0, "second")))
    materialize(store, LONG_AGO, NOON + timedelta(minutes=50))
    assert served(store) == [5.0, [5.0], 6.0, 10.0]
    assert not log.any_of(path)
    store.teardown()
    assert not log.exists


def test_without_an_event_id_a_landed_row_is_recognised_by_its_values(make_store, tmp_path, clock):
    land(tmp_path / "repo/data/sales")
    store = make_store(*views(None), yaml=yaml_of({"type": "sqlite", "path": "data/online.db"}))
    row = frame(("a", 1, 29, 5.0, "second"))
    store.push("sales_push", row)
    store.push("sales_push", row)
    assert served(store)[2] == 11.0  # every row counts
    store.write_to_offline_store("latest", row)
    materialize(store, LONG_AGO, NOON + timedelta(minutes=40))
    assert served(store)[2] == 11.0
    store.write_to_offline_store("latest", row)
    clock[0] = NOON + timedelta(minutes=45)
    store.push("sales_push", frame(("a", 1, 29.5, 0.5, "third")))
    assert served(store)[2] == 11.5


def test_a_source_without_data_yet(make_store, tmp_path, clock):
    (tmp_path / "repo/data/sales").mkdir(parents=True)
    store = make_store(*views(), yaml=yaml_of({"type": "sqlite", "path": "data/online.db"}))
    store.push("sales_push", frame(("a", 1, 29, 5.0, "second")))
    store.push("sales_push", frame(("a", 1, 28, 2.0, "third")))
    assert served(store) == [5.0, [5.0], 7.0, 10.0]


def test_the_views_of_a_push_are_written_all_or_none_in_sqlite(store, tmp_path, clock):
    store.push("sales_push", frame(("a", 1, 28, 5.0, "second")))
    before = served(store)
    with contextlib.closing(sqlite3.connect(tmp_path / "repo/data/online.db")) as database:
        database.execute(
            f"create trigger full before insert on {store.project}_windows begin select raise(abort, 'full'); end"
        )
        database.commit()
        with pytest.raises(StoreNotWritten, match=r"SQLite .*: full"):  # the last view's table, by name
            store.push("sales_push", frame(("a", 1, 29, 7.0, "third")))
        assert served(store) == before
        database.execute("drop trigger full")
        database.commit()
    store.push("sales_push", frame(("a", 1, 29, 7.0, "third")))
    assert served(store) == [7.0, [7.0], 13.0, 14.0]


def test_two_events_in_one_second_keep_their_order_in_sqlite(store, clock):
    store.push("sales_push", frame(("a", 1, 29 + 0.5 / 60, 5.0, "second")))
    store.push("sales_push", frame(("a", 1, 29, 3.0, "third")))
    assert served(store)[0] == 5.0


BAD = {
    "a missing column": (
        lambda f: f.drop(columns="amount"),
        "Push to view '[a-z]+': column 'amount' is missing; found shop, till, ts, basket, id, expected double",
    ),
    "a misspelt one": (lambda f: f.rename(columns={"amount": "amuont"}), "Did you mean 'amount' by 'amuont'"),
    "a missing key": (lambda f: f.drop(columns="till"), "column 'till' is missing"),
    "text for a number": (lambda f: f.assign(amount="much"), "column 'amount': found string, expected double"),
    "a number for text": (lambda f: f.assign(id=7), "column 'id': found int64, expected string"),
    "a fraction for a whole number": (lambda f: f.assign(till=1.5), "column 'till': found double that does not fit"),
    "several types": (lambda f: f.assign(amount=[1.0, "x"]), "column 'amount': found"),
    "times of several zones": (
        lambda f: f.assign(ts=pd.Series([f["ts"][0], f["ts"][1].tz_convert("America/New_York")], dtype=object)),
        "column 'ts': found times of several zones \\(America/New_York, UTC\\)",
    ),
    "text for a time": (lambda f: f.assign(ts="today"), "column 'ts': found 'today' in row 0, expected a time"),
    "a day that is none": (lambda f: f.assign(ts="2013-02-30T12:00:00Z"), "found '2013-02-30T12:00:00Z' in row 0"),
    "milliseconds as text": (lambda f: f.assign(ts="1357041600000"), "found '1357041600000' in row 0, expected a time"),
    "one bad text among times": (
        lambda f: f.assign(ts=["2013-01-01T12:29:00Z", "12:28"]),
        "column 'ts': found '12:28' in row 1, expected a time",
    ),
    "no time": (lambda f: f.assign(ts=[f["ts"][0], pd.NaT]), "column 'ts' is null in row 1"),
    "not a frame": (lambda f: [1], "found list; expected a pandas, Polars or Arrow frame"),
}


@pytest.mark.parametrize("mode", [PushMode.ONLINE, PushMode.ONLINE_AND_OFFLINE])
def test_pushed_times_without_a_zone_are_in_utc(store, clock, mode):
    zoned = frame(("a", 1, 29, 5.0, "second"))
    store.push("sales_push", zoned.assign(ts=zoned["ts"].dt.tz_localize(None)), to=mode)
    naive = served(store)
    store.push("sales_push", zoned, to=mode)
    assert naive == served(store) != [None] * 4


TEXTS = ["2013-01-01T12:29:00Z", "2013-01-01 12:29:00", "2013-01-01T07:29:00.000-05:00", "2013-01-01T12:29+0000"]


@pytest.mark.parametrize("landed", [True, False])
def test_times_as_text_are_read(make_store, tmp_path, clock, landed):
    if landed:
        land(tmp_path / "repo/data/sales")
    else:
        (tmp_path / "repo/data/sales").mkdir(parents=True)
    store = make_store(*views(), yaml=yaml_of({"type": "sqlite", "path": "data/online.db"}))
    for number, said in enumerate(TEXTS):
        one = frame(("a", 1, 29, 1.0, f"told {number}")).assign(ts=said, created=said)
        store.push("sales_push", one if number % 2 else pl.from_pandas(one), to=PushMode.ONLINE_AND_OFFLINE)
    assert served(store)[2] == 4.0 + landed
    table = pq.read_table(tmp_path / "repo/data/sales", partitioning=None)
    minute = pa.scalar(NOON + timedelta(minutes=29), UTC_MICROS)
    assert [table[name].to_pylist().count(minute.as_py()) for name in ("ts", "created")] == [4, 4]


def test_feasts_own_server_takes_what_json_can_say(store, tmp_path, clock):
    from fastapi.testclient import TestClient
    from feast.feature_server import get_app

    def told(ts: list[str]) -> dict[str, Any]:
        row = {"shop": ["a"], "till": [1], "ts": ts, "amount": [5], "basket": [[5.0]], "id": [f"at {ts}"]}
        return {"push_source_name": "sales_push", "df": row, "to": "online_and_offline"}

    with TestClient(get_app(store), raise_server_exceptions=False) as server:
        assert server.post("/push", json=told(["2013-01-01T12:29:00Z"])).status_code == 200
        assert served(store) == [5.0, [5.0], 6.0, 10.0]
        assert source_rows(tmp_path) == 2
        refused = server.post("/push", json=told(["noon"]))
        assert refused.status_code >= 400
        assert "column 'ts': found 'noon' in row 0, expected a time" in refused.text
        assert source_rows(tmp_path) == 2


def test_a_push_of_no_rows_reads_what_the_next_one_needs(store, tmp_path, clock, monkeypatch):
    row = frame(("a", 1, 29, 5.0, "second"))
    store.push("sales_push", row[:0])
    assert served(store) == [None] * 4
    assert pushed_rows(store.config).sources() == []
    monkeypatch.setattr(RecentRows, "_read", lambda *_: pytest.fail("read again"))
    store.push("sales_push", row)
    assert served(store) == [5.0, [5.0], 6.0, 10.0]
    assert source_rows(tmp_path) == 1


def test_a_push_looks_at_the_rows_of_its_own_keys_alone(store, clock, monkeypatch):
    store.push("sales_push", frame(*(("b", n % 3, 20 + n / 100, 1.0, f"b{n}") for n in range(50))))
    lent, lend, lend_events = {}, Session.lend, Session.lend_events

    def noted(session, source, rows, **how):
        lent[source.view] = rows.num_rows
        lend(session, source, rows, **how)

    def noted_events(session, source, events, types):
        lend_events(session, source, events, types)
        lent[source.view] = len(events.event)

    monkeypatch.setattr(Session, "lend", noted)
    monkeypatch.setattr(Session, "lend_events", noted_events)
    store.push("sales_push", frame(("a", 1, 29, 5.0, "second")))
    assert {name: lent[name] for name in ("latest", "baskets", "windows")} == {"latest": 2, "baskets": 2, "windows": 2}
    assert served(store) == [5.0, [5.0], 6.0, 10.0]


def test_a_row_without_a_key_counts_for_nobody(store, clock):
    store.push("sales_push", frame(("a", 1, 28, 2.0, "second"), (None, 1, 28, 9.0, "nobody's")))
    store.push("sales_push", frame((None, 1, 29, 9.0, "nobody's either"), ("a", 1, 29, 5.0, "third")))
    assert served(store) == [5.0, [5.0], 8.0, 10.0]


def test_a_key_that_is_written_in_two_ways_is_one_key(make_store, tmp_path, clock):
    land(tmp_path / "repo/data/sales")
    (file,) = (tmp_path / "repo/data/sales").glob("*.parquet")
    table = pq.read_table(file, partitioning=None)
    replace(file, table.set_column(table.column_names.index("till"), "till", pa.array(["01"])))
    store = make_store(*views(), yaml=yaml_of({"type": "sqlite", "path": "data/online.db"}))
    store.push("sales_push", frame(("a", 1, -5, 5.0, "second")).assign(till="1"))  # older than what is known of till 01
    assert served(store)[:3] == [1.0, [1.0], 6.0]


def test_a_push_follows_a_definition_that_was_applied_anew(make_store, tmp_path, clock):
    land(tmp_path / "repo/data/sales")
    store = make_store(*views(), yaml=yaml_of({"type": "sqlite", "path": "data/online.db"}))
    store.push("sales_push", frame(("a", 1, 29, 5.0, "second")))
    clock[0] = NOON + timedelta(minutes=61)
    store.push("sales_push", frame(("a", 1, 60, 7.0, "third")))
    assert served(store)[2] == 12.0
    longer = next(view for view in views() if view.name == "windows")
    longer.aggregations[0].time_window = longer.aggregations[0].slide_interval = timedelta(hours=2)
    store.apply([longer])
    store.push("sales_push", frame(("a", 1, 60.5, 1.0, "fourth")))
    assert served(store)[2] == 14.0


@pytest.mark.parametrize("mode", [PushMode.ONLINE, PushMode.OFFLINE, PushMode.ONLINE_AND_OFFLINE])
@pytest.mark.parametrize("mistake", BAD)
def test_a_bad_push_is_refused_and_nothing_is_written(store, tmp_path, clock, mistake, mode):
    spoil, said = BAD[mistake]
    good = frame(("a", 1, 29, 5.0, "second"), ("a", 1, 28, 5.0, "third"))
    with pytest.raises(BadPush, match=said):
        store.push("sales_push", spoil(good), to=mode)
    assert served(store) == [None] * 4
    assert source_rows(tmp_path) == 1
    assert pushed_rows(store.config).sources() == []


def test_a_transformation_that_fails_stops_the_push_before_anything_is_written(make_store, tmp_path, clock):
    def fails(rows):
        if (rows["amount"] < 0).any():
            raise ValueError("no refunds")
        return rows

    land(tmp_path / "repo/data/sales")
    *others, _ = views()
    source = others[2].stream_source
    strict = StreamFeatureView(
        name="strict",
        entities=[shop],
        timestamp_field="ts",
        schema=[Field(name="most", dtype=Float64)],
        source=source,
        mode="pandas",
        udf=fails,
        udf_string="x",
        aggregations=[Aggregation(column="amount", function="max", time_window=timedelta(hours=1), name="most")],
    )
    store = make_store(*others, strict, yaml=yaml_of({"type": "sqlite", "path": "data/online.db"}))
    with pytest.raises(RuntimeError, match=r"View 'strict': its transformation raised ValueError: no refunds"):
        store.push("sales_push", frame(("a", 1, 29, -5.0, "second")), to=PushMode.ONLINE_AND_OFFLINE)
    assert served_some(store) == [None, None]
    assert source_rows(tmp_path) == 1


def served_some(store: FeatureStore) -> list[Any]:
    answer = store.get_online_features(FEATURES[:1] + FEATURES[2:3], entity_rows=[{"shop": "a", "till": 1}]).to_dict()
    return [answer["amount"][0], answer["sum_1"][0]]


def test_an_unknown_column_is_refused_where_it_would_be_kept(store, clock):
    extra = frame(("a", 1, 29, 5.0, "second")).assign(coment="?")
    store.push("sales_push", extra)
    with pytest.raises(BadPush, match=r"column 'coment' is not in .*sales; expected shop, till"):
        store.push("sales_push", extra, to=PushMode.OFFLINE)


def test_a_repository_not_on_asof_is_left_to_feast(tmp_path, clock):
    land(tmp_path / "repo/data/sales")
    (tmp_path / "repo/feature_store.yaml").write_text(
        "project: plain\nprovider: local\nregistry: data/registry.db\n"
        "online_store: {type: sqlite, path: data/online.db}\n"
        "offline_store: {type: file}\nentity_key_serialization_version: 3\n"
    )
    store = FeatureStore(repo_path=str(tmp_path / "repo"))
    store.apply(views()[:3])
    store.push("sales_push", frame(("a", 1, 29, 5.0, "second")).assign(created=NOON))
    store.push("sales_push", frame(("a", 1, 10, 3.0, "third")).assign(created=NOON))
    answer = store.get_online_features(["latest:amount"], entity_rows=[{"shop": "a", "till": 1}]).to_dict()
    assert answer["amount"] == [3.0]  # Feast's own way: whatever came last
    assert not pushed_rows(store.config).exists


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "redis", "redis_cluster"])
def test_any_order_of_arrival_gives_the_same_state(make_store, tmp_path, clock, request, kind):
    section = {
        "sqlite": lambda: {"type": "sqlite", "path": "data/online.db"},
        "postgres": lambda: request.getfixturevalue("postgres_server").online_store,
        "redis": lambda: request.getfixturevalue("redis_server").online_store,
        "redis_cluster": lambda: request.getfixturevalue("redis_cluster").online_store,
    }[kind]()
    events = [(s, t, m, float(m), f"{s}{t}{m}") for s, t in [("a", 1), ("a", 2), ("b", 1)] for m in (3, 11, 24, 29)]
    events += events[:3]  # told twice
    states = []
    for seed in range(4):
        clock[0] = NOON + timedelta(minutes=30)
        land(tmp_path / f"{kind}{seed}/data/sales")
        store = make_store(*views(), yaml=yaml_of(section), folder=f"{kind}{seed}")
        shuffled = random.Random(seed).sample(events, len(events))
        for first in range(0, len(shuffled), 4):
            clock[0] += timedelta(seconds=1)
            store.push("sales_push", frame(*shuffled[first : first + 4]))
        # The moment of the last push that touched a key differs; the events in its hour do not.
        states.append([served(store, s, t) for s, t in [("a", 1), ("a", 2), ("b", 1)]])
        materialize(store, LONG_AGO, NOON + timedelta(minutes=35))
        assert [served(store, s, t) for s, t in [("a", 1), ("a", 2), ("b", 1)]] == states[0]
    assert states[1:] == states[:-1]
    assert states[0][0] == [29.0, [29.0], 135.0, 58.0]


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from datetime import UTC, datetime
    import pandas as pd
    from feast import FeatureStore
    from feast.data_source import PushMode
    from asof import hooks, push

    hooks._now = lambda: datetime(2013, 1, 1, 12, 30, tzinfo=UTC)
    push.write_all = lambda *args, **more: os.kill(os.getpid(), signal.SIGKILL)
    store = FeatureStore(repo_path=sys.argv[1])
    rows = pd.read_pickle(sys.argv[2])
    for mode in (PushMode.ONLINE, PushMode.ONLINE_AND_OFFLINE):
        if os.fork() == 0:
            store.push("sales_push", rows, to=mode)
            os._exit(0)
        _, status = os.wait()
        print(os.WIFSIGNALED(status), flush=True)
    """
)


@pytest.mark.slow
def test_events_pushed_again_after_a_kill_count_once(store, tmp_path, clock):
    rows = frame(("a", 1, 29, 5.0, "second"))
    rows.to_pickle(tmp_path / "rows.pickle")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "repo"), str(tmp_path / "rows.pickle")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert said.stdout.split() == ["True", "True"], said.stderr
    assert served(store) == [None] * 4
    assert source_rows(tmp_path) == 2  # the killed push to both had appended its row
    store.push("sales_push", rows, to=PushMode.ONLINE_AND_OFFLINE)
    assert served(store) == [5.0, [5.0], 6.0, 10.0]
    materialize(store, LONG_AGO, NOON + timedelta(minutes=40))
    assert served(store) == [5.0, [5.0], 6.0, 10.0]
