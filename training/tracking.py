"""Training's door to MLflow: one run a training, with all that is needed to make it again."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import: it decides there
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # where the commands' JSON goes
from mlflow.entities import Metric, Param, RunStatus, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from contracts.clock import Clock
from contracts.errors import SkewlessError
from contracts.files import sha256_file, sha256_text
from contracts.locations import Locations
from contracts.registry_mlflow import open_client
from training.resampling import Estimate

_CHECKOUT = Path(__file__).resolve().parent.parent
_LOCK_FILE = "constraints.txt"
_LONGEST_VALUE = 500
"""Characters of a parameter or tag that every MLflow store takes."""


TASK_AS_TRAINED, SOURCES, SEARCHED = "task.json", "sources.json", "search.json"
"""Artifacts that a run is made again from; the last is there only where parameters were searched for."""
EVALUATION, CARD = "evaluation.json", "card.html"
"""What was measured of its version, and the page about it."""


class TrackingError(SkewlessError, RuntimeError):
    """The tracking store cannot be used; nothing is trained that leaves no trace."""


class UnknownRun(SkewlessError, LookupError):
    """The tracking store has no such finished training."""


@dataclass(frozen=True, slots=True)
class Revision:
    """The code and the lock file a run was made with."""

    code: str
    """Git commit, with `+<hash of the diff>` when the checkout is dirty; "unknown" outside git."""
    patch: str
    """The diff itself; empty when there is none."""
    lock_hash: str
    """SHA-256 of the lock file; "unknown" where there is none."""


def revision(checkout: Path = _CHECKOUT) -> Revision:
    """What `checkout` holds now."""
    lock = checkout / _LOCK_FILE
    lock_hash = sha256_file(lock) if lock.is_file() else "unknown"
    commit = _git(checkout, "rev-parse", "HEAD")
    if not commit:
        return Revision("unknown", "", lock_hash)
    patch = _git(checkout, "diff", "HEAD")
    dirty = f"+{sha256_text(patch)[:12]}" if patch else ""
    return Revision(commit.strip() + dirty, patch, lock_hash)


def _git(checkout: Path, *command: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(checkout), *command], capture_output=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")


class Run:
    """One tracked training, open."""

    def __init__(self, client: MlflowClient, run_id: str, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self.id = run_id

    def params(self, values: dict[str, Any]) -> None:
        """What went in."""
        self._client.log_batch(self.id, params=[Param(name, _short(value)) for name, value in values.items()])

    def tags(self, values: dict[str, Any]) -> None:
        """What it is: hashes, revision, status."""
        self._client.log_batch(self.id, tags=[RunTag(name, _short(value)) for name, value in values.items()])

    def metrics(self, values: dict[str, float]) -> None:
        """Plain numbers."""
        now = _milliseconds(self._clock)
        self._client.log_batch(self.id, metrics=[Metric(name, value, now, 0) for name, value in values.items()])

    def estimates(self, prefix: str, values: dict[str, Estimate]) -> None:
        """`<prefix>.<name>` and its interval, `.low` and `.high`."""
        flat: dict[str, float] = {}
        for name, found in values.items():
            flat |= {f"{prefix}.{name}": found.value}
            flat |= {f"{prefix}.{name}.low": found.low, f"{prefix}.{name}.high": found.high}
        self.metrics(flat)

    def text(self, text: str, name: str) -> None:
        """A text file among the artifacts."""
        self._client.log_text(self.id, text, name)

    def report(self, value: Any, name: str) -> None:
        """A JSON file among the artifacts."""
        self.text(json.dumps(value, indent=1, default=str), name)

    @contextmanager
    def trial(self, number: int) -> Iterator[Run]:
        """A run inside this one; one that is given up is closed as KILLED."""
        parent = self._client.get_run(self.id).info
        tags = {MLFLOW_RUN_NAME: f"trial {number}", MLFLOW_PARENT_RUN_ID: self.id}
        started = self._client.create_run(parent.experiment_id, start_time=_milliseconds(self._clock), tags=tags)
        status = RunStatus.KILLED
        try:
            yield Run(self._client, started.info.run_id, self._clock)
            status = RunStatus.FINISHED
        finally:
            self._client.set_terminated(started.info.run_id, RunStatus.to_string(status), _milliseconds(self._clock))

    def folder(self, path: Path, name: str) -> None:
        """A folder among the artifacts."""
        self._client.log_artifacts(self.id, str(path), name)


def read_evaluation(run_id: str, locations: Locations) -> dict[str, Any]:
    """What was measured of the version a finished run left. Raises UnknownRun where the run or its report is gone."""
    try:
        kept = Path(open_client(locations).download_artifacts(run_id, EVALUATION)).read_text()
    except (MlflowException, OSError) as error:
        raise UnknownRun(
            f"Run {run_id!r} in {locations.mlflow_uri} has no {EVALUATION}: {error}", hint="train the version again."
        ) from error
    evaluation: dict[str, Any] = json.loads(kept)
    return evaluation


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a finished run says of itself."""

    run_id: str
    task: str
    cutoff: datetime
    tags: Mapping[str, str]
    """dataset_hash, model_hash, service_fingerprint, code_revision, lock_hash."""
    metrics: Mapping[str, float]
    task_as_trained: Mapping[str, Any]
    sources: Mapping[str, str]
    """SHA-256 by path, as `training.sources` names them."""
    searched: Mapping[str, Any] | None
    """Parameters that a search found; None where the task's own were used."""


def read_run(run_id: str, locations: Locations) -> Recorded:
    """Read what a training recorded.

    Raises:
        UnknownRun: no such run, one that did not finish, or one that was no training.
    """
    client = open_client(locations)
    try:
        run = client.get_run(run_id)
        texts = [Path(client.download_artifacts(run_id, name)).read_text() for name in (TASK_AS_TRAINED, SOURCES)]
    except (MlflowException, OSError) as error:
        raise UnknownRun(
            f"No training {run_id!r} in {locations.mlflow_uri}: {error}",
            hint="give a version, such as late_arrival@3, or the id of its run.",
        ) from error
    if run.info.status != RunStatus.to_string(RunStatus.FINISHED):
        raise UnknownRun(f"Run {run_id} is {run.info.status}: it left no version.", hint="give a finished run.")
    task, sources = (json.loads(text) for text in texts)
    searched = None
    if any(found.path == SEARCHED for found in client.list_artifacts(run_id)):
        searched = json.loads(Path(client.download_artifacts(run_id, SEARCHED)).read_text())["params"]
    return Recorded(
        run_id=run_id,
        task=task["name"],
        cutoff=datetime.fromisoformat(run.data.params["cutoff"]),
        tags=run.data.tags,
        metrics=run.data.metrics,
        task_as_trained=task,
        sources=sources,
        searched=searched,
    )


@contextmanager
def tracked(task: str, locations: Locations, clock: Clock, name: str) -> Iterator[Run]:
    """Open a run in the task's experiment; close it as FINISHED, or FAILED with the error.

    The caller holds the task's training lock, so a run still marked RUNNING belongs to a process that was killed; it
    is marked KILLED first.

    Raises:
        TrackingError: the store cannot be opened or written, at first or later.
    """
    try:
        locations.mlflow_artifacts.mkdir(parents=True, exist_ok=True)
        client = open_client(locations)
        experiment = _experiment(client, task, locations)
        _bury(client, experiment, clock)
        started = client.create_run(experiment, start_time=_milliseconds(clock), tags={MLFLOW_RUN_NAME: name})
    except (MlflowException, OSError) as error:
        fact, hint = str(error), "make the folder writable, or give the data root that holds it."
        if isinstance(error, SkewlessError):
            fact, hint = error.fact, error.hint
        raise TrackingError(f"The tracking store {locations.mlflow_uri} cannot be used: {fact}", hint=hint) from error
    run = Run(client, started.info.run_id, clock)
    try:
        yield run
        client.set_terminated(run.id, RunStatus.to_string(RunStatus.FINISHED), _milliseconds(clock))
    except BaseException as error:
        # A store that is gone cannot be told of it: the run then stays RUNNING, and the next training marks it KILLED.
        with suppress(MlflowException, OSError):
            run.tags({"error": f"{type(error).__name__}: {error}"})
            client.set_terminated(run.id, RunStatus.to_string(RunStatus.FAILED), _milliseconds(clock))
        if isinstance(error, MlflowException):
            raise TrackingError(
                f"The tracking store {locations.mlflow_uri} failed while training {task!r}: {error}",
                hint="see that it can be reached and has room, then train again.",
            ) from error
        raise


def _experiment(client: MlflowClient, task: str, locations: Locations) -> str:
    found = client.get_experiment_by_name(task)
    if found is None:
        # An MLflow server keeps artifacts where it was told to.
        where = None if locations.mlflow_server.startswith("http") else locations.mlflow_artifacts.as_uri()
        created: str = client.create_experiment(task, artifact_location=where)
        return created
    known: str = found.experiment_id
    return known


def _bury(client: MlflowClient, experiment: str, clock: Clock) -> None:
    running = client.search_runs([experiment], "attributes.status = 'RUNNING'", run_view_type=ViewType.ALL)
    for run in running:
        client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED), _milliseconds(clock))


def _milliseconds(clock: Clock) -> int:
    return int(clock.now().timestamp() * 1000)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
