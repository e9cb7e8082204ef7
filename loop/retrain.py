"""Train a version, and hand one that passed its gates to shadow."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine, insert, select, update

from contracts.bundle import Bundle, BundleError, load_bundle
from contracts.clock import VirtualClock, as_utc
from contracts.state import deployments, retrain_requests
from contracts.task import Task
from loop.project import Project
from loop.releases import open_rollouts
from serving.rollout import ChallengerClimbing, Move, Rollouts

if TYPE_CHECKING:
    from training.frame import Frame
    from training.pipeline import TrainingResult

MONTH = timedelta(days=30)
"""How long before a training the champion was that its version is compared with besides the present one."""


def champion_bundle(engine: Engine, task: Task) -> Bundle | None:
    """The bundle of the model that serves; None while the naive baseline does, or nothing."""
    query = select(deployments.c.champion, deployments.c.champion_bundle).where(deployments.c.task == task.name)
    with engine.connect() as connection:
        row = connection.execute(query).one_or_none()
    return load_bundle(Path(row.champion_bundle)) if row is not None and row.champion else None


def champion_at(engine: Engine, task: Task, instant: datetime, say: Callable[[str], None]) -> Bundle | None:
    """The bundle of the model that served at `instant`, by the rollout's history; None where the naive baseline did.

    It is for comparison only: a bundle that is gone or altered is said and left out.
    """
    moves = [move for move in Rollouts(engine, task).history() if move.at <= instant]
    if not moves or not moves[-1].champion:
        return None
    try:
        return load_bundle(Path(moves[-1].champion_bundle))
    except BundleError as error:
        say(f"version {moves[-1].champion}, champion on {instant:%F}, cannot be compared with: {error.fact}")
        return None


def trainings(project: Project, task: Task, now: datetime) -> list[datetime]:
    """When versions of the task were trained, at or before `now`, with whatever outcome; in no order."""
    from contracts.registry import open_registry

    trained = [
        as_utc(datetime.fromisoformat(load_bundle(each.bundle).metadata.trained_at))
        for each in open_registry(project.locations).versions(task.name)
    ]
    return [instant for instant in trained if instant <= now]


def last_training(project: Project, task: Task, now: datetime) -> datetime | None:
    """When a version of the task was last trained, at or before `now`, with whatever outcome."""
    return max(trainings(project, task, now), default=None)


def train_version(
    project: Project,
    task: Task,
    engine: Engine,
    *,
    now: datetime,
    say: Callable[[str], None],
    frame: Frame | None = None,
) -> TrainingResult:
    """Train on what was known at `now`, judged against the champion on the same holdout. Registers; deploys nothing.

    `frame` is what `training.retrieval.build_frame` gives at `now`, where the caller has it.
    """
    from training.pipeline import train

    return train(
        task,
        project.locations,
        cutoff=now,
        clock=VirtualClock(now),
        champion=champion_bundle(engine, task),
        last_month=champion_at(engine, task, now - MONTH, say),
        frame=frame,
        progress=say,
    )


def retrain(
    project: Project,
    task: Task,
    engine: Engine,
    *,
    now: datetime,
    say: Callable[[str], None],
    frame: Frame | None = None,
) -> tuple[TrainingResult, Move | None]:
    """Train on the latest window; submit a version that passed every gate to shadow; close the open request.

    Returns:
        The training and the move into shadow; None for the move when the version was rejected.

    Raises:
        ChallengerClimbing: a version is on its way up already; asked before an hour is spent on training.
    """
    rollouts = open_rollouts(engine, task, project.locations)
    serving = rollouts.current()
    if serving is not None and serving.challenger is not None:
        raise ChallengerClimbing(
            f"Task {task.name!r}: version {serving.challenger} is in {serving.stage} since {serving.since:%F %H:%M}.",
            hint=f"wait for it, or drop it: `skewless rollout rollback {task.name}`.",
        )
    result = train_version(project, task, engine, now=now, say=say, frame=frame)
    passed = result.status == "candidate"
    move = rollouts.submit(result.version, result.bundle, now) if passed else None
    _close_request(engine, task, now, passed, result.version)
    if move is not None:
        _rehearse(project, task, engine, move, now, say)
    return result, move


def submit(
    project: Project,
    task: Task,
    engine: Engine,
    version: int,
    bundle: Path,
    *,
    now: datetime,
    say: Callable[[str], None],
) -> Move:
    """Let a registered version enter shadow. Raises what `serving.rollout.Rollouts.submit` does."""
    move = open_rollouts(engine, task, project.locations).submit(version, bundle, now, actor=getpass.getuser())
    _rehearse(project, task, engine, move, now, say)
    return move


def _rehearse(
    project: Project, task: Task, engine: Engine, move: Move, now: datetime, say: Callable[[str], None]
) -> None:
    """A task that goes live for the first time needs a passed drift drill: hold the short one at once."""
    from loop.drills import rehearse_drift
    from serving.rollout_state import latest_drill

    if move.deployment.champion:
        return
    with engine.begin() as connection:
        passed, _ = latest_drill(connection, task.name, "drift")
    if not passed:
        rehearse_drift(project, task, engine, now=now, quick=True, say=say)


def _close_request(engine: Engine, task: Task, now: datetime, passed: bool, version: int) -> None:
    """Write the outcome on the open request, or on a manual one where a person asked."""
    requests = retrain_requests.c
    outcome = {"finished_at": now, "outcome": "registered" if passed else "rejected", "version": version}
    waiting = (requests.task == task.name) & requests.finished_at.is_(None)
    with engine.begin() as connection:
        closed = connection.execute(update(retrain_requests).where(waiting).values(outcome)).rowcount
        if not closed:
            manual = {"task": task.name, "reason": "manual", "evidence": {}, "requested_at": now}
            connection.execute(insert(retrain_requests).values(manual | outcome))
