"""`skewless schedule`: a project's recurring jobs on the machine's clock, or all of them once for cron.

Data jobs run one after another in one thread, those that watch, release and train in another: hourly features do not
wait for an hour of training. A time that was missed, because the machine slept or the job before took long, is made up
for once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import click

from contracts.clock import SystemClock
from loop.command import INSTANT, SPAN, interruption, told
from loop.jobs import DATA, KINDS, Job, do, jobs_of
from loop.project import Project
from monitoring.notify import Webhook

Log = Callable[[str], None]


@click.command()
@click.option("--task", "names", multiple=True, help="A task; may be given again. Default: every task.")
@click.option("--only", default=",".join(KINDS), show_default=True, help="Kinds of jobs, separated by commas.")
@click.option(
    "--every", type=SPAN, default="1h", show_default=True, help="How often data, releases and requests are seen to."
)
@click.option("--webhook", envvar="SKEWLESS_ALERT_WEBHOOK", help="Where monitoring posts new alerts as JSON.")
@click.option("--once", is_flag=True, help="Do each job now, in order, and end: for cron. Exit status 1 if one failed.")
@click.option("--as-of", type=INSTANT, help="With --once: pretend it is this instant (UTC).")
@click.pass_obj
@told
def schedule(
    project: Project,
    names: tuple[str, ...],
    only: str,
    every: timedelta,
    webhook: str | None,
    once: bool,
    as_of: datetime | None,
) -> None:
    """Land data, materialize, predict, monitor, decide, advance releases, retrain, and tidy up, whenever they are due.

    One line a job on standard error. A job of one kind and task runs once at a time, whatever processes try. Ended at
    any moment, the next start finishes what was left.

    \b
    Examples:
      skewless schedule                                     until interrupted
      skewless schedule --once --only ingest,materialize    from cron
    """
    from loop.workspace import kept_from_runs

    kinds = [kind.strip() for kind in only.split(",") if kind.strip()]
    stray = [kind for kind in kinds if kind not in KINDS]
    if stray or not kinds:
        raise click.BadParameter(f"{stray[0] if stray else ''!r} is none of {', '.join(KINDS)}", param_hint="--only")
    if as_of is not None and not once:
        raise click.BadParameter("is for --once: a schedule keeps to the machine's clock", param_hint="--as-of")
    log = _logger()
    tasks = [project.task(name) for name in names or project.task_names()]
    hook = Webhook(webhook) if webhook else None
    jobs = [job for task in tasks for job in jobs_of(project, task, every, lambda _: None, hook) if job.kind in kinds]
    jobs.sort(key=lambda job: KINDS.index(job.kind))
    with kept_from_runs(project.locations):
        if once:
            now = as_of or SystemClock().now()
            done = [do(project, job, now, log) for job in jobs]  # each is tried, whatever became of those before
            if not all(done):
                sys.exit(1)
        else:
            _until_interrupted(project, jobs, log)


def _until_interrupted(project: Project, jobs: Sequence[Job], log: Log) -> None:
    scheduler = scheduled(project, jobs, log)
    interrupted = interruption()
    scheduler.start()
    for job in jobs:
        log(f"{job.name}: every {job.every}")
    interrupted.wait()
    log("ending when the jobs under way are done")
    scheduler.shutdown(wait=True)


def scheduled(project: Project, jobs: Sequence[Job], log: Log) -> Any:
    """An APScheduler with these jobs, not started: each due at once and then at full multiples of its time (UTC)."""
    from apscheduler.executors.pool import ThreadPoolExecutor
    from apscheduler.schedulers.background import BackgroundScheduler
    from apscheduler.triggers.interval import IntervalTrigger

    clock = SystemClock()
    scheduler = BackgroundScheduler(
        timezone="UTC",
        executors={"data": ThreadPoolExecutor(1), "watch": ThreadPoolExecutor(1)},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
    )
    by_time: dict[tuple[str, timedelta], list[Job]] = {}
    for job in jobs:
        by_time.setdefault(("data" if job.kind in DATA else "watch", job.every), []).append(job)
    for (executor, every), due in by_time.items():

        def run(due: Sequence[Job] = tuple(due)) -> None:  # one after another: what is landed is then materialized
            for job in due:
                do(project, job, clock.now(), log)

        epoch = datetime(1970, 1, 1, tzinfo=clock.now().tzinfo)
        trigger = IntervalTrigger(seconds=int(every.total_seconds()), start_date=epoch, timezone="UTC")
        name = ", ".join(job.name for job in due)
        scheduler.add_job(run, trigger, executor=executor, id=name, name=name)
        # At once as a job of its own: the times of the other would count from this one.
        scheduler.add_job(run, executor=executor, id=f"{name}, at once", name=name)
    return scheduler


def _logger() -> Log:
    logger = logging.getLogger("skewless.schedule")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.handlers = [handler]
    return logger.info
