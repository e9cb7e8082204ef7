"""One training, from spine to registered version: the order of the steps, and nothing else.

Frame -> snapshot -> audit -> split -> fit -> package -> evaluate -> gates -> bundle -> run -> registry.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from contracts.bundle import Bundle, BundleMetadata, write_bundle
from contracts.clock import Clock, as_utc
from contracts.locations import Locations
from contracts.registry import Registry, Status
from contracts.scorer import Scorer
from contracts.task import Task
from training.arrays import feature_kinds, sequences
from training.audit import audit
from training.audit_page import audit_page
from training.choice import choose
from training.evaluation import Evaluation, evaluate
from training.frame import Frame
from training.gates import Gate, judge, promotable
from training.learners.catalogue import find_learner
from training.learners.protocol import Fitted, Part, Problem
from training.lock import one_at_a_time
from training.metrics import cheapest_threshold
from training.retrieval import build_frame
from training.split import Split, split_by_time
from training.tracking import SOURCES, TASK_AS_TRAINED, Revision, Run, revision, tracked


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
        frame = build_frame(task, cutoff=cutoff, progress=say)
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
        made = make_version(task, frame, cutoff, champion, lap=watch.lap, say=say)
        status: Status = "candidate" if promotable(made.gates) else "rejected"
        bundle = _bundle(task, locations, clock, frame, made, dataset_hash, made_with, run)
        _log(run, made, bundle, status)
        watch.lap("bundle")
        version = Registry(locations).register(
            task.name,
            run_id=run.id,
            bundle=bundle.path,
            status=status,
            dataset_hash=dataset_hash,
            model_hash=bundle.model_hash,
        )
        run.tags({"version": version.version})
        watch.lap("register")
        run.metrics({f"seconds.{name}": spent for name, spent in watch.seconds.items()})
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
        snapshot=snapshot,
        seconds=watch.seconds,
    )


def _audit(task: Task, frame: Frame, cutoff: datetime, run: Run, say: Callable[[str], None]) -> None:
    report = audit(task, frame, cutoff=cutoff, progress=say)
    run.report(report.to_dict(), "audit.json")
    run.text(audit_page(report), "audit.html")
    report.raise_if_blocked()


@dataclass(frozen=True, slots=True)
class Made:
    """A model and what was found of it, before it has a name."""

    learner: str
    fitted: Fitted
    naive: np.ndarray
    """[k], what the naive baseline answers to everything."""
    split: Split
    evaluation: Evaluation
    gates: tuple[Gate, ...]
    holdout_scores: np.ndarray


def make_version(
    task: Task,
    frame: Frame,
    cutoff: datetime,
    champion: Bundle | None,
    *,
    lap: Callable[[str], None],
    say: Callable[[str], None],
) -> Made:
    """Split, fit, package, evaluate and judge; nothing is written or registered.

    Args:
        task: the whole policy.
        frame: labelled rows and their features.
        cutoff: the instant training stands at.
        champion: what the version is compared with.
        lap: told the name of each step when it is done.
        say: told what is being done.

    Raises:
        SkewlessError: the frame does not carry a split or a fit.
    """
    settings, labels, inputs = task.training, frame.labels, frame.inputs()
    split = split_by_time(
        frame.event_timestamps,
        frame.known_at,
        labels,
        cutoff=cutoff,
        window=settings.window,
        validation=settings.validation,
        holdout=settings.holdout,
    )
    train, validation, holdout = (
        Part(inputs.take(rows), labels[rows]) for rows in (split.train, split.validation, split.holdout)
    )
    problem = Problem(
        kind=task.kind,
        metric=task.success.metric,
        quantiles=task.quantiles,
        seed=settings.seed,
        threads=settings.threads,
        sequences=sequences(frame.specs),
    )
    learner = choose(task, feature_kinds(frame.specs), frame.table.num_rows).learner.used
    say(
        f"fitting {learner} on {len(split.train):,} rows, {len(split.validation):,} validate, "
        f"{len(split.holdout):,} held out"
    )
    fitted = find_learner(learner)(problem, train, validation, settings.params)
    scorer = Scorer(fitted.model)
    lap("fit")
    size = ", ".join(f"{count:,} {what}" for what, count in fitted.size.items())
    say(f"{size} packaged in {len(fitted.model) / 1024:,.0f} KB; judging them on the holdout")
    naive, threshold = _without_a_model(task, train.labels), None
    if task.kind == "binary":
        prices, scores = task.success.cost, scorer.score(validation.inputs.numbers, validation.inputs.texts)
        threshold = cheapest_threshold(validation.labels, scores, false_alarm=prices.false_alarm, missed=prices.missed)
    evaluation = evaluate(
        task,
        frame,
        split.holdout,
        scorer=scorer,
        native=fitted.native(holdout.inputs),
        threshold=threshold,
        naive=naive,
        champion=champion,
    )
    lap("evaluate")
    return Made(
        learner=learner,
        fitted=fitted,
        naive=naive,
        split=split,
        evaluation=evaluation,
        gates=judge(task, evaluation),
        holdout_scores=scorer.score(holdout.inputs.numbers, holdout.inputs.texts),
    )


def _without_a_model(task: Task, labels: np.ndarray) -> np.ndarray:
    """What the training labels alone would answer, [k]: the base rate, or the median and the quantiles."""
    if task.kind == "binary":
        return np.array([labels.mean()])
    return np.quantile(labels, [0.5, *task.quantiles])


def _bundle(
    task: Task,
    locations: Locations,
    clock: Clock,
    frame: Frame,
    made: Made,
    dataset_hash: str,
    made_with: Revision,
    run: Run,
) -> Bundle:
    split = made.split.summary()
    metadata = BundleMetadata(
        task=task.name,
        kind=task.kind,
        learner=made.learner,
        feature_service=task.feature_service,
        features=frame.specs,
        service_fingerprint=frame.service_fingerprint,
        threshold=made.evaluation.threshold,
        fallback=float(made.naive[0]),
        trained_at=clock.now().isoformat(),
        training_data={
            "dataset_hash": dataset_hash,
            "rows": frame.table.num_rows,
            "unlabelled": frame.unlabelled,
            "start": split["bounds"]["start"],
            "end": split["bounds"]["cutoff"],
            "cutoff": split["bounds"]["cutoff"],
            "split": split,
        },
        metrics={name: asdict(found) for name, found in made.evaluation.metrics.items()},
        gates=tuple(gate.to_dict() for gate in made.gates),
        seed=task.training.seed,
        params=made.fitted.params,
        task_as_trained=task.fingerprint_data(),
        provenance={
            "run_id": run.id,
            "code_revision": made_with.code,
            "lock_hash": made_with.lock_hash,
            "registry_hash": frame.registry_hash,
        },
        quantiles=task.quantiles,
        fallback_quantiles=tuple(made.naive[1:].tolist()),
    )
    return write_bundle(
        locations.bundles(task.name) / f"{sha256(made.fitted.model).hexdigest()[:16]}-{run.id[:8]}",
        model=made.fitted.model,
        metadata=metadata,
        reference=frame.reference(made.split.holdout, made.holdout_scores),
    )


def _log(run: Run, made: Made, bundle: Bundle, status: Status) -> None:
    run.params({f"learner.{name}": value for name, value in made.fitted.params.items()})
    run.params({"learner": made.learner, "threshold": made.evaluation.threshold, **made.fitted.size})
    run.tags({"model_hash": bundle.model_hash, "status": status})
    run.tags({f"gate.{gate.name}": gate.verdict for gate in made.gates})
    run.estimates("holdout", made.evaluation.metrics)
    run.estimates("cost_per_case", made.evaluation.cost_per_case)
    run.metrics({"latency_ms.p99": made.evaluation.latency_ms["p99"], "parity": made.evaluation.parity})
    run.metrics({f"rows.{name}": rows for name, rows in made.split.summary()["rows"].items()})
    run.report(made.evaluation.to_dict(), "evaluation.json")
    run.report([gate.to_dict() for gate in made.gates], "gates.json")
    run.folder(bundle.path, "bundle")


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now
