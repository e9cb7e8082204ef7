"""What can go wrong with a training, gone wrong: one clear error each, the run marked, nothing registered."""

from __future__ import annotations

import resource
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

from contracts.bundle import FeatureSpec, load_bundle
from contracts.clock import VirtualClock
from contracts.locations import Locations
from contracts.registry import open_registry
from contracts.registry_mlflow import open_client
from training import pipeline, tracking
from training.audit import AuditBlocked
from training.frame import FrameError
from training.retrieval import build_frame
from training.split import SplitError
from training.tracking import TrackingError

FAST = {"window": timedelta(days=30), "validation": timedelta(days=5), "holdout": timedelta(days=7),
        "params": {"num_iterations": 10, "min_data_in_leaf": 20}}  # fmt: skip


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A tracking store without runs: making one takes seconds, copying one does not."""
    locations = Locations(tmp_path_factory.mktemp("store"))
    open_client(locations)
    return locations.data / "mlflow"


@pytest.fixture
def locations(tmp_path, empty_store):
    shutil.copytree(empty_store, tmp_path / "data" / "mlflow")
    return Locations(tmp_path / "data")


@pytest.fixture
def train(make_task, make_frame, locations, monkeypatch, cutoff):
    """Train on a frame given at Feast's door; `frame` may change it first, or fail."""

    def run(task=None, frame=lambda frame: frame, champion=None):
        task = task or make_task(training=FAST)
        whole = make_frame(task)
        monkeypatch.setattr(pipeline, "build_frame", lambda *_, **__: frame(whole))
        return pipeline.train(task, locations, cutoff=cutoff, clock=VirtualClock(cutoff), champion=champion)

    return run


def states(locations):
    """State and error of every run, the oldest first."""
    client = MlflowClient(locations.mlflow_uri)
    experiment = client.get_experiment_by_name("late_parcel")
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.end_time", "attributes.created"])
    return [(run.info.status, run.data.tags.get("error", "")) for run in found]


def failed_clearly(locations, *words):
    [(state, error)] = states(locations)
    assert state == "FAILED"
    for word in words:
        assert word in error
    assert open_registry(locations).versions("late_parcel") == []
    assert not list(locations.bundles("late_parcel").glob("*"))
    return True


def relabelled(labels):
    def change(frame):
        at = frame.table.column_names.index("late")
        return replace(frame, table=frame.table.set_column(at, "late", pa.array(labels(frame.labels), pa.int64())))

    return change


def test_too_few_rows(train, locations):
    with pytest.raises(SplitError, match="it needs 100 at least"):
        train(frame=lambda frame: replace(frame, table=frame.table.slice(0, 40)))
    assert failed_clearly(locations, "SplitError: The train part", "has 40 labelled rows")


@pytest.mark.parametrize("part", ["train", "holdout"])
def test_a_window_of_one_class(train, locations, part):
    def same(labels):
        rows = np.arange(len(labels))
        return np.where((rows < 4_000) if part == "train" else (rows >= 4_000), 0, labels)

    with pytest.raises(SplitError, match="has only the label 0"):
        train(frame=relabelled(same))
    assert failed_clearly(locations, f"SplitError: The {part} part", "check the label in the spine query")


def test_labels_that_are_all_in_the_future(make_task, locations, cutoff):
    begin = cutoff - timedelta(days=30)
    with pytest.raises(FrameError, match="has a label yet"):
        pipeline.train(make_task(training=FAST), locations, cutoff=begin, clock=VirtualClock(begin), champion=None)
    assert failed_clearly(locations, "FrameError: Task 'late_parcel': none of 0 spine rows", "move the cutoff")


def test_labels_of_the_future_are_no_rows_of_the_frame(make_task, cutoff, monkeypatch):
    """What is known one microsecond after the cutoff is not known: the spine itself hides it."""
    task, seen = make_task(training=FAST), []
    monkeypatch.setattr("training.retrieval.open_store", lambda _: pytest.skip("seen") if seen.append(1) else None)
    spine = pq.read_table(task.spine.tables["parcels"])
    known = spine["told_at"].cast(pa.int64()).to_numpy()
    at = round(cutoff.timestamp() * 1e6)
    said = []
    with pytest.raises(Exception, match="NoneType"):
        build_frame(task, cutoff=cutoff, progress=said.append)
    assert said == [
        f"{(known <= at).sum():,} labelled cases, {(known > at).sum():,} without a label yet; joining features"
    ]


def test_a_label_that_was_known_before_the_question(make_task, locations, cutoff):
    task = make_task(training=FAST)
    spine = pq.read_table(task.spine.tables["parcels"])
    at = spine.column_names.index("told_at")
    told = spine["told_at"].cast(pa.int64()).to_numpy().copy()
    told[7] = spine["asked_at"].cast(pa.int64()).to_numpy()[7] - 1
    wrong = spine.set_column(at, "told_at", pa.array(told, spine["told_at"].type))
    pq.write_table(wrong, task.spine.tables["parcels"])
    with pytest.raises(FrameError, match=r"1 of 5,\d+ labels were known before their case was asked about"):
        pipeline.train(task, locations, cutoff=cutoff, clock=VirtualClock(cutoff), champion=None)
    assert failed_clearly(locations, "such as 'p000007'", "spine.label_known_at")


def with_an_empty_feature(frame):
    nothing = pa.nulls(frame.table.num_rows, pa.float32())
    table = frame.table.append_column("feature.height", nothing)
    return replace(frame, table=table, specs=(*frame.specs, FeatureSpec("height", "number")))


def test_a_feature_that_is_all_null(train, locations):
    with pytest.raises(AuditBlocked, match="empty height: no row has a value"):
        train(frame=with_an_empty_feature)
    assert failed_clearly(locations, "AuditBlocked", "check the view's source and join key", "'empty:height'")


def test_a_feature_that_is_all_null_and_accepted_is_trained_with(train, make_task, locations):
    task = make_task(training=FAST, audit={"accepted": ["empty:height"]})
    result = train(task, frame=with_an_empty_feature)
    assert result.evaluation.parity < 1e-4
    client = MlflowClient(locations.mlflow_uri)
    assert '"rule": "empty"' in Path(client.download_artifacts(result.run_id, "audit.json")).read_text()


def test_a_service_that_changed_since_the_champion_was_trained(train, locations):
    champion = load_bundle(train().bundle)
    renamed = lambda frame: replace(  # noqa: E731
        frame,
        table=frame.table.rename_columns({"feature.weight": "feature.kilos"}),
        specs=tuple(replace(s, name="kilos") if s.name == "weight" else s for s in frame.specs),
        service_fingerprint="0" * 64,
    )
    result = train(frame=renamed, champion=champion)
    [gate] = [gate for gate in result.gates if gate.name == "champion"]
    assert (result.status, gate.verdict) == ("rejected", "inconclusive")
    assert "It cannot be asked: The frame lacks feature weight (number)." in gate.evidence
    assert [each.status for each in open_registry(locations).versions("late_parcel")] == ["candidate", "rejected"]


@pytest.mark.parametrize("step", ["snapshot", "bundle", "card"])
def test_a_full_disk(train, locations, monkeypatch, step):
    """A write that fails, for real: no file may grow any more, the tracking store's own included."""
    where = {"snapshot": (pipeline, "_audit"), "bundle": (pipeline, "make_bundle"), "card": (pipeline, "tell_version")}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*_, **__):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))

    if step == "snapshot":
        spoilt = lambda frame: full() or frame  # noqa: E731
    else:
        module, name = where[step]
        real, spoilt = getattr(module, name), lambda frame: frame
        monkeypatch.setattr(module, name, lambda *args: full() or real(*args))
    try:
        with pytest.raises((OSError, TrackingError)) as caught:
            train(frame=spoilt)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in str(caught.value)
    assert open_registry(locations).versions("late_parcel") == []
    assert not list(locations.data.rglob(".*part"))
    monkeypatch.undo()
    [(state, _)] = states(locations)
    assert state in ("FAILED", "RUNNING")  # a full disk may not have had room for the word


def test_a_run_whose_end_could_not_be_written_is_marked_by_the_next(train, locations, monkeypatch):
    monkeypatch.setattr(tracking.MlflowClient, "set_terminated", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(SplitError):  # and not what kept the end from being written
        train(frame=lambda frame: replace(frame, table=frame.table.slice(0, 40)))
    monkeypatch.undo()
    assert [state for state, _ in states(locations)] == ["RUNNING"]


@pytest.mark.parametrize("kind", ["a folder", "no database"])
def test_a_tracking_store_that_cannot_be_opened(make_task, cutoff, tmp_path, monkeypatch, kind):
    locations = Locations(tmp_path / "other")
    database = locations.data / "mlflow" / "mlflow.db"
    database.parent.mkdir(parents=True)
    database.mkdir() if kind == "a folder" else database.write_text("something else altogether, and long enough" * 99)
    monkeypatch.setattr(pipeline, "build_frame", lambda *_, **__: pytest.fail("trained without a trace"))
    with pytest.raises(
        TrackingError, match=r"The tracking store sqlite:.* cannot be used: .*mlflow.db cannot be opened"
    ):
        pipeline.train(make_task(), locations, cutoff=cutoff, clock=VirtualClock(cutoff), champion=None)


def test_a_tracking_store_that_breaks_during_a_training(train, locations):
    def broken(frame):
        path = locations.data / "mlflow" / "mlflow.db"
        path.write_bytes(b"\0" * path.stat().st_size)
        return frame

    with pytest.raises(TrackingError, match=r"The tracking store .* failed while training 'late_parcel'"):
        train(frame=broken)
    assert not list(locations.bundles("late_parcel").glob("*.html"))
