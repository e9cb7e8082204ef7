"""Rollout as an operator drives it: evidence from the log, the audit and the estimator, then one judged move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from contracts.bundle import BundleError, load_bundle
from contracts.clock import SystemClock
from contracts.errors import SkewlessError
from contracts.locations import Locations
from contracts.predictions import read_predictions
from contracts.spine import SpineReader, read_spine
from contracts.task import LOWER_IS_BETTER, Task
from serving.comparison import Comparison
from serving.evidence import Evidence, Performance, SkewCount, gather
from serving.outcomes import counted, read_outcomes
from serving.rollout import Move, NoChallenger, Rollouts
from serving.rollout_guard import Guard
from serving.rollout_state import Deployment, RolloutEvent

if TYPE_CHECKING:
    from feast import FeatureStore

    from loop.project import Project


class NothingCompared(SkewlessError, LookupError):
    """There are no two scores of the same vector."""


def open_rollouts(engine: Engine, task: Task, locations: Locations) -> Rollouts:
    """The task's releases, with the model registry's aliases following them."""
    from contracts.registry import open_registry

    registry = open_registry(locations)
    return Rollouts(engine, task, lambda alias, version: registry.set_alias(task.name, alias, version))


def guarded(project: Project, tasks: Sequence[str], say: Callable[[str], None]) -> Guard:
    """A guard of these tasks' releases, for a `with` block; what it rolls back is said."""
    engine = project.open_state()
    rollouts = [open_rollouts(engine, project.task(name), project.locations) for name in tasks]

    def told(move: Move) -> None:
        say(f"version {move.version} of {move.deployment.task} was rolled back from {move.from_stage}: {move.reason}")

    return Guard(rollouts, SystemClock(), told)


def compared(project: Project, task: Task, now: datetime) -> Comparison:
    """Both versions' scores of the same vectors since the present step began.

    Raises:
        NoChallenger: nothing climbs.
        NothingCompared: no request was scored by both, or the champion is the naive baseline.
    """
    deployment = _climbing(open_rollouts(project.open_state(), task, project.locations))
    found = gather(project.locations.predictions(task.name), task, deployment, now).comparison
    if found is None:
        raise NothingCompared(
            f"Task {task.name!r}: no request was scored by champion {deployment.champion} and challenger"
            f" {deployment.challenger} since {deployment.since}.",
            hint="is serving asked? The naive baseline, champion 0, is never compared.",
        )
    return found


def baked(task: Task, deployment: Deployment, now: datetime) -> bool:
    """Whether the challenger has been in its stage long enough to be judged; gathering evidence earlier is a waste."""
    bake = {"shadow": task.rollout.shadow_bake, "canary": task.rollout.canary_bake}.get(deployment.stage)
    return bake is not None and now - deployment.since >= bake


def advance(
    rollouts: Rollouts,
    locations: Locations,
    *,
    now: datetime,
    store: FeatureStore | None = None,
    read: SpineReader = read_spine,
) -> Move:
    """Gather everything known about the challenger's stage and make the move it calls for.

    Args:
        rollouts: the task's releases; a challenger must be climbing.
        locations: where the prediction log is.
        now: evidence is gathered up to here.
        store: an open Feast store for the skew audit; None opens one.
        read: reads the spine, for labels.
    """
    deployment = _climbing(rollouts)
    evidence = gather(locations.predictions(rollouts.task.name), rollouts.task, deployment, now)
    with rollouts.engine.begin() as connection:
        evidence = counted(evidence, read_outcomes(connection, rollouts.task.name, deployment.generation))
    evidence = replace(evidence, skew=_skew(rollouts, locations, evidence, store))
    evidence = replace(evidence, performance=_performance(rollouts, locations, deployment, evidence, read))
    return rollouts.advance(evidence, now)


def _climbing(rollouts: Rollouts) -> Deployment:
    deployment = rollouts.current()
    if deployment is None or deployment.challenger is None:
        raise NoChallenger(
            f"Task {rollouts.task.name!r}: no version is climbing.",
            hint=f"train one: `skewless retrain {rollouts.task.name}`.",
        )
    return deployment


def definitions(history: Sequence[RolloutEvent]) -> dict[int, str]:
    """The fingerprint of the feature definitions each released version was compiled from, where its bundle tells."""
    bundles = {event.champion: event.champion_bundle for event in history}
    bundles |= {event.challenger: event.challenger_bundle or "" for event in history if event.challenger is not None}
    found = {}
    for version, path in bundles.items():
        with suppress(BundleError):
            found[version] = load_bundle(Path(path)).metadata.service_fingerprint
    return found


def _skew(rollouts: Rollouts, locations: Locations, evidence: Evidence, store: FeatureStore | None) -> SkewCount:
    from monitoring.skew import audit

    report = audit(
        rollouts.task,
        locations,
        start=evidence.since,
        end=evidence.until,
        store=store,
        fingerprints=definitions(rollouts.history()),
    )
    not_judged, set_aside = report.not_judged.total(), report.set_aside.total()
    return SkewCount(report.checked, report.mismatches, report.share, not_judged, set_aside)


def _performance(
    rollouts: Rollouts, locations: Locations, deployment: Deployment, evidence: Evidence, read: SpineReader
) -> Performance:
    """Performance of the challenger on all it scored since it entered shadow: a canary step alone answers few."""
    from monitoring.best_evidence import best_evidence
    from monitoring.log_frame import of_version

    task = rollouts.task
    entered = max(
        event.at for event in rollouts.history() if event.version == evidence.version and event.to_stage == "shadow"
    )
    scored = read_predictions(
        locations.predictions(task.name), start=entered, end=evidence.until, variants=("canary", "shadow")
    )
    bundle = load_bundle(Path(deployment.challenger_bundle or ""))
    best = best_evidence(task, bundle, of_version(scored, evidence.version), as_of=evidence.until, read=read)
    found = best.performance
    return Performance(
        task.success.metric,
        found.value if found else None,
        task.monitoring.performance_floor,
        found.low if found else None,
        found.high if found else None,
        higher_is_better=task.success.metric not in LOWER_IS_BETTER,
        kind=best.kind,
        rows=best.rows,
        note=best.note,
    )
