"""The recurring work of a project: each job by its kind and task, one of a kind at a time, told in one line.

    ingest       the repository's own ingest.py, where it has one: events, and the labels that the spine reads from them
    materialize  every view to the last full `--every`
    predict      a batch task's answers to the cases to come
    monitor      the champion's log, and the decision
    advance      a climbing version that has baked: judged, and the move that follows
    retrain      where a decision, or a person, has asked for it and nothing climbs
    retention    what may go by the project's settings

A job that is killed leaves what it had not finished to the next of its kind: tables and online values are written
whole, a request stays open until a version is registered, and a training that was killed is marked so.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from sqlalchemy import select

from contracts.errors import SkewlessError
from contracts.state import retrain_requests
from contracts.task import Task
from loop.project import Project
from loop.watch import NothingServed
from monitoring.notify import Webhook
from serving.rollout import ChallengerClimbing
from serving.rollout_state import StaleMove
from training.lock import TrainingInProgress

Kind = Literal["ingest", "materialize", "predict", "monitor", "advance", "retrain", "retention"]
KINDS: tuple[Kind, ...] = ("ingest", "materialize", "predict", "monitor", "advance", "retrain", "retention")
"""In the order in which they are done when several are due: an alert stops a release, a release that ended lets the
next version be trained, and what that one needs is known when old things go."""
DATA: tuple[Kind, ...] = ("ingest", "materialize", "predict")
"""What serving lives on; the others look at what it left."""
RETENTION_EVERY = timedelta(days=1)
"""Nothing grows so fast that it must go within the hour."""
_WAITS = (NothingServed, ChallengerClimbing, TrainingInProgress, StaleMove)
"""Somebody else's turn: no failure of the job."""


class JobUnderWay(SkewlessError, BlockingIOError):
    """Another process does a job of the same kind for the same task."""


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of work for one task."""

    kind: Kind
    task: str
    every: timedelta
    """How often a schedule does it."""
    run: Callable[[datetime], str]
    """Does it as of an instant, and says in a few words what was done."""

    @property
    def name(self) -> str:
        """As a log line and a lock name it."""
        return f"{self.kind} {self.task}"


def jobs_of(
    project: Project, task: Task, every: timedelta, say: Callable[[str], None], webhook: Webhook | None = None
) -> list[Job]:
    """The jobs a task has, in the order of `KINDS`.

    Args:
        project: whose.
        task: says how often it predicts and is monitored.
        every: how often data is landed and materialized, releases are judged, and requests are looked for.
        say: told what a long job is doing.
        webhook: where alerts are sent besides the log.
    """
    jobs = [
        Job("materialize", task.name, every, lambda now: _materialize(task, every, now)),
        Job("monitor", task.name, task.monitoring.chunk, lambda now: _monitor(project, task, now, say, webhook)),
        Job("advance", task.name, every, lambda now: _advance(project, task, now)),
        Job("retrain", task.name, every, lambda now: _retrain(project, task, now, say)),
        Job("retention", task.name, max(every, RETENTION_EVERY), lambda _: _retention(project, task)),
    ]
    if project.lands_itself(task):
        jobs.append(Job("ingest", task.name, every, lambda now: _ingest(project, task, say)))
    if task.serving_mode[0] == "batch":
        jobs.append(Job("predict", task.name, task.batch.every, lambda now: _predict(project, task, now, say)))
    return sorted(jobs, key=lambda job: KINDS.index(job.kind))


def do(project: Project, job: Job, now: datetime, log: Callable[[str], None]) -> bool:
    """Do a job unless another process is at it; whatever comes of it is one line. False when it failed."""
    try:
        with _alone(project.locations.lock(f"job-{job.kind}-{job.task}"), job):
            done = job.run(now)
    except JobUnderWay as busy:
        log(f"{job.name}: skipped, {busy.fact}")
    except _WAITS as waiting:
        log(f"{job.name}: waits, {waiting.fact}")
    except Exception as error:  # the next job, and the next time, must not suffer from this one
        fact = error.fact if isinstance(error, SkewlessError) else f"{type(error).__name__}: {error}"
        log(f"{job.name}: FAILED, {fact}")
        return False
    else:
        log(f"{job.name}: {done}")
    return True


@contextmanager
def _alone(lock: Path, job: Job) -> Iterator[None]:
    """The system lets go of the lock when the process ends, however it ends."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JobUnderWay(f"another process is at it ({lock})", hint="wait for it, or end it.") from error
        yield


def _ingest(project: Project, task: Task, say: Callable[[str], None]) -> str:
    report = project.ingest(task, say)
    return f"{sum(report.landed.values()):,} rows landed"


def _materialize(task: Task, every: timedelta, now: datetime) -> str:
    from loop.features import Materializer, complete_until, open_features

    store = open_features(task)
    boundary = datetime.fromtimestamp(now.timestamp() // every.total_seconds() * every.total_seconds(), now.tzinfo)
    since = complete_until(store, boundary)
    if since >= boundary:
        return f"nothing to do, complete at {since:%F %H:%M}"
    return f"{Materializer(store, since).to(boundary):,} rows written, complete at {boundary:%F %H:%M}"


def _predict(project: Project, task: Task, now: datetime, say: Callable[[str], None]) -> str:
    from loop.predict import predict

    report = predict(project.locations, task, project.open_state(), at=now, say=say)
    return f"{report.to_dict()['cases']:,} cases predicted"


def _monitor(project: Project, task: Task, now: datetime, say: Callable[[str], None], webhook: Webhook | None) -> str:
    from loop.watch import watch

    _, decision = watch(project, task, project.open_state(), now=now, say=say, webhook=webhook)
    return f"{decision.action}, {decision.reasons[0]}"


def _advance(project: Project, task: Task, now: datetime) -> str:
    """Judging reads the stage's log and recomputes its vectors: only where the stage has lasted long enough to end."""
    from loop.releases import advance, baked, open_rollouts

    rollouts = open_rollouts(project.open_state(), task, project.locations)
    climbing = rollouts.current()
    behind = rollouts.reconcile()  # a registry that failed at the last move
    told = f"; the registry's aliases are behind: {behind}" if behind else ""
    if climbing is None or climbing.challenger is None:
        return f"nothing climbs{told}"
    version = f"version {climbing.challenger}"
    if climbing.stage == "paused":
        return f"{version} is paused since {climbing.since:%F %H:%M}, a person must approve it or roll it back{told}"
    if not baked(task, climbing, now):
        return f"{version} bakes in {climbing.stage} since {climbing.since:%F %H:%M}{told}"
    move = advance(rollouts, project.locations, now=now)
    if not move.moved:
        return f"{version} waits in {move.from_stage}, {move.reason}{told}"
    step = f" at {move.deployment.share:.0%}" if move.to_stage == "canary" else ""
    return f"{version}: {move.from_stage} -> {move.to_stage}{step}, {move.reason}{told}"


def _retention(project: Project, task: Task) -> str:
    from loop.retention import tidy

    found = tidy(project, task)
    return f"{len(found.frames)} frames removed, {found.bytes:,} bytes"


def _retrain(project: Project, task: Task, now: datetime, say: Callable[[str], None]) -> str:
    from loop.retrain import retrain

    engine, columns = project.open_state(), retrain_requests.c
    waiting = select(columns.reason).where((columns.task == task.name) & columns.finished_at.is_(None))
    with engine.connect() as connection:
        reason = connection.execute(waiting).scalars().first()
    if reason is None:
        return "nothing asked for it"
    result, entered = retrain(project, task, engine, now=now, say=say)
    return f"asked for by {reason}; version {result.version} is {'in shadow' if entered else 'rejected'}"
