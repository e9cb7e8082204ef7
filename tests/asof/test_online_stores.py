"""Every online store holds what `as_of` says, read back through Feast: newest value kept, a view whole or absent."""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Float64, Int64, String

from asof import online, sqlite
from asof.materialize import materialize
from asof.repository import load_config
from asof.unwritten import StoreNotWritten
from tests.redis_servers import free_port

DAY = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
UTC_MICROS = pa.timestamp("us", tz="UTC")

shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
till = Entity(name="till", join_keys=["till"], value_type=ValueType.INT64)

PROJECTS = itertools.count()


def at(hours: float) -> datetime:
    return DAY + hours * HOUR


WHOLE_VIEWS = ["sqlite", "postgres_server", "redis_server"]
"""Stores that take a view as a whole or not at all."""


@pytest.fixture(params=[*WHOLE_VIEWS, "redis_cluster"])
def online_store(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The `online_store` section of a repository on each store that is written natively."""
    if request.param == "sqlite":
        return {"type": "sqlite", "path": "data/online.db"}
    return request.getfixturevalue(request.param).online_store


def yaml_of(online_store: dict[str, Any]) -> str:
    """A repository of a project of its own, so that tests can share a server."""
    section = "\n".join(f"  {name}: {value!r}" for name, value in online_store.items())
    return (
        f"project: p{next(PROJECTS)}_{os.getpid()}\nprovider: local\nregistry: data/registry.db\n"
        f"online_store:\n{section}\n"
        "offline_store: {type: asof.offline_store.AsofOfflineStore}\n"
        "batch_engine: {type: asof.compute.AsofComputeEngine}\nentity_key_serialization_version: 3\n"
    )


def land(path: Path, rows: list[tuple[str, int, float, float | None]]) -> None:
    """Rows (shop, till, hour, amount) as a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shops, tills, hours, amounts = zip(*rows, strict=True)
    table = pa.table(
        {
            "shop": pa.array(shops, pa.string()),
            "till": pa.array(tills, pa.int64()),
            "ts": pa.array([at(hour) for hour in hours], UTC_MICROS),
            "amount": pa.array(amounts, pa.float64()),
            "basket": pa.array([None if a is None else [a, a + 1] for a in amounts], pa.list_(pa.float64())),
            "note": pa.array([None if a is None else f"é{a}" for a in amounts], pa.string()),
        }
    )
    pq.write_table(table, path)


def views() -> list[Any]:
    source = FileSource(name="sales", path="data/sales.parquet", timestamp_field="ts")
    plain = [Field(name="amount", dtype=Float64), Field(name="note", dtype=String)]
    aggregations = [
        Aggregation(column="amount", function="count", time_window=2 * HOUR, name="count_2"),
        Aggregation(column="amount", function="sum", time_window=5 * HOUR, slide_interval=HOUR, name="sum_5"),
    ]
    return [
        shop,
        till,
        FeatureView(name="latest", entities=[shop, till], ttl=timedelta(hours=6), schema=plain, source=source),
        FeatureView(
            name="baskets",
            entities=[shop],
            schema=[Field(name="basket", dtype=Array(Float64))],
            source=source,
        ),
        FeatureView(name="anywhere", entities=[], schema=[Field(name="amount", dtype=Float64)], source=source),
        StreamFeatureView(
            name="windows",
            entities=[shop],
            timestamp_field="ts",
            schema=[Field(name="count_2", dtype=Int64), Field(name="sum_5", dtype=Float64)],
            source=PushSource(name="sales_push", batch_source=source),
            aggregations=aggregations,
        ),
    ]


def read(store: FeatureStore, keys: list[tuple[str, int]]) -> list[tuple]:
    """(amount, note, basket, count_2, sum_5) as Feast's own reader gives them."""
    rows = {"shop": [s for s, _ in keys], "till": [t for _, t in keys]}
    features = ["latest:amount", "latest:note", "baskets:basket", "windows:count_2", "windows:sum_5"]
    answer = store.get_online_features(features, entity_rows=rows).to_dict()
    return list(zip(*(answer[name.partition(":")[2]] for name in features), strict=True))


def trained(store: FeatureStore, keys: list[tuple[str, int]], hour: float) -> list[tuple]:
    frame = pd.DataFrame({"shop": [s for s, _ in keys], "till": [t for _, t in keys], "event_timestamp": at(hour)})
    features = ["latest:amount", "latest:note", "baskets:basket", "windows:count_2", "windows:sum_5"]
    answer = store.get_historical_features(frame, features).to_arrow().to_pydict()
    return list(zip(*(answer[name.partition(":")[2]] for name in features), strict=True))


KEYS = [("a", 1), ("a", 2), ("b", 1)]
SALES = [("a", 1, 1.0, 5.0), ("a", 2, 1.5, 0.1), ("b", 1, 2.0, 7.0), ("b", 1, 2.5, None)]


def test_what_is_served_is_what_was_trained_on(make_store, tmp_path, online_store):
    land(tmp_path / "repo/data/sales.parquet", SALES)
    store = make_store(*views(), yaml=yaml_of(online_store))
    done = LONG_AGO
    for hour in (2.25, 3.0, 4.5):
        materialize(store, done, at(hour))
        done = at(hour)
        assert read(store, KEYS) == trained(store, KEYS, hour)
        (anywhere,) = store.get_online_features(["anywhere:amount"], entity_rows=[{"__dummy_id": ""}]).to_dict()[
            "amount"
        ]
        assert anywhere == (7.0 if hour < 2.5 else None)
    # Emptied windows are empty, and the value of a plain view keeps its event time for a reader to judge the TTL by.
    materialize(store, done, at(12))
    assert [row[3:] for row in read(store, KEYS)] == [(0, None)] * 3
    key = EntityKey(join_keys=["shop", "till"], entity_values=[Value(string_val="a"), Value(int64_val=2)])
    provider = store._get_provider()
    ((happened, _),) = provider.online_read(store.config, store.get_feature_view("latest"), [key], ["amount"])
    assert happened == at(1.5)


def test_an_older_event_never_replaces_a_newer_one(make_store, tmp_path, online_store):
    """Not even one that is some microseconds older; an equal one is written again, for it may have been corrected."""
    later = 1.0 + 3 / 3_600_000_000
    land(tmp_path / "repo/data/sales.parquet", [("a", 1, 1.0, 5.0), ("a", 1, later, 6.0)])
    store = make_store(*views(), yaml=yaml_of(online_store))
    assert materialize(store, LONG_AGO, at(2), views=["latest"]) == {"latest": 1}
    land(tmp_path / "repo/data/sales.parquet", [("a", 1, 1.0, 1.0)])
    assert materialize(store, LONG_AGO, at(1), views=["latest"])["latest"] == 0
    assert read(store, KEYS[:1])[0][0] == 6.0
    land(tmp_path / "repo/data/sales.parquet", [("a", 1, later, 8.0)])
    assert materialize(store, LONG_AGO, at(2), views=["latest"])["latest"] == 1
    assert read(store, KEYS[:1])[0][0] == 8.0


def test_events_before_1970_keep_their_order(make_store, tmp_path, online_store):
    epoch = -43 * 365.25 * 24
    moments = [epoch - 100_000, epoch - 1 / 3_600_000_000, epoch + 30 * 24, epoch + 100_000]
    land(tmp_path / "repo/data/sales.parquet", SALES)
    store = make_store(*views(), yaml=yaml_of(online_store))
    for place, hour in enumerate(moments):
        land(tmp_path / "repo/data/sales.parquet", [("a", 1, hour, float(place))])
        assert materialize(store, datetime(1900, 1, 1, tzinfo=UTC), at(hour), views=["baskets"]) == {"baskets": 1}
    for place, hour in list(enumerate(moments))[-2::-1]:
        land(tmp_path / "repo/data/sales.parquet", [("a", 1, hour, float(place))])
        assert materialize(store, datetime(1900, 1, 1, tzinfo=UTC), at(hour), views=["baskets"]) == {"baskets": 0}


def test_many_parts_are_one_write(make_store, tmp_path, online_store, monkeypatch):
    monkeypatch.setattr(online, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(sqlite, "_FEATURES_AT_ONCE", 1)
    rows = [(f"s{i}", i, 1.0 + i / 1000, float(i)) for i in range(100)]
    land(tmp_path / "repo/data/sales.parquet", rows)
    store = make_store(*views(), yaml=yaml_of(online_store))
    counted = materialize(store, LONG_AGO, at(2))
    assert counted == {"latest": 100, "baskets": 100, "anywhere": 1, "windows": 100}
    keys = [(s, t) for s, t, _, _ in rows]
    assert read(store, keys) == trained(store, keys, 2)
    assert materialize(store, LONG_AGO, at(2)) == counted  # running again writes the same
    assert read(store, keys) == trained(store, keys, 2)


@pytest.mark.parametrize("online_store", WHOLE_VIEWS, indirect=True)
def test_a_write_that_fails_half_way_leaves_the_last_complete_state(make_store, tmp_path, online_store, monkeypatch):
    rows = [(f"s{i}", i, 1.5 + i / 1000, float(i)) for i in range(40)]
    keys = [(s, t) for s, t, _, _ in rows]
    land(tmp_path / "repo/data/sales.parquet", rows)
    store = make_store(*views(), yaml=yaml_of(online_store))
    parts = online._parts

    def broken(*args):
        yield from itertools.islice(parts(*args), 2)
        raise RuntimeError("no more")

    monkeypatch.setattr(online, "ROWS_AT_ONCE", 10)
    for hour in (3, 9):  # into an empty store, and over what is there
        before = read(store, keys)
        monkeypatch.setattr(online, "_parts", broken)
        with pytest.raises(RuntimeError, match="no more"):
            materialize(store, LONG_AGO, at(hour), views=["windows"])
        monkeypatch.setattr(online, "_parts", parts)
        assert read(store, keys) == before
        assert materialize(store, LONG_AGO, at(hour), views=["windows"]) == {"windows": 40}
        assert {row[3] for row in read(store, keys)} == {1 if hour == 3 else 0}


def test_rows_written_at_once_are_those_written_one_at_a_time(make_store, tmp_path, monkeypatch):
    """Byte by byte, whatever SQLite holds already."""
    first = [(f"s{i % 17}", i, 1.0 + i / 1000, None if i % 5 == 0 else i / 3 * 10.0**i) for i in range(40)]
    later = [("s1", 1, 2.5, 4.0), ("s2", 2, 0.5, 5.0), ("s3", 3, 2.5, None), ("new", 7, 2.25, -1.0)]
    held, framed = {}, []
    real = sqlite._of_frames
    monkeypatch.setattr(online, "ROWS_AT_ONCE", 15)
    monkeypatch.setattr(sqlite, "_of_frames", lambda *a: framed.append(real(*a)) or framed[-1])
    for many, chunk in ((1, 1000), (1, 1), (1 << 40, 1000)):
        monkeypatch.setattr(sqlite, "MANY", many)
        monkeypatch.setattr(sqlite, "_FEATURES_AT_ONCE", chunk)
        folder = f"{many}_{chunk}"
        store = make_store(*views(), yaml=yaml_of({"type": "sqlite", "path": "data/online.db"}), folder=folder)
        counted = []
        for hour, rows in ((2, first), (3, [*first[:20], *later]), (4, [("s9", 9, 3.5, 1.0)])):
            land(tmp_path / folder / "data/sales.parquet", rows)
            counted.append(materialize(store, LONG_AGO, at(hour)))
        path = tmp_path / folder / "data/online.db"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
            kinds = "typeof(value), typeof(value_text), typeof(event_ts), typeof(created_ts)"
            held[folder] = (
                counted,
                {
                    name.partition("_")[2].partition("_")[2]: connection.execute(
                        f'select *, {kinds} from "{name}" order by entity_key, feature_name'
                    ).fetchall()
                    for name in tables
                },
            )
    assert all(each == held["1_1000"] for each in held.values())
    assert len(held["1_1000"][1]["latest"]) == 2 * 41
    assert framed
    assert None not in framed


def test_a_gap_between_materializations_leaves_nothing_stale(make_store, tmp_path, online_store):
    land(tmp_path / "repo/data/sales.parquet", SALES)
    store = make_store(*views(), yaml=yaml_of(online_store))
    store.materialize(at(2), at(3))  # the first one starts after some events: they count all the same
    assert read(store, KEYS) == trained(store, KEYS, 3)
    store.materialize(at(20), at(21))
    assert [row[3:] for row in read(store, KEYS)] == [(0, None)] * 3


def test_a_table_that_was_lost_is_made_again(make_store, tmp_path, postgres_server):
    land(tmp_path / "repo/data/sales.parquet", SALES)
    store = make_store(*views(), yaml=yaml_of(postgres_server.online_store))
    postgres_server.execute(f"drop table {store.project}_latest")
    materialize(store, LONG_AGO, at(3))
    assert read(store, KEYS) == trained(store, KEYS, 3)


def connected(server: Any) -> psycopg.Connection:
    return psycopg.connect(host=server.folder, dbname="postgres", user="postgres")


def test_what_another_wrote_to_an_empty_table_meanwhile_is_not_overwritten(make_store, tmp_path, postgres_server):
    """Nor does a copy of the same rows fail: no table is taken for empty while another is at work on it."""
    land(tmp_path / "repo/data/sales.parquet", SALES)
    store = make_store(*views(), yaml=yaml_of(postgres_server.online_store))
    table = f"{store.project}_baskets"
    version = store.config.entity_key_serialization_version
    entity = EntityKey(join_keys=["shop"], entity_values=[Value(string_val="a")])
    newer = Value(double_list_val={"val": [-1.0]}).SerializeToString()
    with connected(postgres_server) as other, connected(postgres_server) as watch, ThreadPoolExecutor(1) as pool:
        other.execute(
            f"insert into {table} (entity_key, feature_name, value, event_ts) values (%s, 'basket', %s, %s)",
            (serialize_entity_key(entity, version), newer, at(2.75)),
        )
        done = pool.submit(materialize, store, LONG_AGO, at(3), ["baskets"])
        waits = "select count(*) from pg_locks where not granted"
        while not watch.execute(waits).fetchone()[0] and not done.done():
            time.sleep(0.01)
        assert not done.done()
        other.commit()
        assert done.result() == {"baskets": 1}
    assert [row[2] for row in read(store, [("a", 1), ("b", 1)])] == [[-1.0], None]


def test_pages_keep_room_for_a_second_version_of_each_row_unless_their_owner_says_otherwise(
    make_store, tmp_path, postgres_server
):
    land(tmp_path / "repo/data/sales.parquet", SALES)
    store = make_store(*views(), yaml=yaml_of(postgres_server.online_store))
    postgres_server.execute(f"alter table {store.project}_baskets set (fillfactor = 70)")
    with connected(postgres_server) as other:  # as one who cleans the table up does
        other.execute(f"lock table {store.project}_windows in share update exclusive mode")
        materialize(store, LONG_AGO, at(3))
    said = "select reloptions from pg_class where relname = %s"
    with connected(postgres_server) as watch:
        options = {
            view: watch.execute(said, [f"{store.project}_{view}"]).fetchone()[0]
            for view in ("latest", "baskets", "windows")
        }
    assert options == {"latest": ["fillfactor=50"], "baskets": ["fillfactor=70"], "windows": None}
    assert read(store, KEYS) == trained(store, KEYS, 3)


@pytest.mark.parametrize("online_store", ["redis_server", "redis_cluster"], indirect=True)
def test_rows_that_redis_is_told_to_forget_are_forgotten(make_store, tmp_path, online_store):
    land(tmp_path / "repo/data/sales.parquet", SALES)
    store = make_store(*views(), yaml=yaml_of(online_store | {"key_ttl_seconds": 77}))
    materialize(store, LONG_AGO, at(3))
    client = store._get_provider().online_store._get_client(store.config.online_store)
    held = [key for key in client.scan_iter() if store.project.encode() in key]
    assert len(held) == 3 + 2 + 1  # of both join keys, of one, of none
    assert all(0 < client.ttl(key) <= 77 for key in held)
    for key in held:
        client.expire(key, 0)
    assert read(store, KEYS) == [(None,) * 5] * 3


@pytest.mark.parametrize("online_store", ["redis_cluster"], indirect=True)
def test_in_a_cluster_a_write_cut_short_leaves_whole_rows_and_the_next_completes_it(
    make_store, tmp_path, online_store, monkeypatch
):
    rows = [(f"s{i}", i, 1.5 + i / 1000, float(i)) for i in range(40)]
    keys = [(s, t) for s, t, _, _ in rows]
    land(tmp_path / "repo/data/sales.parquet", rows)
    store = make_store(*views(), yaml=yaml_of(online_store))
    materialize(store, LONG_AGO, at(3), views=["windows"])
    before = read(store, keys)
    parts = online._parts

    def broken(*args):
        yield from itertools.islice(parts(*args), 2)
        raise RuntimeError("no more")

    monkeypatch.setattr(online, "ROWS_AT_ONCE", 10)
    monkeypatch.setattr(online, "_parts", broken)
    with pytest.raises(RuntimeError, match="no more"):
        materialize(store, LONG_AGO, at(9), views=["windows"])
    monkeypatch.setattr(online, "_parts", parts)
    empty = (None, None, None, 0, None)
    assert [read(store, [key])[0] == empty for key in keys].count(True) == 20
    assert all(now in (empty, then) for now, then in zip(read(store, keys), before, strict=True))
    assert materialize(store, LONG_AGO, at(9), views=["windows"]) == {"windows": 40}
    assert set(read(store, keys)) == {empty}


@pytest.mark.parametrize("online_store", ["redis_cluster"], indirect=True)
def test_a_node_that_lost_the_script_is_given_it_again(make_store, tmp_path, online_store, redis_cluster, monkeypatch):
    land(tmp_path / "repo/data/sales.parquet", [(f"s{i}", i, 1.5, float(i)) for i in range(40)])
    store = make_store(*views(), yaml=yaml_of(online_store))
    client = store._get_provider().online_store._get_client(store.config.online_store)
    load, loaded = client.script_load, []

    def loses(script):
        loaded.append(load(script))
        if len(loaded) == 1:
            redis_cluster.servers[2].say("SCRIPT FLUSH")
        return loaded[-1]

    monkeypatch.setattr(client, "script_load", loses)
    assert materialize(store, LONG_AGO, at(3), views=["baskets"]) == {"baskets": 40}
    assert len(loaded) == 2


@pytest.mark.parametrize("redis_type", ["redis", "redis_cluster"])
def test_a_redis_that_does_not_answer_is_named(make_store, tmp_path, redis_type, monkeypatch):
    monkeypatch.setattr("redis.retry.sleep", lambda seconds: None)
    land(tmp_path / "repo/data/sales.parquet", SALES)
    where = f"127.0.0.1:{free_port()}"
    section = {"type": "redis", "redis_type": redis_type, "connection_string": where}
    store = make_store(*views(), yaml=yaml_of(section))
    with pytest.raises(StoreNotWritten, match=f"View 'anywhere' could not .* at {where}: .*refused") as caught:
        materialize(store, LONG_AGO, at(3), views=["anywhere"])
    assert "online_store in feature_store.yaml" in caught.value.hint


def test_a_postgresql_that_does_not_answer_is_named(make_store, tmp_path):
    land(tmp_path / "repo/data/sales.parquet", SALES)
    port = free_port()
    section = {"type": "postgres", "host": "127.0.0.1", "port": port, "database": "features", "user": "u"}
    # Applied while there was another store, since Feast makes its tables then.
    file, applied = tmp_path / "repo/feature_store.yaml", yaml_of({"type": "sqlite", "path": "data/online.db"})
    make_store(*views(), yaml=applied)
    document = yaml.safe_load(applied) | {"online_store": section | {"password": "p"}}
    file.write_text(yaml.safe_dump(document))
    store = FeatureStore(repo_path=str(file.parent), config=load_config(file.parent))
    with pytest.raises(StoreNotWritten, match=f"'anywhere' .*PostgreSQL .* at 127.0.0.1:{port}/features: .*refused"):
        materialize(store, LONG_AGO, at(3), views=["anywhere"])


def test_a_file_that_is_no_database_is_named(make_store, tmp_path):
    land(tmp_path / "repo/data/sales.parquet", SALES)
    store = make_store(*views())
    path = Path(store._get_provider().online_store._get_db_path(store.config))
    path.write_bytes(b"not a database, as its first bytes would say" * 200)
    with pytest.raises(StoreNotWritten, match=rf"SQLite online store at {path}: file is not a database") as caught:
        materialize(store, LONG_AGO, at(3), views=["anywhere"])
    assert "online_store in feature_store.yaml" in caught.value.hint


def test_a_sentinel_that_is_away_is_passed_over_and_the_master_followed(
    make_store, tmp_path, redis_sentinel, monkeypatch
):
    land(tmp_path / "repo/data/sales.parquet", SALES)
    first, second, *others = redis_sentinel.online_store["connection_string"].split(",")
    section = redis_sentinel.online_store | {"connection_string": ",".join([second, first, *others])}
    store = make_store(*views(), yaml=yaml_of(section))
    waited = []
    monkeypatch.setattr("redis.retry.sleep", waited.append)
    materialize(store, LONG_AGO, at(3))
    assert read(store, KEYS) == trained(store, KEYS, 3)
    assert not waited
    redis_sentinel.fail_over()
    materialize(store, LONG_AGO, at(4.5))
    assert read(store, KEYS) == trained(store, KEYS, 4.5)
    redis_sentinel.stop()
    with pytest.raises(StoreNotWritten, match="none of the Sentinels knows a master 'features' that is up"):
        materialize(store, LONG_AGO, at(5), views=["windows"])


# A process that is killed --------------------------------------------------------------------------------------------

KILLED = textwrap.dedent(
    """
    import itertools, os, signal, sys
    from datetime import UTC, datetime
    from asof import online, sqlite
    from asof.materialize import materialize
    from asof.repository import open_store
    from feast.protos.feast.types.Value_pb2 import Value

    def end(place):
        os.kill(os.getpid(), signal.SIGKILL)

    def die(repository, view, point):
        '''Materialize, and be gone at a point of the write.'''
        store = open_store(repository)
        online.ROWS_AT_ONCE, sqlite.MANY = 10, 2
        real, parts = online._parts, itertools.count()
        def parted(*args):
            for part in real(*args):
                if next(parts) == int(point):
                    end(point)
                yield part
        online._parts = parted
        if point == "99":  # everything is written, nothing is committed
            import sqlite3, psycopg
            if store.config.online_store.type == "sqlite":
                class Connection(sqlite3.Connection):
                    def execute(self, statement, *more):
                        end(point) if statement == "commit" else None
                        return super().execute(statement, *more)
                sqlite.sqlite3.connect = lambda path, **how: Connection(path, **how)
            psycopg.Connection.commit = lambda connection: end(point)
            import redis
            redis.client.Pipeline.execute_command = lambda pipe, name, *more: (
                end(point) if name == "EVAL" else redis.client.Pipeline.pipeline_execute_command(pipe, name, *more)
            )
        materialize(store, datetime(2013, 1, 1, 3, tzinfo=UTC), datetime(2013, 1, 1, 9, tzinfo=UTC), [view])

    for repository in sys.argv[1:]:
        for view, point in [("windows", "0"), ("windows", "3"), ("windows", "99"), ("baskets", "1"), ("baskets", "99")]:
            child = os.fork()  # before DuckDB has a thread: importing Feast takes seconds, and is done once
            if child == 0:
                die(repository, view, point)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            print("killed" if os.WIFSIGNALED(status) else "not killed", flush=True)
    """
)


@pytest.mark.slow
def test_a_killed_write_leaves_the_last_complete_state(make_store, tmp_path, postgres_server, redis_server):
    """That is the one before, or none at all: nothing was ever written of one of the views."""
    rows = [(f"s{i}", i, 1.5 + i / 1000, float(i)) for i in range(40)]
    keys = [(s, t) for s, t, _, _ in rows]
    sections = {
        "sqlite": {"type": "sqlite", "path": "data/online.db"},
        "postgres": postgres_server.online_store,
        "redis": redis_server.online_store,
    }
    stores = {}
    for name, section in sections.items():
        land(tmp_path / name / "data/sales.parquet", rows)
        stores[name] = make_store(*views(), yaml=yaml_of(section), folder=name)
        materialize(stores[name], LONG_AGO, at(3), views=["windows"])
    before = {name: read(store, keys) for name, store in stores.items()}
    assert {row[3] for rows in before.values() for row in rows} == {1}
    command = [sys.executable, "-c", KILLED, *(str(tmp_path / name) for name in sections)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert said.stdout.splitlines() == ["killed"] * 15, said.stderr
    for name, store in stores.items():
        assert read(store, keys) == before[name], name
        materialize(store, at(3), at(9))
        assert {row[3:] for row in read(store, keys)} == {(0, None)}, name


DEFINITIONS = """\
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, PushSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.types import Float64, Int64

shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
source = FileSource(name="sales", path="data/sales.parquet", timestamp_field="ts")
latest = FeatureView(
    name="latest", entities=[shop], ttl=timedelta(0), schema=[Field(name="amount", dtype=Float64)], source=source
)
windows = StreamFeatureView(
    name="windows",
    entities=[shop],
    timestamp_field="ts",
    schema=[Field(name="count_2", dtype=Int64)],
    source=PushSource(name="sales_push", batch_source=source),
    aggregations=[
        Aggregation(column="amount", function="count", time_window=timedelta(hours=2), name="count_2"),
    ],
)
"""


@pytest.mark.slow
def test_the_commands_of_feast_write_every_live_key(tmp_path):
    """What somebody who knows only Feast types; nothing of ours is named but in the yaml."""
    repo = tmp_path / "repo"
    land(repo / "data/sales.parquet", [*SALES, ("c", 3, 2.2, 1.5)])
    (repo / "feature_store.yaml").write_text(yaml_of({"type": "sqlite", "path": "data/online.db"}))
    (repo / "definitions.py").write_text(DEFINITIONS)
    feast = str(Path(sys.executable).with_name("feast"))
    served = []
    for command in (
        [feast, "-c", str(repo), "apply"],
        [feast, "-c", str(repo), "materialize", "2013-01-01T02:30:00", "2013-01-01T03:15:00"],
        [feast, "-c", str(repo), "materialize-incremental", "2013-01-01T09:00:00"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        if "apply" not in command:
            answer = FeatureStore(str(repo)).get_online_features(
                ["latest:amount", "windows:count_2"], entity_rows={"shop": ["a", "b", "c", "d"]}
            )
            served.append([answer.to_dict()[name] for name in ("amount", "count_2")])
    assert served == [[[0.1, None, 1.5, None], [1, 1, 1, None]], [[0.1, None, 1.5, None], [0, 0, 0, None]]]
