"""The loop's door to Feast: apply a repository, materialize its views up to an instant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts.task import Task

if TYPE_CHECKING:
    from feast import FeatureStore


def apply(task: Task) -> None:
    """What `feast apply` does for the task's repository, in this process."""
    from asof.repository import apply_repository

    apply_repository(task.feature_repo)


def open_features(task: Task) -> FeatureStore:
    """The task's Feast store with asof behind it. Raises AsofError when the repository was never applied."""
    from asof.repository import open_store

    return open_store(task.feature_repo)
