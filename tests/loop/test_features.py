"""Starting over: whatever an earlier run left, or a killed one spoilt, the online store begins empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.task import Task, load_task
from loop.features import NotRehearsable, apply, open_features, start_over


@pytest.fixture
def task(make_stranger, tmp_path) -> Task:
    return load_task(make_stranger(tmp_path / "kitchen") / "tasks" / "late_delivery.toml")


def files(task: Task) -> tuple[Path, Path]:
    folder = task.feature_repo.parent / "data" / "feast"
    return folder / "registry.db", folder / "online.db"


def test_a_repository_that_was_never_applied_has_nothing_to_empty(task):
    start_over(task)
    assert not files(task)[1].exists()


def test_an_applied_one_is_emptied_and_can_be_applied_again(task):
    apply(task)
    online = files(task)[1]
    online.write_bytes(b"")
    start_over(task)
    assert not online.exists()
    apply(task)
    assert open_features(task).get_feature_service("lateness")


@pytest.mark.parametrize("damage", ["cut off", "emptied", "gone"])
def test_values_do_not_outlive_a_registry_that_was_lost(task, damage):
    apply(task)
    registry, online = files(task)
    online.write_bytes(b"values of another time")
    whole = registry.read_bytes()
    if damage == "gone":
        registry.unlink()
    else:
        registry.write_bytes(whole[: len(whole) // 2 if damage == "cut off" else 0])
    start_over(task)
    assert not online.exists()
    apply(task)
    assert open_features(task).get_feature_service("lateness")


def test_a_store_that_others_may_read_is_not_emptied(task):
    yaml = task.feature_repo / "feature_store.yaml"
    kept = yaml.read_text().replace("type: sqlite\n  path: ../data/feast/online.db", "type: redis")
    yaml.write_text(kept)
    with pytest.raises(NotRehearsable, match="'redis'"):
        start_over(task)
