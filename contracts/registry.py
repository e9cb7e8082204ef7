"""The model registry behind one contract; MLflow holds it. Aliases name what serves, numbers identify."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import: it decides there
from mlflow.entities.model_registry import ModelVersion as _MlflowVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SADeprecationWarning

from contracts.errors import SkewlessError
from contracts.locations import Locations

Status = Literal["candidate", "rejected"]
CHAMPION, CHALLENGER = "champion", "challenger"


class UnknownVersion(SkewlessError, LookupError):
    """No such version or alias in the registry."""


class AmbiguousModel(SkewlessError, ValueError):
    """A task was named where a version was meant."""


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


def open_client(locations: Locations) -> MlflowClient:
    """A client of the embedded tracking and registry store, created when it is missing."""
    (locations.data / "mlflow").mkdir(parents=True, exist_ok=True)
    for chatty in ("mlflow", "alembic"):  # they tell of each table that is created
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SADeprecationWarning)  # MLflow's own use of SQLAlchemy 2.1
        return MlflowClient(locations.mlflow_uri, registry_uri=locations.mlflow_uri)


class Registry:
    """Versions of every task. Opening one creates the embedded store when it is missing."""

    def __init__(self, locations: Locations) -> None:
        self._client = open_client(locations)

    def register(
        self, task: str, *, run_id: str, bundle: Path, status: Status, dataset_hash: str, model_hash: str
    ) -> ModelVersion:
        """Record a version; the registry numbers it."""
        try:
            self._client.create_registered_model(task)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {"status": status, "dataset_hash": dataset_hash, "model_hash": model_hash, "bundle": str(bundle)}
        created = self._client.create_model_version(task, source=str(bundle), run_id=run_id, tags=tags)
        return _version(created)

    def versions(self, task: str) -> list[ModelVersion]:
        """All versions of a task, oldest first; empty when there are none."""
        found = self._client.search_model_versions(f"name = '{task}'", max_results=10_000)
        return sorted((_version(each) for each in found), key=lambda each: each.version)

    def aliases(self, task: str) -> dict[str, int]:
        """Alias to version number; empty for a task without versions."""
        try:
            found = self._client.get_registered_model(task).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        return {alias: int(version) for alias, version in found.items()}

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

    def set_alias(self, task: str, alias: str, version: int | None) -> None:
        """Point an alias at a version, or remove it. Follows the rollout state, which decides; never decides itself."""
        if version is not None:
            self._client.set_registered_model_alias(task, alias, str(version))
        elif alias in self.aliases(task):
            self._client.delete_registered_model_alias(task, alias)


def _version(found: _MlflowVersion) -> ModelVersion:
    tags = found.tags
    return ModelVersion(
        task=found.name,
        version=int(found.version),
        run_id=found.run_id or "",
        bundle=Path(tags["bundle"]),
        status="rejected" if tags["status"] == "rejected" else "candidate",
        dataset_hash=tags["dataset_hash"],
        model_hash=tags["model_hash"],
    )
