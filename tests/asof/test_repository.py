"""Opening and applying Feast repositories, the real command included."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asof.errors import AsofError
from asof.materialize import materialize
from asof.repository import (
    InvalidRepository,
    RepositoryNotFound,
    UnappliedRegistry,
    apply_repository,
    load_config,
    open_store,
)

YAML = """\
project: demo
provider: local
registry: data/registry.db
online_store: {type: sqlite, path: data/online.db}
entity_key_serialization_version: 3
"""

DEFINITIONS = """\
from datetime import timedelta

from feast import BatchFeatureView, Entity, Field, FileSource, ValueType
from feast.aggregation import Aggregation
from feast.types import Float64, Int64

from names import VIEW

user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
spend = BatchFeatureView(
    name=VIEW,
    entities=[user],
    online=True,
    schema=[Field(name="spent_2h", dtype=Float64), Field(name="bought_2h", dtype=Int64)],
    source=FileSource(name="purchases", path="data/purchases.parquet", timestamp_field="ts"),
    aggregations=[
        Aggregation(column="amount", function="sum", time_window=timedelta(hours=2), name="spent_2h"),
        Aggregation(column="amount", function="count", time_window=timedelta(hours=2), name="bought_2h"),
    ],
    tags={"asof.every": "1h"},
)
"""


def hours(*at: int) -> pa.Array:
    return pa.array([datetime(2013, 1, 1, hour, tzinfo=UTC) for hour in at], pa.timestamp("us", "UTC"))


@pytest.fixture
def repo(tmp_path: Path):
    def make(name: str = "repo", view: str = "spend", yaml: str = YAML) -> Path:
        folder = tmp_path / name
        (folder / "data").mkdir(parents=True)
        (folder / "feature_store.yaml").write_text(yaml)
        (folder / "definitions.py").write_text(DEFINITIONS)
        (folder / "names.py").write_text(f"VIEW = {view!r}\n")
        pq.write_table(
            pa.table({"user": [1, 1], "ts": hours(1, 2), "amount": [3.0, 4.5]}), folder / "data/purchases.parquet"
        )
        return folder

    return make


def served(folder: Path, view: str) -> dict:
    references = [f"{view}:spent_2h", f"{view}:bought_2h"]
    return open_store(folder).get_online_features(references, entity_rows=[{"user": 1}]).to_dict()


def test_apply_then_open_from_anywhere(repo, tmp_path, monkeypatch):
    folder = repo()
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules), list(sys.path), Path.cwd()
    apply_repository(folder)
    assert {"definitions", "names"}.isdisjoint(sys.modules)
    assert before[1:] == (list(sys.path), Path.cwd())
    store = open_store(folder)
    asked = pd.DataFrame({"user": [1, 2], "event_timestamp": pd.to_datetime(["2013-01-01 02:30"] * 2, utc=True)})
    got = store.get_historical_features(asked, ["spend:spent_2h", "spend:bought_2h"]).to_arrow()
    assert got["spent_2h"].to_pylist() == [7.5, None]
    assert got["bought_2h"].to_pylist() == [2, 0]
    materialize(store, datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 1, 1, 3, 30, tzinfo=UTC))
    assert served(folder, "spend") == {"user": [1], "spent_2h": [4.5], "bought_2h": [1]}


def test_two_repositories_with_equally_named_modules(repo):
    one, other = repo("one", "first"), repo("other", "second")
    apply_repository(one)
    apply_repository(other)
    assert [view.name for view in open_store(one).list_feature_views()] == ["first"]
    assert [view.name for view in open_store(other).list_feature_views()] == ["second"]


def test_a_changed_definition_is_read_again(repo):
    folder = repo()
    apply_repository(folder)
    (folder / "names.py").write_text("VIEW = 'renamed_view'\n")
    apply_repository(folder)
    assert [view.name for view in open_store(folder).list_feature_views()] == ["renamed_view"]


@pytest.mark.slow
def test_the_feast_command_applies_and_materializes(repo):
    folder = repo()
    # A user's yaml names asof by its dotted paths; the command knows nothing of `open_store`.
    (folder / "feature_store.yaml").write_text(
        YAML + "offline_store: {type: asof.offline_store.AsofOfflineStore}\n"
        "batch_engine: {type: asof.compute.AsofComputeEngine}\n"
    )
    root = str(Path(__file__).parents[2])
    feast = "import sys; sys.path.append(sys.argv.pop(1)); from feast.cli.cli import cli; cli()"
    for arguments in (["apply"], ["materialize", "2013-01-01T00:00:00", "2013-01-01T03:30:00"]):
        command = [sys.executable, "-c", feast, root, "-c", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent)
        assert done.returncode == 0, done.stdout + done.stderr
    assert served(folder, "spend") == {"user": [1], "spent_2h": [4.5], "bought_2h": [1]}


@pytest.mark.parametrize("kind", ["file", "dask", "duckdb", None])
def test_a_file_based_repository_runs_on_asof_whatever_it_says(repo, kind):
    config = load_config(repo(yaml=YAML + (f"offline_store: {{type: {kind}}}\n" if kind else "")))
    assert config.offline_store.type == "asof.offline_store.AsofOfflineStore"
    assert config.batch_engine.type == "asof.compute.AsofComputeEngine"


def test_our_own_settings_are_kept(repo):
    own = "offline_store: {type: asof.offline_store.AsofOfflineStore, threads: 3}\n"
    assert load_config(repo(yaml=YAML + own)).offline_store.threads == 3


def test_another_warehouse_is_left_alone(repo):
    config = load_config(repo(yaml=YAML + "offline_store: {type: remote, host: localhost}\n"))
    assert config.offline_store.type == "remote"
    assert config.batch_engine_config == "local"


def test_what_is_wrong_is_said_with_the_next_step(repo, tmp_path):
    with pytest.raises(RepositoryNotFound, match=r"feature_store\.yaml is missing"):
        open_store(tmp_path)
    with pytest.raises(UnappliedRegistry, match="feast -c"):
        open_store(repo("unapplied"))
    with pytest.raises(InvalidRepository, match="not valid YAML"):
        load_config(repo("broken", yaml="project: [\n"))
    with pytest.raises(InvalidRepository, match="must hold a mapping, found list"):
        load_config(repo("list", yaml="- project\n"))
    with pytest.raises(InvalidRepository, match="Feast refuses"):
        load_config(
            repo("wrong", yaml=YAML + "offline_store: {type: asof.offline_store.AsofOfflineStore, thread: 3}\n")
        )
    named = repo("named")
    (named / "project.py").write_text("from feast import Project\nproject = Project(name='another')\n")
    with pytest.raises(InvalidRepository, match="should match"):
        apply_repository(named)


def test_definitions_that_cannot_be_imported_are_named_by_file_and_line(repo):
    folder = repo()
    (folder / "names.py").write_text("\nVIEW = SPEND\n")
    with pytest.raises(InvalidRepository, match="NameError: name 'SPEND' is not defined") as told:
        apply_repository(folder)
    assert told.value.hint == f"Correct {folder / 'names.py'}, line 2."


def test_errors_survive_a_trip_between_processes():
    import pickle

    error = UnappliedRegistry("A fact.", hint="A step.")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, AsofError)
    assert (again.fact, again.hint, str(again)) == ("A fact.", "A step.", "A fact.\n\nHint: A step.")
