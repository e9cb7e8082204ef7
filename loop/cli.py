"""The command line: `skewless [-C DIR] COMMAND`. Each command composes stages; none holds logic of its own.

Exit status: 0 done, 1 the answer is no (a gate failed, a figure does not add up), 2 it could not be tried.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click

from contracts.clock import SystemClock, parse_instant
from contracts.errors import SkewlessError
from loop.project import Project
from loop.terminal import Steps, print_error, print_json, print_table

EXAMPLES = """
\b
Examples:
  skewless run                                  the whole way once, on the example
  skewless train late_arrival --as-of 2013-06-01
  skewless serve --port 8000
  skewless rollout status late_arrival
  skewless -C ~/churn monitor churn --json      another project
"""


class _Instant(click.ParamType):
    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """ISO 8601 to an instant in UTC; a missing zone means UTC."""
        try:
            return value if isinstance(value, datetime) else parse_instant(str(value))
        except ValueError as error:
            self.fail(f"{error}; write 2013-04-01 or 2013-04-01T12:00:00+00:00.", param, ctx)


INSTANT = _Instant()
as_json = click.option("--json", "json_", is_flag=True, help="Print one JSON object instead of tables.")
task_argument = click.argument("task", required=False)
as_of = click.option("--as-of", type=INSTANT, help="Pretend it is this instant (UTC); default: now.")


def told(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an error that a person can act on into one screen and exit status 2."""

    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except SkewlessError as error:
            failure: Exception = error
        except Exception as error:
            asof = sys.modules.get("asof.errors")
            if asof is None or not isinstance(error, asof.AsofError):
                raise
            failure = error
        print_error(str(failure))
        sys.exit(2)

    return wrapper


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
@click.option("--until", type=INSTANT, required=True, help="The boundary to materialize.")
@click.pass_obj
@told
def materialize(project: Project, task: str | None, since: datetime, until: datetime) -> None:
    """Write every view's values at a boundary to the online store."""
    from loop.features import Materializer

    steps = Steps()
    with steps.step(f"materialize to {until:%F %H:%M}"):
        rows = Materializer(project.task(task)).to(until, since=since)
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

    clock = SystemClock()
    steps = Steps()
    with steps.step("train"):
        result = train_version(project, project.task(task), cutoff=as_of or clock.now(), clock=clock, say=steps.say)
    _show_training(result, json_)


@main.command()
@task_argument
@as_of
@as_json
@click.pass_obj
@told
def retrain(project: Project, task: str | None, as_of: datetime | None, json_: bool) -> None:
    """Train on the latest window and hand a version that passes its gates to shadow."""
    from loop.retrain import retrain_task

    clock = SystemClock()
    steps = Steps()
    with steps.step("retrain"):
        result = retrain_task(project, project.task(task), now=as_of or clock.now(), clock=clock, say=steps.say)
    _show_training(result, json_)


def _show_training(result: Any, json_: bool) -> None:
    report = result.to_dict()
    if json_:
        print_json(report)
    else:
        from loop.summary import print_training

        print_training(report)
    if result.status != "candidate":
        sys.exit(1)
