"""Watch what serves: monitor it and decide, or audit its log; and put the outcome on record."""

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
from loop.releases import definitions
from loop.retrain import trainings
from monitoring.decision import Decision, decide, record
from monitoring.decision_record import keep_decision
from monitoring.notify import Webhook, tell
from serving.rollout import Rollouts

if TYPE_CHECKING:
    from monitoring.report import MonitoringReport
    from monitoring.skew_report import SkewReport


class NothingServed(SkewlessError, LookupError):
    """A task without a deployment has nothing to watch."""


class NothingToAudit(SkewlessError, LookupError):
    """No logged value could be judged: that is no proof of anything."""


def watch(
    project: Project,
    task: Task,
    engine: Engine,
    *,
    now: datetime,
    say: Callable[[str], None],
    webhook: Webhook | None = None,
) -> tuple[MonitoringReport, Decision]:
    """Measure the champion's log as of `now`, decide what is to be done, record alerts and requests, and tell people.

    Args:
        project: where everything is.
        task: the policy.
        engine: the shared state.
        now: the instant.
        say: told what is being done.
        webhook: where alerts are sent besides the log.

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
    trained = trainings(project, task, now)
    decision = decide(task, report, last_training=max(trained, default=None), now=now, trained=trained)
    record(engine, decision, now)
    keep_decision(engine, decision, now)
    tell(engine, task.name, now=now, webhook=webhook)
    return report, decision


def audit(
    project: Project,
    task: Task,
    engine: Engine,
    *,
    now: datetime,
    since: datetime | None = None,
    until: datetime | None = None,
    share: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> SkewReport:
    """Audit the log for skew, put the result on record, and open an alert on a mismatch.

    Raises:
        NothingToAudit: nothing was logged in the time asked for, or nothing of it can be judged. Not recorded.
    """
    from monitoring.skew import audit as audit_log
    from monitoring.skew_record import record_audit

    report = audit_log(
        task,
        project.locations,
        start=since,
        end=until,
        share=share,
        fingerprints=definitions(Rollouts(engine, task).history()),
        progress=progress,
    )
    if not report.checked:
        aside = ", ".join(f"{count:,} rows {reason}" for reason, count in report.set_aside.items())
        raise NothingToAudit(
            f"Task {task.name!r}: no logged value to compare{f' ({aside})' if aside else ''}.",
            hint="widen --since, --until or --share; `skewless log check` says what is logged.",
        )
    record_audit(engine, task.name, report, now=now, since=since, until=until)
    return report
