"""One training, from spine to registered version: the order of the steps, and nothing else.

Frame -> snapshot -> audit -> split -> fit -> package -> evaluate -> gates -> bundle -> run -> registry.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from contracts.bundle import Bundle
from contracts.clock import Clock, as_utc
from contracts.duration import show_duration
from contracts.locations import Locations
from contracts.registry import Status, open_registry
from contracts.task import Task
from training.arrays import feature_kinds
from training.audit import audit
from training.audit_page import audit_page
from training.choice import choose
from training.evaluation import Evaluation
from training.frame import Frame
from training.gates import Gate, promotable
from training.learners.protocol import Problem
from training.lock import one_at_a_time
from training.making import Tune, make_version
from training.records import card_path, make_bundle, record, tell_version
from training.retrieval import build_frame
from training.split import Split
from training.tracking import SEARCHED, SOURCES, TASK_AS_TRAINED, Run, revision, tracked


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training left behind."""

    task: str
    run_id: str
    dataset_hash: str
    model_hash: str
    version: int
    status: Status
    """A candidate passed every gate; a rejected version is never deployed."""
    unlabelled: int
    """Spine rows left out for want of a label."""
    split: dict[str, Any]
    """`rows` and `embargoed` by part, and the parts' `bounds`."""
    evaluation: Evaluation
    gates: tuple[Gate, ...]
    bundle: Path
    card: Path
    """A page for people."""
    snapshot: Path
    seconds: dict[str, float]
    """Spent in each step."""

    def to_dict(self) -> dict[str, Any]:
        """The `training` and `gates` parts of a run's JSON."""
        metrics = self.evaluation.to_dict()
        return {
            "training": {
                "task": self.task,
                "run_id": self.run_id,
                "dataset_hash": self.dataset_hash,
                "model_hash": self.model_hash,
                "version": self.version,
                "status": self.status,
                "rows": {**self.split["rows"], "unlabelled": self.unlabelled},
                "embargoed": self.split["embargoed"],
                "bounds": self.split["bounds"],
                "metrics": metrics["metrics"],
                "threshold": self.evaluation.threshold,
                "evaluation": metrics,
                "bundle": str(self.bundle),
                "card": str(self.card),
                "snapshot": str(self.snapshot),
                "seconds": self.seconds,
            },
            "gates": [gate.to_dict() for gate in self.gates],
        }


def train(
    task: Task,
    locations: Locations,
    *,
    cutoff: datetime,
    clock: Clock,
    champion: Bundle | None,
    last_month: Bundle | None = None,
    frame: Frame | None = None,
    progress: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Train one version on what was known at `cutoff`, judge it, and register it as candidate or rejected.

    A killed training leaves nothing registered; its run is marked KILLED by the next one.

    Args:
        task: the whole policy.
        locations: where everything is kept.
        cutoff: the instant training stands at.
        clock: what the run's records call now.
        champion: what the version is compared with, on the same holdout rows.
        last_month: what was champion 30 days before, likewise; no gate judges by it.
        frame: what `build_frame` gives at this cutoff, where the caller has it; None builds it.
        progress: told what is being done.

    Raises:
        TrainingInProgress: the task is being trained already.
        AuditBlocked: the audit of the frame found a fault; nothing is fitted, the run is marked FAILED.
        SkewlessError: anything the data, the task or the stores are wrong about; the run is then marked FAILED.
    """
    cutoff, say, made_with = as_utc(cutoff), progress or (lambda _: None), revision()
    with one_at_a_time(task, locations), tracked(task.name, locations, clock, f"{task.name} {cutoff:%FT%H:%MZ}") as run:
        watch = _Stopwatch()
        run.params({"cutoff": cutoff.isoformat(), "seed": task.training.seed, "feature_service": task.feature_service})
        run.tags({"code_revision": made_with.code, "lock_hash": made_with.lock_hash})
        run.report(task.fingerprint_data(), TASK_AS_TRAINED)
        if made_with.patch:
            run.text(made_with.patch, "code.patch")
        frame = frame or build_frame(task, cutoff=cutoff, progress=say)
        watch.lap("frame")
        dataset_hash, snapshot = frame.save(locations.snapshots(task.name))
        run.tags({"dataset_hash": dataset_hash, "registry_hash": frame.registry_hash})
        run.tags({"service_fingerprint": frame.service_fingerprint})
        run.report(frame.sources, SOURCES)
        watch.lap("snapshot")
        _audit(task, frame, cutoff, run, say)
        watch.lap("audit")
        choice = choose(task, feature_kinds(frame.specs), frame.table.num_rows)
        run.tags(choice.to_tags())
        tune = _search(task, frame, run, watch.lap, say) if task.search.time else None
        made = make_version(task, frame, cutoff, champion, lap=watch.lap, say=say, last_month=last_month, tune=tune)
        status: Status = "candidate" if promotable(made.gates) else "rejected"
        bundle = make_bundle(task, locations, clock, frame, made, dataset_hash, made_with, run)
        record(run, made, bundle, status)
        watch.lap("bundle")
        registry = open_registry(locations)
        expected = 1 + max((each.version for each in registry.versions(task.name)), default=0)
        tell_version(run, made, bundle, status, expected)
        run.metrics({f"seconds.{name}": spent for name, spent in watch.seconds.items()})
        # The last thing that can fail: what goes wrong before leaves nothing registered.
        version = registry.register(
            task.name,
            run_id=run.id,
            bundle=bundle.path,
            status=status,
            dataset_hash=dataset_hash,
            model_hash=bundle.model_hash,
        )
        if version.version != expected:  # the registry never gives a number twice, and a version can be deleted by hand
            tell_version(run, made, bundle, status, version.version)
        watch.lap("register")
    say(f"version {version.version} is {'a candidate' if status == 'candidate' else 'rejected'}")
    return TrainingResult(
        task=task.name,
        run_id=run.id,
        dataset_hash=dataset_hash,
        model_hash=bundle.model_hash,
        version=version.version,
        status=status,
        unlabelled=frame.unlabelled,
        split=made.split.summary(),
        evaluation=made.evaluation,
        gates=made.gates,
        bundle=bundle.path,
        card=card_path(bundle.path),
        snapshot=snapshot,
        seconds=watch.seconds,
    )


def _audit(task: Task, frame: Frame, cutoff: datetime, run: Run, say: Callable[[str], None]) -> None:
    report = audit(task, frame, cutoff=cutoff, progress=say)
    run.report(report.to_dict(), "audit.json")
    run.text(audit_page(report), "audit.html")
    report.raise_if_blocked()


def _search(task: Task, frame: Frame, run: Run, lap: Callable[[str], None], say: Callable[[str], None]) -> Tune:
    def tune(split: Split, problem: Problem, learner: str) -> dict[str, Any]:
        from training.search import search  # Optuna is for those who search

        say(f"searching for parameters of {learner} for {show_duration(task.search.time)} at most")
        found = search(task, frame, split, problem, learner, trial_run=run.trial, say=say)
        run.report(found.to_dict(), SEARCHED)
        run.metrics({"search.value": found.value, "search.defaults": found.defaults, "search.trials": found.trials})
        lap("search")
        return found.params

    return tune


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now
