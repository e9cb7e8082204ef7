"""Sources beyond local Parquet files: partitioned folders, Delta tables, an S3-compatible object store."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import Entity, FeatureView, Field, FileSource, PushSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.data_format import DeltaFormat
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.types import Float64, Int64, String

from asof import newest
from asof.dataset import ObjectStore, PackageMissing
from asof.landing import LandingMismatch
from asof.offline_store import AsofOfflineStore
from asof.retrieval import SavedDatasetExists, UnsupportedDestination
from asof.session import SourceNotFound

DAY = datetime(2013, 1, 1, tzinfo=UTC)
driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)


def at(hours: float) -> datetime:
    return DAY + timedelta(hours=hours)


def rows(driver_id: list[int], hours: list[float], v: list[float], **more) -> pa.Table:
    times = pa.array([at(h) for h in hours], pa.timestamp("us", "UTC"))
    return pa.table({"driver_id": pa.array(driver_id, pa.int64()), "ts": times, "v": v, **more})


ROWS = rows([1, 1, 2], [0, 2, 1], [1.0, 2.0, 9.0])
ASKED = pd.DataFrame({"driver_id": [1, 2, 1, 3], "event_timestamp": [at(3), at(3), at(1), at(3)]})
WANTED = [2.0, 9.0, 1.0, None]


def view_of(source: FileSource, *more: Field) -> FeatureView:
    return FeatureView(name="d", entities=[driver], schema=[Field(name="v", dtype=Float64), *more], source=source)


def ask(store, *features: str, frame: pd.DataFrame = ASKED) -> list[list]:
    got = store.get_historical_features(frame, [f"d:{f}" for f in features]).to_arrow()
    return [got[f].to_pylist() for f in features]


@pytest.fixture(params=["searched as arrays", "joined by DuckDB"], autouse=True)
def way(request, monkeypatch) -> None:
    if request.param == "joined by DuckDB":
        monkeypatch.setattr(newest, "CELLS_AT_ONCE", 0)
        monkeypatch.setattr(newest, "CELLS_OF_A_KEY", 0)


# Partitioned folders -------------------------------------------------------------------------------------------------


def partitioned(folder: Path) -> None:
    for part, hours, v in (("01", [0], [1.0]), ("02", [2], [2.0]), ("north%20end", [1], [9.0])):
        (folder / f"region={part}").mkdir(parents=True)
        pq.write_table(rows([1], hours, v), folder / f"region={part}/part.parquet")


def test_a_partition_folder_is_a_text_column_fit_for_a_feature(tmp_path, make_store):
    partitioned(tmp_path / "repo/data/d")
    source = FileSource(name="d", path="data/d", timestamp_field="ts")
    store = make_store(driver, view_of(source, Field(name="region", dtype=String)))
    frame = pd.DataFrame({"driver_id": [1, 1, 1], "event_timestamp": [at(0), at(1), at(3)]})
    assert ask(store, "region", "v", frame=frame) == [["01", "north end", "02"], [1.0, 9.0, 2.0]]


def test_a_partition_folder_is_fit_for_a_key(tmp_path, make_store):
    partitioned(tmp_path / "repo/data/d")
    region = Entity(name="region", join_keys=["region"], value_type=ValueType.STRING)
    source = FileSource(name="d", path="data/d", timestamp_field="ts")
    view = FeatureView(name="d", entities=[region], schema=[Field(name="v", dtype=Float64)], source=source)
    frame = pd.DataFrame({"region": ["02", "north end", "1", "01"], "event_timestamp": [at(9)] * 4})
    assert ask(make_store(region, view), "v", frame=frame) == [[2.0, 9.0, None, 1.0]]


def test_a_numbered_partition_is_a_number_where_it_is_declared_one(tmp_path, make_store):
    for month in (1, 2):
        folder = tmp_path / f"repo/data/d/month={month}"
        folder.mkdir(parents=True)
        pq.write_table(rows([month], [month], [float(month)]), folder / "part.parquet")
    source = FileSource(name="d", path="data/d", timestamp_field="ts")
    store = make_store(driver, view_of(source, Field(name="month", dtype=Int64)))
    frame = pd.DataFrame({"driver_id": [1, 2], "event_timestamp": [at(9)] * 2})
    assert ask(store, "month", frame=frame) == [[1, 2]]


# Delta ---------------------------------------------------------------------------------------------------------------


def delta_source(path: str, **more) -> FileSource:
    return FileSource(name="d", path=path, timestamp_field="ts", file_format=DeltaFormat(), **more)


def test_a_delta_table_is_read_at_its_newest_version(tmp_path, make_store):
    table = tmp_path / "repo/data/d"
    write_deltalake(str(table), rows([1], [0], [-1.0]))
    store = make_store(driver, view_of(delta_source("data/d")))
    assert ask(store, "v") == [[-1.0, None, -1.0, None]]
    write_deltalake(str(table), ROWS, mode="overwrite")  # the file of the first version is still in the folder
    assert ask(store, "v") == [WANTED]


def test_a_partitioned_delta_table_feeds_a_window(tmp_path, make_store):
    table = ROWS.append_column("region", pa.array(["a", "b", "a"]))
    write_deltalake(str(tmp_path / "repo/data/d"), table, partition_by=["region"])
    view = StreamFeatureView(
        name="d",
        entities=[driver],
        timestamp_field="ts",
        schema=[Field(name="total", dtype=Float64), Field(name="regions", dtype=Int64)],
        source=PushSource(name="push", batch_source=delta_source("data/d")),
        aggregations=[
            Aggregation(column="v", function="sum", time_window=timedelta(hours=5), name="total"),
            Aggregation(column="region", function="count_distinct", time_window=timedelta(hours=5), name="regions"),
        ],
    )
    assert ask(make_store(driver, view), "total", "regions") == [[3.0, 9.0, 1.0, None], [2, 1, 1, 0]]


def test_rows_written_to_a_delta_table_are_one_commit(tmp_path, make_store):
    table = tmp_path / "repo/data/d"
    write_deltalake(str(table), ROWS)
    view = view_of(delta_source("data/d"))
    store = make_store(driver, view)
    AsofOfflineStore.offline_write_batch(store.config, view, rows([3], [1], [7.0]), None)
    assert DeltaTable(str(table)).version() == 1
    assert ask(store, "v") == [[*WANTED[:3], 7.0]]
    with pytest.raises(LandingMismatch, match="missing columns \\['v'\\]"):
        AsofOfflineStore.offline_write_batch(store.config, view, ROWS.drop_columns(["v"]), None)


def test_what_is_no_delta_table_is_said(tmp_path, make_store):
    (tmp_path / "repo/data/d").mkdir(parents=True)
    store = make_store(driver, view_of(delta_source("data/d")))
    with pytest.raises(SourceNotFound, match="'d': no data at"):
        ask(store, "v")


def test_without_the_package_the_error_names_it(tmp_path, make_store, monkeypatch):
    store = make_store(driver, view_of(delta_source("data/d")))
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(PackageMissing, match="package deltalake is not installed") as caught:
        store.get_historical_features(ASKED, ["d:v"])  # nothing has run yet
    assert "data/d" in str(caught.value)
    assert "pip install" in str(caught.value)


# An object store -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch) -> Iterator[tuple[str, str]]:
    """(s3://bucket, endpoint), empty."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/features", method="PUT")).close()
    yield "s3://features", s3_server
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/moto-api/reset", method="POST")).close()


def land(uri: str, endpoint: str, table: pa.Table) -> None:
    filesystem, path = ObjectStore(uri, endpoint).place()
    pq.write_table(table, path, filesystem=filesystem)


def s3_source(uri: str, endpoint: str, **more) -> FileSource:
    return FileSource(name="d", path=uri, timestamp_field="ts", s3_endpoint_override=endpoint, **more)


def test_one_object(bucket, make_store):
    uri, endpoint = bucket
    land(f"{uri}/d.parquet", endpoint, ROWS)
    store = make_store(driver, view_of(s3_source(f"{uri}/d.parquet", endpoint)))
    assert ask(store, "v") == [WANTED]


def test_a_prefix_with_partitions(bucket, make_store):
    uri, endpoint = bucket
    land(f"{uri}/d/region=01/a.parquet", endpoint, ROWS.slice(0, 1))
    land(f"{uri}/d/region=02/a.parquet", endpoint, ROWS.slice(1))
    land(f"{uri}/d/_unfinished.parquet", endpoint, rows([1], [2.5], [-1.0]))
    view = view_of(s3_source(f"{uri}/d", endpoint), Field(name="region", dtype=String))
    assert ask(make_store(driver, view), "v", "region") == [WANTED, ["02", "02", "01", None]]


def test_a_delta_table_in_an_object_store(bucket, make_store):
    uri, endpoint = bucket
    options = {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"}
    write_deltalake(f"{uri}/d", ROWS, storage_options=options)
    view = view_of(s3_source(f"{uri}/d", endpoint, file_format=DeltaFormat()))
    store = make_store(driver, view)
    AsofOfflineStore.offline_write_batch(store.config, view, rows([3], [1], [7.0]), None)
    assert ask(store, "v") == [[*WANTED[:3], 7.0]]


@pytest.mark.parametrize("name", ["d.parquet", "d"])
def test_rows_written_to_an_object_or_a_prefix(bucket, make_store, name):
    uri, endpoint = bucket
    view = view_of(s3_source(f"{uri}/{name}", endpoint))
    store = make_store(driver, view)
    with pytest.raises(SourceNotFound, match=f"no data at s3://features/{name}"):
        ask(store, "v")
    AsofOfflineStore.offline_write_batch(store.config, view, ROWS, None)
    AsofOfflineStore.offline_write_batch(store.config, view, rows([3], [1], [7.0]), None)
    assert ask(store, "v") == [[*WANTED[:3], 7.0]]
    with pytest.raises(LandingMismatch):
        AsofOfflineStore.offline_write_batch(store.config, view, ROWS.drop_columns(["v"]), None)


def test_saved_datasets_and_feature_logs_go_to_an_object_store(tmp_path, bucket, make_store):
    uri, endpoint = bucket
    land(f"{uri}/d.parquet", endpoint, ROWS)
    store = make_store(driver, view_of(s3_source(f"{uri}/d.parquet", endpoint)))
    job = store.get_historical_features(ASKED, ["d:v"])
    storage = SavedDatasetFileStorage(path=f"{uri}/saved.parquet", s3_endpoint_override=endpoint)
    job.persist(storage)
    filesystem, path = ObjectStore(f"{uri}/saved.parquet", endpoint).place()
    assert pq.read_table(path, filesystem=filesystem)["v"].to_pylist() == WANTED
    with pytest.raises(SavedDatasetExists, match=r"s3://features/saved\.parquet"):
        job.persist(storage)
    with pytest.raises(UnsupportedDestination, match="DeltaFormat"):
        job.persist(SavedDatasetFileStorage(path="data/saved", file_format=DeltaFormat()))
    logs = FileLoggingDestination(path=f"{uri}/logs", s3_endpoint_override=endpoint)
    AsofOfflineStore.write_logged_features(
        store.config, ROWS, None, LoggingConfig(destination=logs, sample_rate=1.0), store.registry
    )
    assert ObjectStore(f"{uri}/logs", endpoint).open().count_rows() == 3
