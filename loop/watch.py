"""Monitor what serves, decide, and put the decision on record."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine, select

from contracts.bundle import load_bundle
from contracts.errors import SkewlessError
from contracts.state import deployments
from contracts.task import Task
from loop.project import Project
from loop.retrain import last_training
from monitoring.decision import Decision, decide, record

if TYPE_CHECKING:
    from monitoring.report import MonitoringReport


class NothingServed(SkewlessError, LookupError):
    """A task without a deployment has nothing to watch."""


def watch(
    project: Project, task: Task, engine: Engine, *, now: datetime, say: Callable[[str], None]
) -> tuple[MonitoringReport, Decision]:
    """Measure the champion's log as of `now`, decide what is to be done, and record alerts and requests.

    Raises:
        NothingServed: the task was never deployed.
    """
    from monitoring.monitor import monitor

    columns = deployments.c
    with engine.connect() as connection:
        row = connection.execute(
            select(columns.champion, columns.champion_bundle).where(columns.task == task.name)
        ).one_or_none()
    if row is None:
        raise NothingServed(
            f"Task {task.name!r} was never deployed.", hint=f"train a version: `skewless retrain {task.name}`."
        )
    bundle = load_bundle(Path(row.champion_bundle))
    report = monitor(task, project.locations, engine, as_of=now, bundle=bundle, version=row.champion, progress=say)
    decision = decide(task, report, last_training=last_training(project, task, now), now=now)
    record(engine, decision, now)
    return report, decision
