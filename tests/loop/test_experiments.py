"""What can be asked of a training that is done: its card; and to be made again in another checkout of the project."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from contracts.locations import Locations
from contracts.registry import open_registry
from contracts.registry_mlflow import open_client
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
    """A trained project, its parameters searched for: everything but what it made of it is the stranger's."""
    root = tmp_path_factory.mktemp("original") / "kitchen"
    shutil.copytree(stranger, root, ignore=shutil.ignore_patterns("mlflow", "bundles", "snapshots", "feast", "state*"))
    with (root / "tasks" / "late_delivery.toml").open("a") as task:
        task.write('\n[search]\ntime = "1m"\ntrials = 3\nfolds = 1\n')
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
    client = open_client(Locations(original / "data"))
    tried = client.search_runs([client.get_run(found["run_id"]).info.experiment_id], "tags.mlflow.parentRunId != ''")
    assert [each.data.tags["mlflow.parentRunId"] for each in tried] == [found["run_id"]] * 3


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


def test_a_version_has_a_card_whose_place_is_printed(original):
    found = skewless(original, "card")
    page = Path(found["card"])
    assert (found["task"], found["version"], found["status"]) == ("late_delivery", 1, "candidate")
    assert "<code>late_delivery</code>, version 1" in page.read_text()
    assert page.parent == Locations(original / "data").bundles("late_delivery")
    for words in (("late_delivery",), ("late_delivery", "1"), ("late_delivery@1",)):
        assert CliRunner().invoke(main, ["-C", str(original), "card", *words]).output.strip() == str(page)


def test_a_card_that_is_gone_is_drawn_again_the_same(original):
    page = Path(skewless(original, "card")["card"])
    before = page.read_text()
    page.unlink()
    assert Path(skewless(original, "card")["card"]).read_text() == before


def test_a_card_is_with_the_run_as_well(original):
    locations = Locations(original / "data")
    client = open_client(locations)
    [version] = client.search_model_versions("name = 'late_delivery'")
    kept = Path(client.download_artifacts(version.run_id, "card.html")).read_text()
    assert kept == Path(skewless(original, "card")["card"]).read_text()


def test_a_version_that_is_not_there_has_no_card(original, clone):
    assert "Task 'late_delivery' has no version '7'" in refused(original, "card", "late_delivery", "7")
    assert "Task 'late_delivery' has no version yet." in refused(clone, "card")


def test_a_failed_gate_is_exit_status_1_a_rejected_version_and_nothing_deployed(clone):
    file = clone / "tasks" / "late_delivery.toml"
    file.write_text(file.read_text().replace("floor = 0.6\n", "floor = 0.999\n"))
    for command in ("train", "retrain"):
        report = skewless(clone, command, "--as-of", "2024-01-25", status=1)
        assert report["training"]["status"] == "rejected"
        assert [gate["name"] for gate in report["gates"] if gate["verdict"] != "pass"] == ["floor"]
        assert "rejected: reaches nobody" in Path(report["training"]["card"]).read_text()
    assert open_registry(Locations(clone / "data")).aliases("late_delivery") == {}
    assert skewless(clone, "rollout", "status")["moves"] == []
