"""Where a project keeps what it makes: one data root, the same layout for every stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

REPLICAS = "replicas"
"""The lock that every replica shares while it lives: who holds it alone knows that nobody answers or logs here."""


@dataclass(frozen=True, slots=True)
class RegistryChoice:
    """Who holds the versions of a project's models."""

    kind: Literal["mlflow", "git", "wandb"] = "mlflow"
    path: Path | None = None
    """git: the repository; below the data root when not given."""
    project: str = "skewless"
    """wandb: the project its runs and artifacts go to."""
    mode: Literal["offline", "online"] = "offline"
    """wandb: whether anything leaves this machine."""


@dataclass(frozen=True, slots=True)
class Locations:
    """The folders and databases below a data root, and the model registry. Naming one creates nothing."""

    data: Path
    registry: RegistryChoice = RegistryChoice()
    state_server: str = ""
    """URL of the PostgreSQL database that holds the state, without a password; empty: SQLite below the data root."""
    mlflow_server: str = ""
    """MLflow's server, or a PostgreSQL database, without a password; empty: SQLite below the data root."""

    @property
    def events(self) -> Path:
        """Landed event tables, a folder each."""
        return self.data / "events"

    @property
    def state_url(self) -> str:
        """SQLAlchemy URL of rollout, alert and request state."""
        return self.state_server or f"sqlite:///{self.data / 'state.db'}"

    @property
    def mlflow_uri(self) -> str:
        """MLflow's tracking and registry store."""
        return self.mlflow_server or f"sqlite:///{self.data / 'mlflow' / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        """Where MLflow runs put their artifacts."""
        return self.data / "mlflow" / "artifacts"

    def predictions(self, task: str) -> Path:
        """The prediction log of one task: live segments and compacted days."""
        return self.data / "predictions" / task

    def batch(self, task: str) -> Path:
        """Precomputed predictions of one task: their Parquet files, and the registry of their feature view."""
        return self.data / "batch" / task

    def load_tests(self, task: str) -> Path:
        """Pages of one task's load tests."""
        return self.data / "load_tests" / task

    def snapshots(self, task: str) -> Path:
        """Training frames, a folder per content hash."""
        return self.data / "snapshots" / task

    def bundles(self, task: str) -> Path:
        """Model bundles, a folder per bundle hash."""
        return self.data / "bundles" / task

    def lock(self, name: str) -> Path:
        """A lock file that one job holds while it runs."""
        return self.data / "locks" / f"{name}.lock"
