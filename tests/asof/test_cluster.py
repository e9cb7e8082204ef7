"""The shards on a real Ray: through `feature_store.yaml`, with a killed worker, with an error, and gone afterwards."""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import BatchFeatureView, Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.aggregation import Aggregation
from feast.types import Float64, Int64

from asof import cluster
from asof.cluster import Cluster, ClusterTooSmall, ClusterUnreachable, ShardFailed, ShardLost
from asof.definition import Feature, Key, View
from asof.engine import Spine, as_of
from asof.materialize import materialize
from asof.repository import InvalidRepository
from asof.session import Session
from asof.shards import Shards
from asof.source import Source
from asof.transform import Transform, TransformFailed
from tests.redis_servers import free_port, until

pytestmark = pytest.mark.ray

DAY = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
START = 1_356_998_400_000_000
YAML = """\
project: demo
provider: local
registry: data/registry.db
online_store: {type: sqlite, path: data/online.db}
entity_key_serialization_version: 3
offline_store:
  type: asof.offline_store.AsofOfflineStore
"""
SHARDED = YAML + "  shards: 3\n  ray_address: local\n"
shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
till = Entity(name="till", join_keys=["till"], value_type=ValueType.INT64)


@pytest.fixture(scope="module")
def workers() -> Iterator[Cluster]:
    """One Ray for the module, on this machine alone."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    found = Cluster("local")
    processes = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    addresses = {
        address.laddr.ip.removeprefix("::ffff:")
        for process in processes
        for address in process.net_connections(kind="inet")
        if address.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}
    assert "RAY_AUTH_TOKEN" not in os.environ
    yield found
    cluster.disconnect()
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


def test_a_cluster_that_does_not_answer_is_said_with_what_to_do():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(ClusterUnreachable, match=f"ray_address '{address}'") as caught:
            Cluster(address)
        assert "ray start --head" in caught.value.hint
    with pytest.raises(ClusterUnreachable, match="is 'nearby'") as caught:
        Cluster("nearby")
    assert "One of local, auto" in caught.value.hint


def test_half_a_configuration_is_refused(make_store):
    with pytest.raises(InvalidRepository, match="shards is 3 and ray_address is missing: give both"):
        make_store(shop, yaml=YAML + "  shards: 3\n")
    with pytest.raises(InvalidRepository, match="shards"):
        make_store(shop, yaml=YAML + "  shards: 0\n  ray_address: local\n")


def doubled(rows: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    return rows.with_columns(amount=pl.col("amount") * 2)


def taxed(table):
    return f"select * replace (amount * 1.19 as amount) from {table}"


def objects() -> list[Any]:
    source = FileSource(name="sales", path="data/sales.parquet", timestamp_field="ts")
    plain = FeatureView(
        name="plain", entities=[shop, till], ttl=30 * HOUR, schema=[Field(name="amount", dtype=Float64)], source=source
    )
    whole = FeatureView(name="whole", entities=[], schema=[Field(name="amount", dtype=Float64)], source=source)
    windows = [
        BatchFeatureView(
            name=f"by_{mode}",
            mode=mode,
            entities=[shop],
            online=True,
            schema=[
                Field(name=f"{mode}_{function}", dtype=Int64 if function == "count" else Float64)
                for function in ("count", "sum", "mean", "std", "median")
            ],
            source=source,
            udf=udf,
            udf_string=inspect.getsource(udf),
            aggregations=[
                Aggregation(column="amount", function=function, time_window=5 * HOUR, name=f"{mode}_{function}")
                for function in ("count", "sum", "mean", "std", "median")
            ],
        )
        for mode, udf in (("python", doubled), ("sql", taxed))
    ]
    return [shop, till, plain, whole, *windows]


def land(repo: Path) -> None:
    rng = np.random.default_rng(1)
    count = 400
    path = repo / "data/sales.parquet"
    path.parent.mkdir(parents=True)
    table = {
        "shop": rng.choice(["a", "b", "c", "d", "é"], count),
        "till": rng.integers(1, 4, count),
        "ts": pa.array(START + rng.integers(0, 48 * 3600, count) * 1_000_000, pa.timestamp("us", "UTC")),
        "amount": rng.normal(size=count),
    }
    pq.write_table(pa.table(table), path)


def dump(store: FeatureStore) -> list[tuple]:
    connection = store._get_provider().online_store._get_conn(store.config)
    tables = [row[0] for row in connection.execute("select name from sqlite_master where type='table' order by 1")]
    return [
        (table, *row)
        for table in tables
        for row in connection.execute(f'select entity_key, feature_name, value, event_ts from "{table}" order by 1, 2')
    ]


@pytest.mark.slow
def test_training_and_materialization_are_the_same_bytes_as_in_one_process(make_store, tmp_path, workers):
    stores = []
    for folder, yaml in (("one", YAML), ("split", SHARDED)):
        land(tmp_path / folder)
        stores.append(make_store(*objects(), yaml=yaml, folder=folder))
    rng = np.random.default_rng(2)
    asked = pd.DataFrame(
        {
            "shop": rng.choice(["a", "b", "c", "d", "é", "never"], 200),
            "till": rng.integers(1, 5, 200),
            "event_timestamp": [DAY + int(minutes) * timedelta(minutes=1) for minutes in rng.integers(0, 4000, 200)],
        }
    )
    references = [
        "plain:amount",
        *(f"by_{mode}:{mode}_{f}" for mode in ("python", "sql") for f in ("count", "sum", "mean", "std", "median")),
    ]
    one, split = (store.get_historical_features(asked, references).to_arrow() for store in stores)
    assert split.equals(one)
    assert one["python_sum"].null_count < 200
    names = [f"whole:{name}" for name in ("amount",)]
    one, split = (store.get_historical_features(asked, names).to_arrow() for store in stores)
    assert split.equals(one)
    written = [materialize(store, DAY - 99 * HOUR, DAY + 20 * HOUR) for store in stores]
    assert written[0] == written[1]
    assert dump(stores[0]) == dump(stores[1])


def view_and_spine(tmp_path: Path, transform: Transform | None = None) -> tuple[View, Spine]:
    ts = pa.array([START] * 8, pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"k": list(range(8)), "ts": ts, "n": list(range(8))}), tmp_path / "rows.parquet")
    source = Source("v", str(tmp_path / "rows.parquet"), "ts", None, transform=transform)
    feature = (Feature("n", None, pa.int64()),)
    view = View("v", (Key("k", "k", pa.int64(), None),), feature, feature, (), source, 0, 0)
    spine = Spine(pa.table({"k": list(range(8))[::-1]}), np.full(8, START + 1, np.int64), np.ones(8, bool))
    return view, spine


def end_this_process() -> None:
    """Beside the transformation, in a module no worker can import."""
    os.kill(os.getpid(), signal.SIGKILL)


def dies(marker: Path | None) -> Transform:
    """A transformation whose worker is killed while it runs: the first time, or every time."""

    def kill(rows: pa.Table) -> pa.Table:
        if marker is None or not marker.exists():
            if marker is not None:
                marker.touch()
            end_this_process()
        return rows

    return Transform(kill, is_sql=False)


ASKS = """
import sys
import time
from pathlib import Path
from asof.cluster import Cluster, ClusterUnreachable, disconnect
from asof.engine import as_of
from asof.session import Session
from asof.shards import Shards
from tests.asof.test_cluster import view_and_spine

view, spine = view_and_spine(Path(sys.argv[1]))
for line in sys.stdin:
    address, *slowly = line.split()
    try:
        workers = Cluster(address)
        if slowly:
            handles = workers.start(time.sleep, 600)
            print("under way", flush=True)
            list(workers.finished(handles))
        with Session(elsewhere=Shards(2, workers)) as session:
            (answer,) = as_of([view], spine, session)
        print(answer.features["n"].to_pylist(), flush=True)
    except ClusterUnreachable as error:
        print("unreachable:", error.fact, flush=True)
    if not address.startswith("ray://"):
        disconnect()
"""


def token() -> str:
    """The one that this process's Ray asks for: its own finding, where another test had imported Ray before."""
    from ray._raylet import AuthenticationTokenLoader

    found: str = AuthenticationTokenLoader.instance().get_raw_token()
    return found


@contextlib.contextmanager
def client_server(gcs: str, port: int, environment: dict[str, str]) -> Iterator[None]:
    """What `ray start --head` has for `ray://`."""
    command = [sys.executable, "-m", "ray.util.client.server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--address", gcs, "--mode", "specific-server"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: is_listening(port), "Ray's client server listens")
        yield
    finally:
        server.kill()
        server.wait()


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_another_process_joins_by_every_kind_of_address_and_finds_a_client_server_again(tmp_path, workers):
    import ray  # not before asof does: it reads its environment then

    gcs, port = ray.get_runtime_context().gcs_address, free_port()
    client = f"ray://127.0.0.1:{port}"
    environment = os.environ | cluster._ALONE | cluster._TOKEN | {"RAY_ADDRESS": "", "RAY_AUTH_TOKEN": token()}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ASKS, str(tmp_path)],
        env=environment | {"RAY_ADDRESS": gcs, "RAY_CLIENT_RECONNECT_GRACE_PERIOD": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:

        def ask(address: str) -> str:
            print(address, file=child.stdin, flush=True)
            return child.stdout.readline().strip()

        right = str(list(range(8))[::-1])
        try:
            assert ask(gcs) == right
            assert ask("auto") == right
            with client_server(gcs, port, environment):
                assert ask(client) == right
                assert ask(client) == right
            assert ask(client).startswith(
                f"unreachable: No Ray cluster answers at offline_store.ray_address '{client}'"
            )
            with client_server(gcs, port, environment):
                assert ask(client) == right
                assert ask(f"{client} slowly") == "under way"
            gone = f"unreachable: The Ray cluster at offline_store.ray_address '{client}' went away while shards"
            assert child.stdout.readline().startswith(gone)
        finally:
            child.kill()


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_answer_is_right(tmp_path, workers):
    view, spine = view_and_spine(tmp_path, dies(tmp_path / "died"))
    with Session(elsewhere=Shards(4, workers)) as session:
        (answer,) = as_of([view], spine, session)
    assert (tmp_path / "died").exists()
    assert answer.features["n"].to_pylist() == list(range(8))[::-1]


@pytest.mark.slow
def test_a_worker_that_dies_every_time_is_given_up(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(cluster, "TRIES", 1)
    view, spine = view_and_spine(tmp_path, dies(None))
    with Session(elsewhere=Shards(2, workers)) as session, pytest.raises(ShardLost, match="died 2 times") as caught:
        as_of([view], spine, session)
    assert "raise offline_store.shards" in caught.value.hint


@pytest.mark.slow
def test_an_error_inside_a_shard_is_the_one_of_a_single_process(tmp_path, workers):
    view, spine = view_and_spine(tmp_path, Transform(lambda rows: rows["nowhere"], is_sql=False))
    said = []
    for elsewhere in (None, Shards(2, workers)):
        with Session(elsewhere=elsewhere) as session, pytest.raises(TransformFailed) as caught:
            as_of([view], spine, session)
        said.append((type(caught.value), str(caught.value), caught.value.hint))
    assert said[0] == said[1]
    assert "KeyError: 'nowhere'" in said[0][1]


def raises_what_nobody_expects() -> None:
    raise ZeroDivisionError("a bug")


@pytest.mark.slow
def test_what_no_asof_error_describes_is_told_as_it_is(workers):
    handles = workers.start(raises_what_nobody_expects)
    with pytest.raises(ShardFailed, match="ZeroDivisionError: a bug"):
        list(workers.finished(handles))


@pytest.mark.slow
def test_a_shard_that_fits_no_machine_is_refused_before_it_waits_for_ever(workers):
    with pytest.raises(ClusterTooSmall, match="asks for 9999 CPUs"):
        Cluster("local", threads=9999)
