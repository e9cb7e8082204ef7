"""A project on disk: a folder with `tasks/`, a Feast repository the tasks name, and `data/` for all that is made."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import SkewlessError
from contracts.locations import Locations
from contracts.settings import locate
from contracts.task import Task, load_task

if TYPE_CHECKING:
    from sqlalchemy import Engine


class ProjectError(SkewlessError, FileNotFoundError):
    """A project folder that lacks what a command needs."""


@dataclass(frozen=True, slots=True)
class Project:
    """The folder everything is relative to."""

    root: Path

    @property
    def locations(self) -> Locations:
        """Where this project keeps what it makes. Raises SettingsError."""
        return locate(self.root)

    def open_state(self) -> Engine:
        """Rollout, alert and request state; created when it is missing."""
        from contracts.state import open_state

        return open_state(self.locations.state_url)

    def task_names(self) -> list[str]:
        """Names of the task files, sorted."""
        return sorted(path.stem for path in (self.root / "tasks").glob("*.toml"))

    def deployed_names(self) -> list[str]:
        """Names of the tasks of which a version is deployed. Raises ProjectError where there is none."""
        from serving.rollout_state import read_deployment

        names = [self.task(name).name for name in self.task_names()]
        with self.open_state().connect() as connection:
            found = [name for name in names if read_deployment(connection, name) is not None]
        if not found:
            raise ProjectError(
                f"No version of a task in {self.root / 'tasks'} is deployed: {', '.join(names) or 'there is no task'}.",
                hint="`skewless retrain TASK` trains one and hands it to shadow, "
                "`skewless rollout submit TASK@VERSION` one that `skewless train` made.",
            )
        return found

    def task(self, name: str | None) -> Task:
        """Load a task; `None` means the project's only one, or the one that says it is the default.

        Raises:
            ProjectError: there is no task, or several, none was named, and not exactly one is the default.
            TaskError: the file is wrong.
        """
        return load_task(self.task_file(name))

    def task_file(self, name: str | None) -> Path:
        """Where a task's file is: by its name, its own path, or the default. Raises ProjectError."""
        if name is not None and name.endswith(".toml"):
            return Path(name)
        names = self.task_names()
        if not names:
            raise ProjectError(
                f"No task file in {self.root / 'tasks'}.",
                hint="run inside a project, or name one with `skewless -C DIR`.",
            )
        folder = self.root / "tasks"
        if name is not None or len(names) == 1:
            return folder / f"{name or names[0]}.toml"
        meant = [each for each in names if load_task(folder / f"{each}.toml").default]
        if len(meant) != 1:
            raise ProjectError(
                f"This project has {len(names)} tasks, and {len(meant)} of them are the default.",
                hint=f"name one of {', '.join(names)}, or write `default = true` in one task file.",
            )
        return folder / f"{meant[0]}.toml"

    def lands_itself(self, task: Task) -> bool:
        """Whether the feature repository has an ingest hook; another's tables are landed by other means."""
        return (task.feature_repo / "ingest.py").is_file()

    def ingest(self, task: Task, progress: Callable[[str], None]) -> Any:
        """Run the feature repository's own `ingest.py` and return its report (`landed`, `quarantined`, `to_dict()`).

        Raises:
            ProjectError: the repository has no `ingest.py`.
        """
        path = task.feature_repo / "ingest.py"
        if not self.lands_itself(task):
            raise ProjectError(
                f"Feature repository {task.feature_repo} has no ingest.py.",
                hint=f"land the tables of task {task.name!r} by other means, then `skewless train {task.name}`.",
            )
        spec = importlib.util.spec_from_file_location(f"{task.feature_repo.name}_ingest", path)
        if spec is None or spec.loader is None:
            raise ProjectError(f"{path} cannot be loaded as Python.", hint="check the file.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses of the module look for their own names
        spec.loader.exec_module(module)
        return module.ingest(self.locations.data, progress)
