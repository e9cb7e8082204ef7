"""A training made again in another checkout of the same project; each thing that can differ, differing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from contracts.locations import Locations
from contracts.registry import open_client
from loop.cli import main

pytestmark = pytest.mark.slow


def skewless(project: Path, *args: str, status: int = 0) -> dict:
    done = CliRunner().invoke(main, ["-C", str(project), *args, "--json"])
    assert done.exit_code == status, done.output
    return json.loads(done.stdout)


def refused(project: Path, *args: str) -> str:
    done = CliRunner().invoke(main, ["-C", str(project), *args])
    assert done.exit_code == 2, done.output
    return done.output


@pytest.fixture(scope="module")
def original(stranger, tmp_path_factory) -> Path:
    """A trained project: everything but what it made of it is the stranger's."""
    root = tmp_path_factory.mktemp("original") / "kitchen"
    shutil.copytree(stranger, root, ignore=shutil.ignore_patterns("mlflow", "bundles", "snapshots", "feast", "state*"))
    assert CliRunner().invoke(main, ["-C", str(root), "apply"]).exit_code == 0
    skewless(root, "train", "--as-of", "2024-01-25")
    return root


@pytest.fixture
def clone(original, tmp_path) -> Path:
    """Another checkout, with the same raw data and nothing of what the original made."""
    for folder in ("definitions", "tasks", "data/events"):
        shutil.copytree(original / folder, tmp_path / "clone" / folder)
    assert CliRunner().invoke(main, ["-C", str(tmp_path / "clone"), "apply"]).exit_code == 0
    return tmp_path / "clone"


def reproduce(original: Path, clone: Path, status: int = 0) -> dict:
    return skewless(clone, "reproduce", "late_delivery@1", "--recorded-in", str(original / "data"), status=status)


def test_another_checkout_gives_the_same_frame_model_and_metrics(original, clone):
    found = reproduce(original, clone)
    assert found["reproduced"]
    recorded = {each["name"]: each["recorded"] for each in found["results"]}
    assert {"dataset_hash", "model_hash", "roc_auc", "log_loss", "brier"} <= recorded.keys()
    assert all(len(recorded[name]) == 64 for name in ("dataset_hash", "model_hash"))
    assert all(each["equal"] for each in found["circumstances"])
    assert found["sources"] == {"changed": [], "missing": [], "added": []}
    assert not (clone / "data" / "bundles").exists()


def test_changed_source_rows_are_named_by_their_file(original, clone):
    path = clone / "data" / "events" / "deliveries.parquet"
    pl.read_parquet(path).with_columns(late=1 - pl.col("late")).write_parquet(path)
    found = reproduce(original, clone, status=1)
    equal = {each["name"]: each["equal"] for each in found["results"]}
    assert (equal["dataset_hash"], equal["model_hash"]) == (False, False)
    assert found["sources"] == {"changed": ["../data/events/deliveries.parquet"], "missing": [], "added": []}


def test_a_file_written_anew_with_the_same_rows_changes_no_result(original, clone):
    path = clone / "data" / "events" / "deliveries.parquet"
    pl.read_parquet(path).write_parquet(path, compression="snappy")
    found = reproduce(original, clone)
    assert found["reproduced"]
    assert found["sources"]["changed"] == ["../data/events/deliveries.parquet"]


def test_a_changed_definition_is_a_circumstance(original, clone):
    path = clone / "definitions" / "definitions.py"
    path.write_text(path.read_text().replace("km / (1.0 + y)", "km / (2.0 + y)"))
    assert CliRunner().invoke(main, ["-C", str(clone), "apply"]).exit_code == 0
    found = reproduce(original, clone, status=1)
    assert [each["name"] for each in found["circumstances"] if not each["equal"]] == ["service_fingerprint"]


def test_a_changed_task_file_is_refused_by_field(original, clone):
    path = clone / "tasks" / "late_delivery.toml"
    path.write_text(path.read_text().replace("n_estimators = 60", "n_estimators = 61"))
    said = refused(clone, "reproduce", "late_delivery@1", "--recorded-in", str(original / "data"))
    assert "training.params.n_estimators was 60, is 61" in said


def test_what_is_no_finished_training_cannot_be_reproduced(original):
    assert "No training 'nothing'" in refused(original, "reproduce", "nothing")
    assert "has no version '9'" in refused(original, "reproduce", "late_delivery@9")
    client = open_client(Locations(original / "data"))
    experiment = client.get_experiment_by_name("late_delivery")
    empty = client.create_run(experiment.experiment_id)
    client.set_terminated(empty.info.run_id)
    assert "No training" in refused(original, "reproduce", empty.info.run_id)
