"""Versions as artifacts of Weights & Biases, numbered by the project's own database.

W&B works offline (the default here; `wandb sync data/wandb/wandb/offline-run-*` uploads later) and cannot be asked
anything then. So the database is the ledger: it numbers versions, holds aliases and compares before it swaps. W&B gets
the bundle of each version as an artifact, and a run for each move of an alias.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, Integer, String, Table, delete, insert, select

from contracts import state
from contracts.files import locked
from contracts.locations import Locations
from contracts.registry import ANYTHING, Expected, ModelVersion, Registry, RegistryError, Status

_versions = Table(
    "model_versions",
    state.metadata,
    Column("task", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("run_id", String, nullable=False),
    Column("bundle", String, nullable=False),
    Column("status", String, nullable=False),
    Column("dataset_hash", String, nullable=False),
    Column("model_hash", String, nullable=False),
)
_aliases = Table(
    "model_aliases",
    state.metadata,
    Column("task", String, primary_key=True),
    Column("alias", String, primary_key=True),
    Column("version", Integer, nullable=False),
)


class WandbRegistry(Registry):
    """See `contracts.registry.Registry`.

    Args:
        locations: where the ledger and W&B's own files are; their `registry` says which project of W&B, and its mode:
            "online" sends at once, which needs `wandb login`; "offline" keeps everything on this machine.

    Raises:
        RegistryError: wandb is not installed.
    """

    def __init__(self, locations: Locations) -> None:
        try:
            import wandb
        except ImportError as error:
            raise RegistryError(
                "skewless.toml names a W&B registry, and wandb is not installed.",
                hint="pip install wandb, or choose another registry.",
            ) from error
        self._wandb, self._choice = wandb, locations.registry
        self._folder, self._lock = locations.data / "wandb", locations.lock("registry")
        self._engine = state.open_state(locations.state_url)

    def register(
        self, task: str, *, run_id: str, bundle: Path, status: Status, dataset_hash: str, model_hash: str
    ) -> ModelVersion:
        """Log the bundle as an artifact, then enter the version. Raises RegistryError: W&B did not take it."""
        described = {"run_id": run_id, "status": status, "dataset_hash": dataset_hash, "model_hash": model_hash}
        with locked(self._lock):
            number = max((each.version for each in self.versions(task)), default=0) + 1
            artifact = self._wandb.Artifact(task, type="model", metadata={"version": number, **described})
            artifact.add_dir(str(bundle), skip_cache=True, policy="immutable")  # W&B would copy it into the home folder
            self._log("register", {"task": task, "version": number, **described}, artifact)
            entered = {"task": task, "version": number, "bundle": str(bundle), **described}
            with self._engine.begin() as connection:
                connection.execute(insert(_versions).values(**entered))
        return ModelVersion(task, number, run_id, bundle, status, dataset_hash, model_hash)

    def versions(self, task: str) -> list[ModelVersion]:
        """All versions of a task, oldest first; empty when there are none."""
        query = select(_versions).where(_versions.c.task == task).order_by(_versions.c.version)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [ModelVersion(**dict(row) | {"bundle": Path(row["bundle"])}) for row in rows]

    def aliases(self, task: str) -> dict[str, int]:
        """Alias to version number; empty for a task without versions."""
        with self._engine.connect() as connection:
            return _named(connection, task)

    def set_alias(self, task: str, alias: str, version: int | None, *, expected: Expected = ANYTHING) -> None:
        """Point an alias at a version, or remove it. Raises AliasMoved, UnknownVersion."""
        with locked(self._lock):
            found = self.check_move(task, alias, version, expected)
            if found == version:
                return
            with self._engine.begin() as connection:
                connection.execute(delete(_aliases).where(_aliases.c.task == task, _aliases.c.alias == alias))
                if version is not None:
                    connection.execute(insert(_aliases).values(task=task, alias=alias, version=version))
            self._log("alias", {"task": task, "alias": alias, "version": version})

    def _log(self, what: str, config: dict[str, Any], artifact: Any = None) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._wandb.init(
                project=self._choice.project,
                job_type=what,
                config=config,
                dir=str(self._folder),
                mode=self._choice.mode,
                settings=self._wandb.Settings(silent=True, x_disable_stats=True, x_disable_meta=True),
            ) as run:
                if artifact is not None:
                    run.log_artifact(artifact)
        except (self._wandb.Error, OSError) as error:
            raise RegistryError(
                f"W&B did not take the {what} of {config['task']!r}: {error}",
                hint='`mode = "offline"` in skewless.toml keeps it on this machine until `wandb sync`.',
            ) from error


def _named(connection: Connection, task: str) -> dict[str, int]:
    rows = connection.execute(select(_aliases.c.alias, _aliases.c.version).where(_aliases.c.task == task))
    return {row.alias: row.version for row in rows}
