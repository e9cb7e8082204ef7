"""Commands about trainings that are done."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from contracts.locations import Locations
from loop import summary
from loop.command import as_json, told
from loop.project import Project
from loop.terminal import Steps, print_json


@click.command()
@click.argument("run")
@click.option(
    "--recorded-in",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Data root whose tracking store holds the run, for a fresh clone; default: this project's.",
)
@as_json
@click.pass_obj
@told
def reproduce(project: Project, run: str, recorded_in: Path | None, json_: bool) -> None:
    """Make a training again and compare: same frame, same model bytes, same metrics? Exit status 1 if not.

    RUN is a version (late_arrival@3, late_arrival@champion) or the id of an MLflow run. Source files that changed
    since are named.

    \b
    Examples:
      skewless reproduce late_arrival@champion
      skewless -C ../fresh-clone reproduce late_arrival@1 --recorded-in data
    """
    from contracts.registry import Registry
    from training.reproduce import reproduce as make_again
    from training.tracking import read_run

    steps, recorded_by = Steps(), Locations(recorded_in.resolve()) if recorded_in else project.locations
    with steps.step(f"reproduce {run}"):
        recorded = read_run(Registry(recorded_by).resolve(run).run_id if "@" in run else run, recorded_by)
        found = make_again(project.task(recorded.task), recorded, progress=steps.say)
    if json_:
        print_json(found.to_dict())
    else:
        summary.print_reproduction(found.to_dict())
    if not found.reproduced:
        sys.exit(1)
