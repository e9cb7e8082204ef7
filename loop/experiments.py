"""Commands about trainings that are done."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

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
    from contracts.registry import open_registry
    from training.reproduce import reproduce as make_again
    from training.tracking import read_run

    steps, recorded_by = Steps(), project.locations
    if recorded_in is not None:
        recorded_by = replace(recorded_by, data=recorded_in.resolve())
    with steps.step(f"reproduce {run}"):
        recorded = read_run(open_registry(recorded_by).resolve(run).run_id if "@" in run else run, recorded_by)
        found = make_again(project.task(recorded.task), recorded, progress=steps.say)
    if json_:
        print_json(found.to_dict())
    else:
        summary.print_reproduction(found.to_dict())
    if not found.reproduced:
        sys.exit(1)


@click.command()
@click.argument("task", required=False)
@click.argument("version", required=False)
@click.option("--open", "open_", is_flag=True, help="Show it in the browser as well.")
@as_json
@click.pass_obj
@told
def card(project: Project, task: str | None, version: str | None, open_: bool, json_: bool) -> None:
    """Print where a version's card is: what it predicts, how good it is, where it fails, in words and plots.

    TASK may carry the version (late_arrival@3, late_arrival@champion) or VERSION follow it; the newest one otherwise.
    A card that is gone is drawn again from the records.

    \b
    Examples:
      skewless card late_arrival
      skewless card late_arrival 3 --open
      skewless card late_arrival@champion --json
    """
    from contracts.bundle import load_bundle
    from contracts.registry import UnknownVersion, open_registry
    from training.records import card_path, write_card
    from training.tracking import read_evaluation

    name, _, wanted = (task or "").partition("@")
    name = project.task(name or None).name
    registry = open_registry(project.locations)
    versions = registry.versions(name)
    if not versions:
        raise UnknownVersion(f"Task {name!r} has no version yet.", hint=f"train one: `skewless train {name}`.")
    found = registry.resolve(f"{name}@{version or wanted or versions[-1].version}")
    path = card_path(found.bundle)
    if not path.is_file():
        evaluation = read_evaluation(found.run_id, project.locations)
        write_card(load_bundle(found.bundle), evaluation, version=found.version, status=found.status)
    if json_:
        print_json({"task": name, "version": found.version, "status": found.status, "card": str(path)})
    else:
        click.echo(path)
    if open_:
        click.launch(str(path))
