"""The command line: `skewless [-C DIR] COMMAND`. Each command composes stages; none holds logic of its own.

Exit status: 0 done, 1 the answer is no (a gate failed, a figure does not add up), 2 it could not be
tried, 130 it was interrupted.
"""

from __future__ import annotations

import logging
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from contracts.clock import SystemClock
from loop import summary
from loop.command import INSTANT, as_json, as_of, interruption, task_argument, told
from loop.console_cli import console
from loop.drills import drill
from loop.experiments import card, reproduce
from loop.operate import alerts, rollout
from loop.project import Project
from loop.rehearse import loadtest
from loop.replay_cli import replay
from loop.retention import retention
from loop.schedule import schedule
from loop.tasks_cli import audit, task
from loop.terminal import Steps, print_facts, print_json, print_table

EXAMPLES = """
\b
Examples:
  skewless run                                  the whole way once, on the example
  skewless train late_arrival --as-of 2013-06-01
  skewless predict arrival_delay --as-of 2013-04-07T06:00
  skewless serve --port 8000
  skewless console                              everything on one page
  skewless rollout status late_arrival
  skewless -C ~/churn monitor churn --json      another project
"""


@click.group(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-C",
    "--project",
    type=click.Path(path_type=Path),
    default=Path(),
    envvar="SKEWLESS_PROJECT",
    help="The project folder: tasks/, a Feast repository, data/. Default: this folder.",
)
@click.pass_context
def main(context: click.Context, project: Path) -> None:
    """A model sees, offline and online, only what was knowable when it was asked, computed by the same code."""
    # Feast warns that views are experimental at every import; what a user can act on reaches them as an error.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").propagate = False
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    context.obj = Project(project.resolve())


@main.command()
@task_argument
@as_json
@click.pass_obj
@told
def ingest(project: Project, task: str | None, json_: bool) -> None:
    """Land the raw data as event tables, by the feature repository's own ingest.py."""
    steps = Steps()
    with steps.step("ingest"):
        report = project.ingest(project.task(task), steps.say)
    if json_:
        print_json(report.to_dict())
    else:
        rows = [(name, landed, report.quarantined.get(name, 0)) for name, landed in report.landed.items()]
        print_table("Landed", ("table", "rows", "quarantined"), rows)


@main.command()
@task_argument
@click.pass_obj
@told
def apply(project: Project, task: str | None) -> None:
    """Register the task's feature definitions, as `feast apply` does."""
    from loop.features import apply as apply_definitions

    steps = Steps()
    with steps.step("apply feature definitions"):
        apply_definitions(project.task(task))


@main.command()
@task_argument
@click.option("--since", type=INSTANT, required=True, help="Rows known after this instant.")
@click.option("--until", type=INSTANT, help="The boundary to materialize; default: now.")
@click.pass_obj
@told
def materialize(project: Project, task: str | None, since: datetime, until: datetime | None) -> None:
    """Write every view's values at a boundary to the online store."""
    from loop.features import Materializer, open_features

    until = until or SystemClock().now()
    steps = Steps()
    with steps.step(f"materialize to {until:%F %H:%M}"):
        rows = Materializer(open_features(project.task(task)), since).to(until)
        steps.say(f"{rows:,} rows written")


@main.command()
@task_argument
@as_of
@as_json
@click.pass_obj
@told
def train(project: Project, task: str | None, as_of: datetime | None, json_: bool) -> None:
    """Train, evaluate and gate a version; register it as candidate or rejected (then exit status 1)."""
    from loop.retrain import train_version

    steps, chosen = Steps(), project.task(task)
    with steps.step(f"train {chosen.name}"):
        now = as_of or SystemClock().now()
        result = train_version(project, chosen, project.open_state(), now=now, say=steps.say)
    _show_training(result, json_)


@main.command()
@task_argument
@as_of
@as_json
@click.pass_obj
@told
def retrain(project: Project, task: str | None, as_of: datetime | None, json_: bool) -> None:
    """Train on the latest window and hand a version that passes its gates to shadow."""
    from loop.retrain import retrain as retrain_version

    steps, chosen = Steps(), project.task(task)
    with steps.step(f"retrain {chosen.name}"):
        now = as_of or SystemClock().now()
        result, _ = retrain_version(project, chosen, project.open_state(), now=now, say=steps.say)
    _show_training(result, json_)


@main.command()
@task_argument
@as_of
@as_json
@click.pass_obj
@told
def predict(project: Project, task: str | None, as_of: datetime | None, json_: bool) -> None:
    """Precompute a batch task's predictions for the cases that will soon be asked about."""
    from loop.predict import predict as predict_cases
    from loop.workspace import kept_from_runs

    steps, chosen = Steps(), project.task(task)
    with kept_from_runs(project.locations), steps.step(f"predict {chosen.name}"):
        report = predict_cases(project.locations, chosen, project.open_state(), at=as_of, say=steps.say)
    if json_:
        print_json(report.to_dict())
    else:
        summary.print_batch(report.to_dict())


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Another address needs tokens (docs/security.md).")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Of that address.")
@click.option("--grpc-port", type=click.IntRange(1, 65535), help="Answer gRPC too, on this port.")
@click.option(
    "--clock",
    type=click.Choice(["system", "request"]),
    default="system",
    show_default=True,
    help="Where a prediction's instant comes from: this machine, or the request (for data from another time).",
)
@click.pass_obj
@told
def serve(project: Project, host: str, port: int, grpc_port: int | None, clock: str) -> None:
    """Serve every deployed task over HTTP, and gRPC if asked to; a climbing version that breaks is rolled back."""
    from loop.releases import guarded
    from loop.workspace import kept_from_runs
    from serving.start import start

    names = project.deployed_names()
    with (
        kept_from_runs(project.locations),
        start(
            project.root,
            project.locations.data,
            host=host,
            port=port,
            clock=clock,
            grpc_port=grpc_port,
            tasks=names,
            console="loop.console:mounted",
        ) as handle,
        guarded(project, names, lambda text: click.echo(text, err=True)),
    ):
        click.echo(f"serving {', '.join(names)} on {handle.url}   (docs: {handle.url}/docs, Ctrl-C stops)")
        interruption().wait()


@main.command()
@task_argument
@as_of
@click.option("--webhook", envvar="SKEWLESS_ALERT_WEBHOOK", help="Where new alerts are posted as JSON.")
@as_json
@click.pass_obj
@told
def monitor(project: Project, task: str | None, as_of: datetime | None, webhook: str | None, json_: bool) -> None:
    """Watch the champion's log: drift, estimated and realized performance, skew; then decide, and say why."""
    from loop.watch import watch
    from monitoring.notify import Webhook

    steps, chosen = Steps(), project.task(task)
    with steps.step(f"monitor {chosen.name}"):
        now = as_of or SystemClock().now()
        hook = Webhook(webhook) if webhook else None
        report, decision = watch(project, chosen, project.open_state(), now=now, say=steps.say, webhook=hook)
    if json_:
        print_json({"monitoring": report.to_dict(), "decision": decision.to_dict()})
    else:
        summary.print_monitoring(report.to_dict(), decision.to_dict())


@main.command()
@task_argument
@click.option("--since", type=INSTANT, help="Rows asked about from this instant on.")
@click.option("--until", type=INSTANT, help="Rows asked about before this instant.")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Share of entity keys to audit.")
@as_json
@click.pass_obj
@told
def skew(
    project: Project, task: str | None, since: datetime | None, until: datetime | None, share: float, json_: bool
) -> None:
    """Recompute logged vectors as training would and compare them value by value.

    Exit status: 0 every value equal, 1 a mismatch (an alert is opened, which blocks promotion), 2 nothing to compare.
    """
    from loop.watch import audit

    steps, chosen, now = Steps(), project.task(task), SystemClock().now()
    with steps.step(f"audit {chosen.name}"), steps.gauge("rows of the log") as progress:
        report = audit(
            project,
            chosen,
            project.open_state(),
            now=now,
            since=since,
            until=until,
            share=share,
            progress=progress,
        )
    if json_:
        print_json(report.to_dict())
    else:
        summary.print_skew(report.to_dict())
    if report.mismatches:
        sys.exit(1)


@main.group()
def log() -> None:
    """The prediction log."""


@log.command()
@task_argument
@as_json
@click.pass_obj
@told
def check(project: Project, task: str | None, json_: bool) -> None:
    """Does the log add up: answered = logged + lost? Exit status 1 if not.

    What a killed process had answered and not logged is settled first, and counted as lost.
    """
    from contracts.predictions import balance
    from serving.log_account import settle_accounts

    folder = project.locations.predictions(project.task(task).name)
    settle_accounts(folder)
    found = balance(folder)
    report = {"answered": found.answered, "logged": found.logged, "lost": found.lost}
    if json_:
        print_json({"log": report})
    else:
        print_facts("Prediction log", report | {"adds up": found.balanced})
    if not found.balanced:
        sys.exit(1)


@main.command()
@task_argument
@click.option(
    "--days",
    type=click.IntRange(1),
    help="Days of serving after training; by default what the release is expected to take, and two more.",
)
@as_json
@click.pass_obj
@told
def run(project: Project, task: str | None, days: int | None, json_: bool) -> None:
    """The whole way once: ingest, features, training, gates, serving, rollout, log, skew, monitoring, retraining."""
    from loop.run import run as run_all

    outcome = run_all(project, project.task(task), days=days, steps=Steps())
    if json_:
        print_json(outcome.to_dict())
    else:
        summary.print_run(outcome.to_dict())
    if outcome.failures:
        sys.exit(1)


main.add_command(rollout)
main.add_command(loadtest)
main.add_command(alerts)
main.add_command(drill)
main.add_command(audit)
main.add_command(task)
main.add_command(replay)
main.add_command(schedule)
main.add_command(retention)
main.add_command(reproduce)
main.add_command(card)
main.add_command(console)


def _show_training(result: Any, json_: bool) -> None:
    report = result.to_dict()
    if json_:
        print_json(report)
    else:
        summary.print_training(report)
    if result.status != "candidate":
        sys.exit(1)
