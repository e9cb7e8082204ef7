"""Commands about task files and the data they train on, before anything is trained."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import click

from contracts.clock import SystemClock
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
