"""What is removed of a task's past, and that nothing goes that a served version needs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contracts.locations import Locations
from contracts.registry import ModelVersion
from contracts.settings import Retention, SettingsError, retention_rules
from contracts.task import load_task
from loop.retention import needed_versions, retain
from training.lock import TrainingInProgress, one_at_a_time

RULES = Retention(frames=1)


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


def test_versions_that_served_climb_or_are_new_are_needed(versions):
    history = [moved(0, 1), moved(1), moved(1, 3), moved(3), moved(3, 4)]
    assert needed_versions(versions, history, RULES) == {1, 3, 4, 5}
    assert needed_versions(versions, [moved(0, 2), moved(0)], RULES) == {5}


def test_frames_of_other_versions_go_and_of_no_version_too(task, locations, versions):
    found = retain(task, locations, Retention(frames=1), versions, frozenset({1, 3, 5}))
    assert found.frames == ("b", "d", "left over")
    assert {folder.name for folder in locations.snapshots(task.name).iterdir()} == {"a", "c", "e"}
    assert found.bytes == len(b"frame of b") + len(b"frame of d") + len(b"frame of left over")
    assert retain(task, locations, Retention(frames=1), versions, frozenset({1, 3, 5})).frames == ()


def test_a_dry_run_says_the_same_and_removes_nothing(task, locations, versions):
    told = retain(task, locations, RULES, versions, frozenset({1}), dry_run=True)
    assert len(list(locations.snapshots(task.name).iterdir())) == 6
    assert retain(task, locations, RULES, versions, frozenset({1})) == told
    assert len(list(locations.snapshots(task.name).iterdir())) == 1


def test_without_rules_nothing_goes(task, locations, versions, tmp_path):
    assert retain(task, locations, retention_rules(tmp_path), versions, frozenset()).frames == ()
    assert len(list(locations.snapshots(task.name).iterdir())) == 6


def test_nothing_goes_while_a_version_is_trained(task, locations, versions):
    with one_at_a_time(task, locations), pytest.raises(TrainingInProgress):
        retain(task, locations, RULES, versions, frozenset())
    assert len(list(locations.snapshots(task.name).iterdir())) == 6


def test_rules_are_read_from_the_settings_and_a_wrong_one_is_named(tmp_path):
    (tmp_path / "skewless.toml").write_text("[retention]\nframes = 3\n")
    assert retention_rules(tmp_path) == Retention(frames=3)
    (tmp_path / "skewless.toml").write_text("[retention]\nframes = -1\n")
    with pytest.raises(SettingsError, match=r"retention.frames = -1"):
        retention_rules(tmp_path)
