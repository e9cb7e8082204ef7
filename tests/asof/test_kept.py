"""What is applied is what the registry holds: a changed definition is stored, an unchanged one stays as it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import BatchFeatureView, FeatureStore, Field, FileSource
from feast.types import Float64

from asof.materialize import materialize
from asof.repository import apply_repository, open_store

DAY = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)

YAML = """\
project: demo
provider: local
registry: {registry}
offline_store: {{type: asof.offline_store.AsofOfflineStore}}
batch_engine: {{type: asof.compute.AsofComputeEngine}}
online_store: {{type: sqlite, path: data/online.db}}
entity_key_serialization_version: 3
"""

DEFINITIONS = """\
import inspect
from datetime import timedelta

import polars as pl
from feast import BatchFeatureView, Entity, FeatureView, Field, FileSource, ValueType
from feast.aggregation import Aggregation
from feast.batch_feature_view import batch_feature_view
from feast.types import Float64

user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
source = FileSource(name="spend", path="data/spend.parquet", timestamp_field="ts")
about = dict(
    entities=[user], schema=[Field(name="amount", dtype=Float64)], source=source, online=True, description=DESCRIPTION
)
windows = [Aggregation(column="amount", function="sum", time_window=timedelta(hours=HOURS), name="amount")]
"""

KINDS = {
    "sql": """
@batch_feature_view(mode="sql", **about)
def spend(table):
    return f"select * replace (amount * FACTOR as amount) from {table}"
""",
    "pandas": """
@batch_feature_view(mode="pandas", **about)
def spend(rows):
    return rows.assign(amount=rows["amount"] * FACTOR)
""",
    "python, in windows": """
def spend(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(amount=pl.col("amount") * FACTOR)

text = inspect.getsource(spend)
view = BatchFeatureView(name="spend", mode="python", udf=spend, udf_string=text, aggregations=windows, **about)
""",
    "windows alone": """
view = BatchFeatureView(name="spend", aggregations=windows, **about)
""",
    "none": """
view = FeatureView(name="spend", **about)
""",
}


@pytest.fixture(params=["file", "sql"])
def repo(tmp_path: Path, request) -> Path:
    (tmp_path / "data").mkdir()
    ts = pa.array([DAY, DAY + HOUR], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"user": [1, 1], "ts": ts, "amount": [1.0, 2.5]}), tmp_path / "data/spend.parquet")
    sql = f"{{registry_type: sql, path: 'sqlite:///{tmp_path}/registry.sqlite'}}"
    (tmp_path / "feature_store.yaml").write_text(
        YAML.format(registry="data/registry.db" if request.param == "file" else sql)
    )
    return tmp_path


def applied(repo: Path, kind: str, *, factor: int = 1, hours: int = 5, description: str = "") -> FeatureStore:
    text = DEFINITIONS.replace("HOURS", str(hours)).replace("DESCRIPTION", repr(description))
    (repo / "definitions.py").write_text(text + KINDS[kind].replace("FACTOR", str(factor)))
    apply_repository(repo)
    return open_store(repo)


def trained(store: FeatureStore) -> Any:
    asked = pd.DataFrame({"user": [1], "event_timestamp": [DAY + 1.5 * HOUR]})
    return store.get_historical_features(asked, ["spend:amount"]).to_arrow()["amount"].to_pylist()[0]


def served(store: FeatureStore) -> Any:
    return store.get_online_features(["spend:amount"], [{"user": 1}]).to_dict()["amount"][0]


def version(store: FeatureStore) -> int:
    return store.get_feature_view("spend").current_version_number or 0


def versions(store: FeatureStore) -> int:
    return len(store.list_feature_view_versions("spend"))


@pytest.mark.parametrize(("kind", "want"), [("sql", 2.5), ("pandas", 2.5), ("python, in windows", 3.5)])
def test_a_changed_transformation_is_stored_and_used_on_every_path(repo, kind, want):
    for number, factor in enumerate((2, 10)):
        store = applied(repo, kind, factor=factor)
        assert (trained(store), version(store)) == (want * factor, number)
        materialize(store, datetime(2000, 1, 1, tzinfo=UTC), DAY + 2 * HOUR + number * timedelta(minutes=1))
        assert served(store) == want * factor


@pytest.mark.parametrize("kind", ["sql", "pandas", "python, in windows", "windows alone"])
def test_an_unchanged_definition_makes_no_new_version(repo, kind):
    store = applied(repo, kind, factor=2)
    before = trained(store)
    for _ in range(2):
        store = applied(repo, kind, factor=2, description="in dollars")
        assert (trained(store), versions(store)) == (before, 1)
    assert store.get_feature_view("spend").description == "in dollars"
    store = applied(repo, kind, factor=10, hours=1, description="in dollars")
    assert (trained(store), versions(store)) == (2.5 if kind == "windows alone" else 25.0, 2)


def test_a_transformation_comes_and_goes(repo):
    assert trained(applied(repo, "none")) == 2.5
    assert trained(applied(repo, "pandas", factor=3)) == 7.5
    assert trained(applied(repo, "python, in windows", factor=3)) == 10.5
    assert trained(applied(repo, "windows alone")) == 3.5
    assert trained(applied(repo, "none")) == 2.5


def test_the_windows_of_a_batch_view_outlive_a_change_of_its_description(repo):
    assert trained(applied(repo, "windows alone", hours=1)) == 2.5
    assert trained(applied(repo, "windows alone", hours=1, description="in dollars")) == 2.5
    assert trained(applied(repo, "windows alone", hours=5, description="in dollars")) == 3.5


def test_views_with_different_transformations_are_different():
    def view(text: str) -> BatchFeatureView:
        made: dict[str, Any] = {}
        exec(text, made)
        about: dict[str, Any] = {"name": "spend", "entities": [], "schema": [Field(name="amount", dtype=Float64)]}
        source = FileSource(name="spend", path="spend.parquet", timestamp_field="ts")
        return BatchFeatureView(mode="pandas", udf=made["f"], udf_string=text, source=source, **about)

    same, other = "def f(rows):\n    return rows\n", "def f(rows):\n    return rows * 2\n"
    assert view(same) == view(same)
    assert view(same) != view(other)
