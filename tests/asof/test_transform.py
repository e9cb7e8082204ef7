"""Transformations run on the source rows, before the join or the aggregation, offline as online."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import BatchFeatureView, Entity, Field, FileSource, ValueType
from feast.aggregation import Aggregation
from feast.transformation.mode import TransformationMode
from feast.types import Float64

from asof.materialize import materialize
from asof.repository import apply_repository, open_store
from asof.transform import Transform, TransformFailed, apply
from asof.view import UnsupportedView

DAY = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
ROWS = pa.table({"x": [1, 2]})


def by_pandas(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(x=rows["x"] * 10)


def by_polars(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.col("x") * 10)


def by_lazy(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.with_columns(pl.col("x") * 10)


def by_arrow(rows: pa.Table) -> dict:
    return {"x": [value * 10 for value in rows["x"].to_pylist()]}


@pytest.mark.parametrize("function", [by_pandas, by_polars, by_lazy, by_arrow, lambda rows: by_pandas(rows)])
def test_the_frame_asked_for_is_the_frame_given(function):
    assert apply(Transform(function, is_sql=False), ROWS, "v")["x"].to_pylist() == [10, 20]


def test_annotations_as_classes_work_too():
    def typed(rows):
        assert isinstance(rows, pl.DataFrame)
        return rows.to_arrow()

    typed.__annotations__["rows"] = pl.DataFrame
    assert apply(Transform(typed, is_sql=False), ROWS, "v")["x"].to_pylist() == [1, 2]


def test_what_a_function_does_wrong_is_said():
    with pytest.raises(TransformFailed, match="View 'v': its transformation raised KeyError: 'y'"):
        apply(Transform(lambda rows: rows["y"], is_sql=False), ROWS, "v")
    with pytest.raises(TransformFailed, match="returned int"):
        apply(Transform(lambda rows: 3, is_sql=False), ROWS, "v")
    with pytest.raises(TransformFailed, match="must return text, found int"):
        Transform(lambda table: 3, is_sql=True).sql("t")


def in_sql(table):
    return f"select user, ts, amount * 2 as doubled from {table} where amount > 0;"


def in_pandas(rows):
    return rows[rows["amount"] > 0].assign(doubled=lambda r: r["amount"] * 2)


def in_polars(rows: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    return rows.filter(pl.col("amount") > 0).with_columns(doubled=pl.col("amount") * 2)


@pytest.mark.parametrize(
    ("mode", "udf"),
    [(TransformationMode.SQL, in_sql), (TransformationMode.PANDAS, in_pandas), (TransformationMode.PYTHON, in_polars)],
)
@pytest.mark.parametrize("windowed", [False, True])
def test_through_the_registry_offline_and_online(make_store, tmp_path, mode, udf, windowed):
    import inspect

    path = tmp_path / "repo/data/spend.parquet"
    path.parent.mkdir(parents=True)
    ts = pa.array([DAY, DAY + HOUR, DAY + 2 * HOUR], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"user": [1, 1, 1], "ts": ts, "amount": [1.0, 2.5, -9.0]}), path)
    total = Aggregation(column="doubled", function="sum", time_window=5 * HOUR, name="doubled")
    view = BatchFeatureView(
        name="spend",
        mode=mode,
        entities=[user],
        online=True,
        schema=[Field(name="doubled", dtype=Float64)],
        source=FileSource(name="spend", path="data/spend.parquet", timestamp_field="ts"),
        udf=udf,
        udf_string=inspect.getsource(udf),
        aggregations=[total] if windowed else None,
    )
    store = make_store(user, view)
    want = [7.0 if windowed else 5.0]
    asked = pd.DataFrame({"user": [1], "event_timestamp": [DAY + 3 * HOUR]})
    assert store.get_historical_features(asked, ["spend:doubled"]).to_arrow()["doubled"].to_pylist() == want
    materialize(store, datetime(2000, 1, 1, tzinfo=UTC), DAY + 3 * HOUR)
    assert store.get_online_features(["spend:doubled"], [{"user": 1}]).to_dict()["doubled"] == want


def test_what_a_transformation_uses_from_its_module_comes_along(make_store, tmp_path):
    folder = tmp_path / "repo"
    (folder / "data").mkdir(parents=True)
    ts = pa.array([DAY], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"user": [1], "ts": ts, "amount": [2.5]}), folder / "data/spend.parquet")
    (folder / "feature_store.yaml").write_text(YAML)
    (folder / "definitions.py").write_text(DEFINITIONS)
    apply_repository(folder)
    asked = pd.DataFrame({"user": [1], "event_timestamp": [DAY]})
    got = open_store(folder).get_historical_features(asked, ["spend:taxed"]).to_arrow()
    assert got["taxed"].to_pylist() == [3.0]


YAML = """\
project: demo
provider: local
registry: data/registry.db
offline_store: {type: asof.offline_store.AsofOfflineStore}
batch_engine: {type: asof.compute.AsofComputeEngine}
online_store: {type: sqlite, path: data/online.db}
entity_key_serialization_version: 3
"""

DEFINITIONS = """\
import polars as pl
from feast import Entity, Field, FileSource, ValueType
from feast.batch_feature_view import batch_feature_view
from feast.types import Float64

TAX = 1.2
source = FileSource(name="spend", path="data/spend.parquet", timestamp_field="ts")
user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)


@batch_feature_view(mode="python", entities=[user], schema=[Field(name="taxed", dtype=Float64)], source=source)
def spend(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(taxed=pl.col("amount") * TAX)
"""


def test_a_mode_for_clusters_is_refused(make_store, tmp_path):
    path = tmp_path / "repo/data/spend.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"user": [1], "ts": pa.array([DAY], pa.timestamp("us", "UTC")), "x": [1.0]}), path)
    view = BatchFeatureView(
        name="spend",
        mode="ray",
        entities=[user],
        schema=[Field(name="x", dtype=Float64)],
        source=FileSource(name="spend", path="data/spend.parquet", timestamp_field="ts"),
        udf=in_pandas,
        udf_string="",
    )
    store = make_store(user, view)
    asked = pd.DataFrame({"user": [1], "event_timestamp": [DAY]})
    with pytest.raises(UnsupportedView, match="'ray' does not run on one machine"):
        store.get_historical_features(asked, ["spend:x"])
