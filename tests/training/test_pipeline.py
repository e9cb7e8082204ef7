"""One training with the frame given at Feast's door and everything behind it real: model, MLflow, registry, files."""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from mlflow.tracking import MlflowClient
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from contracts.bundle import FeatureSpec, load_bundle
from contracts.clock import VirtualClock
from contracts.errors import SkewlessError
from contracts.registry import open_registry
from contracts.scorer import Scorer
from training import pipeline
from training.audit import AuditBlocked
from training.lock import TrainingInProgress


@pytest.fixture
def train(make_task, make_frame, locations, monkeypatch, cutoff):
    def run(task=None, champion=None, **world):
        task = task or make_task()
        frame = make_frame(task, **world)
        monkeypatch.setattr(pipeline, "build_frame", lambda *_, **__: frame)
        return pipeline.train(task, locations, cutoff=cutoff, clock=VirtualClock(cutoff), champion=champion)

    return run


def runs(locations, task="late_parcel"):
    client = MlflowClient(locations.mlflow_uri)
    experiment = client.get_experiment_by_name(task)
    return client, client.search_runs([experiment.experiment_id])


def test_a_candidate_is_registered_with_everything_it_is(train, locations):
    result = train()
    assert result.status == "candidate", [gate for gate in result.gates if gate.verdict != "pass"]
    registered = open_registry(locations).resolve("late_parcel@1")
    assert (registered.status, registered.model_hash) == ("candidate", result.model_hash)
    assert registered.bundle == result.bundle
    bundle = load_bundle(result.bundle)
    assert bundle.metadata.training_data["dataset_hash"] == result.dataset_hash
    assert bundle.metadata.provenance["run_id"] == result.run_id
    assert (result.snapshot / "frame.parquet").is_file() or result.snapshot.is_file()
    assert json.loads(json.dumps(result.to_dict(), default=str))["training"]["version"] == 1


def test_the_run_tells_how_it_came_to_be(train, locations):
    result = train()
    client, [run] = runs(locations)
    assert run.info.run_id == result.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "7"
    assert run.data.tags["dataset_hash"] == result.dataset_hash
    assert {"code_revision", "lock_hash", "registry_hash", "service_fingerprint"} <= set(run.data.tags)
    assert run.data.metrics["holdout.roc_auc"] == pytest.approx(result.evaluation.metrics["roc_auc"].value)
    assert run.data.tags["choice.learner"] == "lightgbm"
    assert "tabular features" in run.data.tags["choice.learner.reason"]
    assert run.data.tags["choice.serving"] == "batch"  # the budget leaves time for it
    assert client.list_artifacts(result.run_id)


def test_metrics_are_scikit_learns_on_the_reference_rows(train):
    result = train()
    reference = load_bundle(result.bundle).reference()
    label, score = reference["label"].to_numpy(), reference["score"].to_numpy().astype(np.float64)
    found = {name: metric.value for name, metric in result.evaluation.metrics.items()}
    assert found["roc_auc"] == pytest.approx(roc_auc_score(label, score), abs=1e-6)
    assert found["average_precision"] == pytest.approx(average_precision_score(label, score), abs=1e-6)
    assert found["log_loss"] == pytest.approx(log_loss(label, score), abs=1e-5)
    assert found["brier"] == pytest.approx(brier_score_loss(label, score), abs=1e-6)
    for metric in result.evaluation.metrics.values():
        assert metric.low <= metric.value <= metric.high


def test_cost_at_the_threshold_is_what_the_decisions_cost(train):
    result = train()
    reference = load_bundle(result.bundle).reference()
    total = 0.0
    for label, score in zip(reference["label"].to_pylist(), reference["score"].to_pylist(), strict=True):
        acts = score >= result.evaluation.threshold
        total += 1.0 if acts and not label else 3.0 if label and not acts else 0.0
    assert result.evaluation.cost_per_case["model"].value == pytest.approx(total / reference.num_rows)


def test_reference_scores_are_what_the_packaged_model_says(train):
    bundle = load_bundle(train().bundle)
    reference = bundle.reference()
    specs = bundle.metadata.features
    numbers = np.column_stack(
        [reference[s.name].cast(pa.float32()).to_numpy(zero_copy_only=False) for s in specs if s.kind == "number"]
    )
    texts = np.array([[v or "" for v in reference[s.name].to_pylist()] for s in specs if s.kind == "text"], object).T
    scores = Scorer(bundle.model_path).score(numbers.astype(np.float32), texts)
    assert scores == pytest.approx(reference["score"].to_numpy(), abs=1e-6)


def test_training_again_gives_the_same_bytes(train):
    first, second = train(), train()
    assert (first.dataset_hash, first.model_hash) == (second.dataset_hash, second.model_hash)
    assert (first.version, second.version) == (1, 2)


def test_a_version_that_fails_a_gate_is_registered_as_rejected(train, make_task, locations):
    result = train(make_task(success={"metric": "roc_auc", "floor": 0.99, "cost": {"false_alarm": 1, "missed": 3}}))
    assert result.status == "rejected"
    assert {gate.name for gate in result.gates if gate.verdict != "pass"} == {"floor"}
    assert open_registry(locations).resolve("late_parcel@1").status == "rejected"


def test_features_that_carry_nothing_are_rejected(train):
    result = train(signal=0.0)
    assert result.status == "rejected"
    assert {"floor", "baseline"} <= {gate.name for gate in result.gates if gate.verdict != "pass"}


def test_a_champion_is_compared_on_the_same_rows(train):
    champion = load_bundle(train().bundle)
    result = train(champion=champion)
    assert result.evaluation.champion.difference.value == pytest.approx(0.0)
    assert result.evaluation.champion.metrics["roc_auc"].value == result.evaluation.metrics["roc_auc"].value
    assert result.status == "candidate"


def test_a_failed_training_leaves_a_failed_run_and_no_version(train, locations):
    with pytest.raises(SkewlessError):
        train(rows=30)
    _, [run] = runs(locations)
    assert run.info.status == "FAILED"
    assert open_registry(locations).versions("late_parcel") == []


def test_one_training_at_a_time(train, locations):
    lock = locations.lock("train-late_parcel")
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TrainingInProgress):
            train()
    assert train().version == 1


def test_a_run_left_by_a_killed_training_is_marked(train, locations):
    train()
    client, [run] = runs(locations)
    left = client.create_run(run.info.experiment_id)
    train()
    assert client.get_run(left.info.run_id).info.status == "KILLED"


def test_data_that_the_audit_blocks_is_not_trained_on(train, make_task, make_frame, locations, monkeypatch, cutoff):
    def leaking(*_, **__):
        frame = make_frame()
        told = frame.table["late"].cast(pa.float32())
        table = frame.table.append_column("feature.outcome", told)
        return replace(frame, table=table, specs=(*frame.specs, FeatureSpec("outcome", "number")))

    monkeypatch.setattr(pipeline, "build_frame", leaking)
    monkeypatch.setattr(pipeline, "make_version", lambda *_, **__: pytest.fail("fitted all the same"))
    with pytest.raises(AuditBlocked, match="leak_perfect outcome"):
        pipeline.train(make_task(), locations, cutoff=cutoff, clock=VirtualClock(cutoff), champion=None)
    client, [run] = runs(locations)
    assert run.info.status == "FAILED"
    assert "leak_perfect outcome" in run.data.tags["error"]
    assert {"audit.json", "audit.html"} <= {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert open_registry(locations).versions("late_parcel") == []
