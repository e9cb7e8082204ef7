"""Commands about task files and the data they train on, before anything is trained."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import click

from contracts.clock import SystemClock
from contracts.task import load_task
from loop import summary
from loop.command import as_json, as_of, task_argument, told
from loop.project import Project
from loop.terminal import Steps, print_json


@click.command()
@task_argument
@as_of
@as_json
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the report as one page there.")
@click.pass_obj
@told
def audit(project: Project, task: str | None, as_of: datetime | None, json_: bool, html: Path | None) -> None:
    """Look at the data a training would be fitted on: faults, leakage, stale sources. Exit status 1 if it blocks."""
    from contracts.files import whole_file
    from training.audit import audit as look
    from training.audit_page import audit_page
    from training.retrieval import build_frame

    steps, chosen = Steps(), project.task(task)
    cutoff = as_of or SystemClock().now()
    with steps.step(f"audit the training data of {chosen.name} as known at {cutoff:%F %H:%M}"):
        frame = build_frame(chosen, cutoff=cutoff, progress=steps.say)
        report = look(chosen, frame, cutoff=cutoff, progress=steps.say)
    if html:
        with whole_file(html) as part:
            part.write_text(audit_page(report), encoding="utf-8")
        steps.say(f"page written to {html}")
    if json_:
        print_json(report.to_dict())
    else:
        summary.print_audit(report.to_dict())
    if report.blocking:
        sys.exit(1)


@click.group()
def task() -> None:
    """Task files: begin one, check one, teach an editor."""


@task.command()
@click.argument("task", metavar="FILE|NAME", required=False)
@as_of
@as_json
@click.pass_obj
@told
def check(project: Project, task: str | None, as_of: datetime | None, json_: bool) -> None:
    """Hold a task against its repository, query and data; say what will happen. Exit status 1 if it cannot be trained.

    Trains nothing and writes nothing.
    """
    from loop.task_check import check_task

    path = project.task_file(task)
    chosen = load_task(path)
    text = path.read_text(encoding="utf-8") + "\n" + chosen.spine.sql.read_text(encoding="utf-8")
    found = check_task(chosen, text=text, now=as_of or SystemClock().now())
    if json_:
        print_json(found.to_dict())
    else:
        summary.print_task(found.to_dict())
    if found.problems:
        sys.exit(1)


@task.command()
@click.argument("service")
@click.option("--repo", type=click.Path(path_type=Path), help="The Feast repository; default: the project's only one.")
@click.option("--name", help="The task's name; default: the service's, without a version at its end.")
@click.pass_obj
@told
def new(project: Project, service: str, repo: Path | None, name: str | None) -> None:
    """Begin a task from a feature service: a commented TOML and a query with the right columns. Overwrites nothing."""
    from loop.task_new import find_repository, new_task

    where = repo.resolve() if repo else find_repository(project.root)
    files = new_task(where, service, project.root / "tasks", name)
    for file in files:
        click.echo(f"wrote {file}")
    click.echo(f"next: fill in what is marked, then `skewless task check {files[0].stem}`")


@task.command()
def schema() -> None:
    """Print the JSON Schema of task files, for editors."""
    from loop.task_schema import task_schema

    print_json(task_schema())
