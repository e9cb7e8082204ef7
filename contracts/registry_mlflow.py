"""Versions in MLflow's model registry, beside its runs: embedded, in a PostgreSQL database, or on an MLflow server."""

from __future__ import annotations

import logging
import os
import sqlite3
import urllib.error
import urllib.request
import warnings
from contextlib import closing
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import: it decides there
from mlflow.entities.model_registry import ModelVersion as _MlflowVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError, SADeprecationWarning

from contracts.errors import SkewlessError
from contracts.files import locked
from contracts.locations import Locations
from contracts.registry import ANYTHING, Expected, ModelVersion, Registry, Status

_SECONDS = 10
"""A server that does not answer within them is away."""


class StoreUnavailable(SkewlessError, ConnectionError):
    """MLflow's database cannot be opened, or its server not reached."""


def open_client(locations: Locations) -> MlflowClient:
    """A client of the tracking and registry store; tables that are missing in a database are created.

    MLflow itself would try for almost two minutes before it says that a store is away, so it is asked for first.

    Raises:
        StoreUnavailable: the database is no database, or cannot be opened; the server does not answer.
    """
    if locations.mlflow_server:
        _check_answers(locations.mlflow_server)
    else:
        (locations.data / "mlflow").mkdir(parents=True, exist_ok=True)
        _check_opens(locations.data / "mlflow" / "mlflow.db")
    for chatty in ("mlflow", "alembic"):  # they tell of each table that is created
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SADeprecationWarning)  # MLflow's own use of SQLAlchemy 2.1
        return MlflowClient(locations.mlflow_uri, registry_uri=locations.mlflow_uri)


def _check_opens(database: Path) -> None:
    try:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("select count(*) from sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        raise StoreUnavailable(
            f"The tracking store {database} cannot be opened: {error}.",
            hint="put a copy of it back, or give another data root.",
        ) from error


def _check_answers(server: str) -> None:
    try:
        if server.startswith("http"):
            urllib.request.urlopen(f"{server.rstrip('/')}/health", timeout=_SECONDS).close()
        else:
            engine = create_engine(server, connect_args={"connect_timeout": _SECONDS})
            engine.connect().close()
            engine.dispose()
    except urllib.error.HTTPError:
        pass  # an answer all the same: what stands before a server may keep this path to itself
    except (OSError, DBAPIError, ImportError) as error:
        said = error.orig if isinstance(error, DBAPIError) else error
        raise StoreUnavailable(
            f"MLflow's store {server} cannot be reached: {' '.join(str(said).split())}",
            hint="see that it runs, that [mlflow] in skewless.toml names it, and that the environment has a password: "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or PGPASSWORD.",
        ) from error


class MlflowRegistry(Registry):
    """See `contracts.registry.Registry`. Opening one creates the store's tables when they are missing.

    MLflow can neither number two versions at once on SQLite nor compare before it swaps: writers on this machine take
    turns at a lock. Writers on several machines, on a server, are told apart by number only: there the rollout's state,
    which decides, compares before it swaps.
    """

    def __init__(self, locations: Locations) -> None:
        self._lock = locations.lock("registry")
        with locked(self._lock):  # two that create the store at once would find each other's tables half made
            self._client = open_client(locations)

    def register(
        self, task: str, *, run_id: str, bundle: Path, status: Status, dataset_hash: str, model_hash: str
    ) -> ModelVersion:
        """Record a version; the registry numbers it."""
        tags = {"status": status, "dataset_hash": dataset_hash, "model_hash": model_hash, "bundle": str(bundle)}
        with locked(self._lock):
            try:
                self._client.create_registered_model(task)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            # The run has the bundle among its artifacts; a server takes no path of another machine.
            source = f"runs:/{run_id}/bundle"
            return _version(self._client.create_model_version(task, source=source, run_id=run_id, tags=tags))

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

    def set_alias(self, task: str, alias: str, version: int | None, *, expected: Expected = ANYTHING) -> None:
        """Point an alias at a version, or remove it. Raises AliasMoved, UnknownVersion."""
        with locked(self._lock):
            found = self.check_move(task, alias, version, expected)
            if version is not None:
                self._client.set_registered_model_alias(task, alias, str(version))
            elif found is not None:
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
