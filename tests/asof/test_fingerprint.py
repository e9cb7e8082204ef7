"""A fingerprint changes with whatever can change a value, and with nothing else."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import BatchFeatureView, Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.aggregation import Aggregation
from feast.types import Float32, Float64

from asof.fingerprint import service_fingerprint

HOUR = timedelta(hours=1)


def fingerprint(make_store, tmp_path: Path, folder: str = "repo", window: timedelta = HOUR, **change: Any) -> str:
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
    data = tmp_path / folder / "data"
    data.mkdir(parents=True)
    path = change.pop("path", "rows.parquet")
    pq.write_table(pa.table({"user": [1], "ts": pa.array([0], pa.timestamp("us", "UTC")), "x": [1.0]}), data / path)
    source = FileSource(
        name="rows", path=f"data/{path}", timestamp_field="ts", created_timestamp_column=change.pop("created", "")
    )
    plain = FeatureView(
        **{
            "name": "plain",
            "entities": [user],
            "ttl": HOUR,
            "schema": [Field(name="x", dtype=Float64)],
            "source": source,
            **change,
        }
    )
    windows = BatchFeatureView(
        name="windows",
        entities=[user],
        schema=[Field(name="total", dtype=Float64)],
        source=source,
        aggregations=[Aggregation(column="x", function="sum", time_window=window, name="total")],
    )
    service = FeatureService(name="service", features=[plain, windows])
    return service_fingerprint(make_store(user, plain, windows, service, folder=folder), "service")


@pytest.mark.parametrize(
    "change",
    [
        {"ttl": 2 * HOUR},
        {"schema": [Field(name="x", dtype=Float32)]},
        {"tags": {"asof.every": "1h"}},
        {"created": "x"},
        {"window": 2 * HOUR},
    ],
)
def test_what_can_change_a_value(make_store, tmp_path, change):
    assert fingerprint(make_store, tmp_path) != fingerprint(make_store, tmp_path, folder="other", **change)


@pytest.mark.parametrize("change", [{"description": "words"}, {"owner": "someone"}, {"path": "elsewhere.parquet"}, {}])
def test_what_cannot(make_store, tmp_path, change):
    assert fingerprint(make_store, tmp_path) == fingerprint(make_store, tmp_path, folder="other", **change)
