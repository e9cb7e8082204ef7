"""The model registry behind one contract, whoever holds it. Numbers identify versions, aliases name what serves.

    registry = open_registry(locations)                 # MLflow, unless the project's settings name another
    registry.resolve("late_arrival@champion").bundle

Registering is safe from any number of processes: each gets a number of its own. So is moving an alias: whoever says
what it expects there (`expected`) either finds just that or changes nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, Literal

from contracts.errors import SkewlessError
from contracts.locations import Locations

Status = Literal["candidate", "rejected"]
CHAMPION, CHALLENGER = "champion", "challenger"


class Unchecked(Enum):
    """Stands for "whatever is there now"."""

    ANYTHING = "anything"


ANYTHING: Final = Unchecked.ANYTHING
Expected = int | None | Literal[Unchecked.ANYTHING]
"""Version an alias must name for it to move, None for no alias, or ANYTHING."""


class UnknownVersion(SkewlessError, LookupError):
    """No such version or alias in the registry."""


class AmbiguousModel(SkewlessError, ValueError):
    """A task was named where a version was meant."""


class AliasMoved(SkewlessError, RuntimeError):
    """Somebody else moved the alias first; nothing was changed."""

    def __init__(self, task: str, alias: str, *, expected: int | None, found: int | None) -> None:
        def named(version: int | None) -> str:
            return "no version" if version is None else f"version {version}"

        super().__init__(
            f"Alias {alias!r} of task {task!r} names {named(found)}, not {named(expected)} as expected.",
            hint="look at what happened (`skewless rollout status`), and decide anew.",
        )


class RegistryError(SkewlessError, RuntimeError):
    """The registry cannot be used; nothing was registered."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One registered version of a task's model."""

    task: str
    version: int
    run_id: str
    bundle: Path
    status: Status
    dataset_hash: str
    model_hash: str


class Registry(ABC):
    """Versions of every task."""

    @abstractmethod
    def register(
        self, task: str, *, run_id: str, bundle: Path, status: Status, dataset_hash: str, model_hash: str
    ) -> ModelVersion:
        """Record a version; the registry numbers it. Raises RegistryError, and then nothing is registered."""

    @abstractmethod
    def versions(self, task: str) -> list[ModelVersion]:
        """All versions of a task, oldest first; empty when there are none."""

    @abstractmethod
    def aliases(self, task: str) -> dict[str, int]:
        """Alias to version number; empty for a task without versions."""

    @abstractmethod
    def set_alias(self, task: str, alias: str, version: int | None, *, expected: Expected = ANYTHING) -> None:
        """Point an alias at a version, or remove it. Follows the rollout state, which decides; never decides itself.

        Raises:
            AliasMoved: it names something else than `expected`.
            UnknownVersion: there is no such version.
        """

    def resolve(self, name: str) -> ModelVersion:
        """`task@12` or `task@champion` to a version.

        Raises:
            AmbiguousModel: a bare task name; nothing guesses which version is meant.
            UnknownVersion: no such number or alias.
        """
        task, _, wanted = name.partition("@")
        versions = {each.version: each for each in self.versions(task)}
        aliases = self.aliases(task)
        choices = ", ".join([*(f"@{number}" for number in versions), *(f"@{alias}" for alias in sorted(aliases))])
        hint = f"name one of {choices}." if choices else f"train one: `skewless train {task}`."
        if not wanted:
            raise AmbiguousModel(f"{name!r} names a task, not a version.", hint=hint)
        number = int(wanted) if wanted.isdigit() else aliases.get(wanted)
        if number is None or number not in versions:
            raise UnknownVersion(f"Task {task!r} has no version {wanted!r}.", hint=hint)
        return versions[number]

    def check_move(self, task: str, alias: str, version: int | None, expected: Expected) -> int | None:
        """What the alias names now. Raises AliasMoved, UnknownVersion."""
        found = self.aliases(task).get(alias)
        if expected is not ANYTHING and found != expected:
            raise AliasMoved(task, alias, expected=expected, found=found)
        if version is not None:
            self.resolve(f"{task}@{version}")
        return found


def open_registry(locations: Locations) -> Registry:
    """The registry that the project's settings name; its store is created when it is missing."""
    kind = locations.registry.kind
    if kind == "git":  # each brings imports that the others do without
        from contracts.registry_git import GitRegistry

        return GitRegistry(locations)
    if kind == "wandb":
        from contracts.registry_wandb import WandbRegistry

        return WandbRegistry(locations)
    from contracts.registry_mlflow import MlflowRegistry

    return MlflowRegistry(locations)
