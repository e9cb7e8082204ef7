"""What is removed of a task's past, and that nothing goes that a served version needs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from contracts.locations import Locations
from contracts.predictions import PredictionRow, append, balance, compact, open_segment, read_predictions
from contracts.registry import ModelVersion
from contracts.task import load_task
from loop.retention import needed_versions, retain
from loop.settings import Retention, SettingsError, retention_rules
from training.lock import TrainingInProgress, one_at_a_time

NOW = datetime(2024, 6, 1, tzinfo=UTC)
RULES = Retention(frames=1, log=timedelta(days=90))


def moved(champion: int, challenger: int | None = None) -> Any:
    return SimpleNamespace(champion=champion, challenger=challenger)


@pytest.fixture
def task(stranger):
    return load_task(stranger / "tasks" / "late_delivery.toml")


@pytest.fixture
def locations(tmp_path):
    return Locations(tmp_path / "data")


@pytest.fixture
def versions(task, locations):
    """Five versions with a frame each, and a frame of a training that came to nothing."""
    for name in (*"abcde", "left over"):
        folder = locations.snapshots(task.name) / name
        folder.mkdir(parents=True)
        (folder / "frame.parquet").write_bytes(b"frame of " + name.encode())
    return [
        ModelVersion(task.name, at, "run", Path("bundle"), "candidate", dataset_hash, "model")
        for at, dataset_hash in enumerate("abcde", 1)
    ]


def write_log(task, locations, name: str, version: int, at: datetime) -> None:
    segment = locations.predictions(task.name) / f"{name}.sqlite"
    connection = open_segment(segment, [("km", "number")])
    row = PredictionRow(
        request_id=name,
        position=0,
        variant="champion",
        version=version,
        case_id=name,
        event_timestamp=at,
        answered_at=at,
        inputs={},
        numbers=np.zeros(1, np.float32),
        texts=[],
        view_times={},
        score=0.5,
        decision=0,
        latency_ms=1.0,
    )
    append(connection, [row], answered=1)
    connection.close()
    compact(segment)


def test_versions_that_served_climb_or_are_new_are_needed(versions):
    history = [moved(0, 1), moved(1), moved(1, 3), moved(3), moved(3, 4)]
    assert needed_versions(versions, history, RULES) == {1, 3, 4, 5}
    assert needed_versions(versions, [moved(0, 2), moved(0)], RULES) == {5}


def test_frames_of_other_versions_go_and_of_no_version_too(task, locations, versions):
    found = retain(task, locations, Retention(frames=1), versions, frozenset({1, 3, 5}), now=NOW)
    assert found.frames == ("b", "d", "left over")
    assert {folder.name for folder in locations.snapshots(task.name).iterdir()} == {"a", "c", "e"}
    assert found.bytes == len(b"frame of b") + len(b"frame of d") + len(b"frame of left over")
    assert retain(task, locations, Retention(frames=1), versions, frozenset({1, 3, 5}), now=NOW).frames == ()


def test_old_answers_of_versions_that_nobody_needs_go_and_the_log_adds_up(task, locations, versions):
    old, new = NOW - timedelta(days=200), NOW - timedelta(days=10)
    for name, version, at in (("gone", 2, old), ("served", 1, old), ("young", 2, new), ("edge", 2, NOW - RULES.log)):
        write_log(task, locations, name, version, at)
    found = retain(task, locations, RULES, versions, frozenset({1, 5}), now=NOW)
    assert found.log_files == ("gone.parquet",)
    log = locations.predictions(task.name)
    assert sorted(read_predictions(log)["case_id"].to_pylist()) == ["edge", "served", "young"]
    assert balance(log).balanced
    assert balance(log).answered == 3


def test_a_dry_run_says_the_same_and_removes_nothing(task, locations, versions):
    write_log(task, locations, "gone", 2, NOW - timedelta(days=200))
    told = retain(task, locations, RULES, versions, frozenset({1}), now=NOW, dry_run=True)
    assert len(list(locations.snapshots(task.name).iterdir())) == 6
    assert read_predictions(locations.predictions(task.name)).num_rows == 1
    assert retain(task, locations, RULES, versions, frozenset({1}), now=NOW) == told


def test_without_rules_nothing_goes(task, locations, versions, tmp_path):
    write_log(task, locations, "old", 2, NOW - timedelta(days=2000))
    found = retain(task, locations, retention_rules(tmp_path), versions, frozenset(), now=NOW)
    assert (found.frames, found.log_files) == ((), ())


def test_nothing_goes_while_a_version_is_trained(task, locations, versions):
    with one_at_a_time(task, locations), pytest.raises(TrainingInProgress):
        retain(task, locations, RULES, versions, frozenset(), now=NOW)
    assert len(list(locations.snapshots(task.name).iterdir())) == 6


def test_rules_are_read_from_the_settings_and_a_wrong_one_is_named(tmp_path):
    (tmp_path / "skewless.toml").write_text('[retention]\nframes = 3\nlog = "30d"\n')
    assert retention_rules(tmp_path) == Retention(frames=3, log=timedelta(days=30))
    (tmp_path / "skewless.toml").write_text("[retention]\nframes = -1\n")
    with pytest.raises(SettingsError, match=r"retention.frames = -1"):
        retention_rules(tmp_path)
