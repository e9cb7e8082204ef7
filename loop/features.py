"""The loop's door to Feast: apply a repository, materialize its views up to an instant."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.errors import SkewlessError
from contracts.task import Task

if TYPE_CHECKING:
    from feast import FeatureStore, RepoConfig


class NotRehearsable(SkewlessError, PermissionError):
    """A repository whose online store is not a run's to empty."""


def apply(task: Task) -> None:
    """What `feast apply` does for the task's repository, in this process."""
    from asof.repository import apply_repository

    apply_repository(task.feature_repo)


def open_features(task: Task) -> FeatureStore:
    """The task's Feast store with asof behind it. Raises AsofError when the repository was never applied."""
    from asof.repository import open_store

    return open_store(task.feature_repo)


def rehearse(task: Task, folder: Path) -> FeatureStore:
    """The task's features with a registry and an online store of their own, empty, in `folder`."""
    from asof.repository import open_apart

    return open_apart(task.feature_repo, folder)


def start_over(task: Task) -> None:
    """Empty the repository's registry and online store: values of another time would outlive the ones to be written.

    Raises:
        NotRehearsable: the online store is no local file; what others may be reading is not emptied.
    """
    from google.protobuf.message import DecodeError

    from asof.repository import UnappliedRegistry, load_config, open_store

    config = load_config(task.feature_repo)
    if config.online_store.type != "sqlite":
        raise NotRehearsable(
            f"The online store of {task.feature_repo} is {config.online_store.type!r}; a run fills it with values of "
            "another time.",
            hint="run on a copy of the repository whose feature_store.yaml names `online_store: {type: sqlite}`.",
        )
    try:
        open_store(task.feature_repo).teardown()
    except UnappliedRegistry:
        _online_file(config).unlink(missing_ok=True)
    except DecodeError:  # of a write that a full disk or a power cut broke off: it names nothing any more
        _online_file(config).unlink(missing_ok=True)
        (task.feature_repo / config.registry.path).unlink()


def _online_file(config: RepoConfig) -> Path:
    path: Path = config.repo_path / config.online_store.path
    return path


def complete_until(store: FeatureStore, now: datetime) -> datetime:
    """When every view that is served online was last complete, at or before `now`, by the registry."""
    from feast import OnDemandFeatureView

    from asof import compute

    found = store._get_feature_views_to_materialize(None)
    views = [view for view in found if not isinstance(view, OnDemandFeatureView)]
    return min((compute.complete_until(view, now) for view in views), default=now)


class Materializer:
    """Moves the online store from boundary to boundary.

    Args:
        store: whose views.
        since: when it was last complete.
        views: names; every view that is served online when None.
        still: whether no source changes meanwhile; each is then read into memory once, by one thread.
    """

    def __init__(
        self, store: FeatureStore, since: datetime, *, views: Iterable[str] | None = None, still: bool = False
    ) -> None:
        from asof.materialize import Materializer as Engine

        if still:
            from asof.session import Session

            self._engine = Engine(store, views, session=Session(threads=1, search_path=store.config.repo_path))
            self._engine.keep_sources()
        else:
            self._engine = Engine(store, views)
        self._at = since

    def to(self, boundary: datetime) -> int:
        """Write every view's values as of `boundary`; returns the rows written. Repeating one changes nothing."""
        written = sum(self._engine.run(self._at, boundary).values())
        self._at = boundary
        return written
