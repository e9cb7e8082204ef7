"""Commands that look at releases: what each move rested on, where two versions differ, and the watch over a climb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from contracts.clock import SystemClock
from loop.command import as_json, interruption, task_argument, told
from loop.project import Project
from loop.terminal import print_json, print_table

if TYPE_CHECKING:
    from serving.comparison import Comparison


@click.command()
@task_argument
@click.option("--version", type=int, help="Only moves of this version.")
@as_json
@click.pass_obj
@told
def history(project: Project, task: str | None, version: int | None, json_: bool) -> None:
    """Every move with the checks it rested on."""
    from serving.rollout import Rollouts

    events = Rollouts(project.open_state(), project.task(task)).history()
    events = [event for event in events if version in (None, event.version)]
    if json_:
        print_json({"moves": [event.to_dict() for event in events]})
        return
    for event in events:
        move = f"{event.generation}: version {event.version}, {event.from_stage} -> {event.to_stage}"
        title = f"{move}, {event.at:%F %H:%M}, {event.actor}: {event.reason}"
        rows = [(each["name"], each["verdict"], each["reason"]) for each in event.evidence.get("checks", ())]
        if rows:
            print_table(title, ("check", "verdict", "why"), rows)
        else:  # a person's move, or the drill's
            click.echo(title)


@click.command()
@task_argument
@as_json
@click.pass_obj
@told
def differences(project: Project, task: str | None, json_: bool) -> None:
    """Where champion and challenger differ most on the same vectors, in the present step.

    Exit status 2 when nothing climbs or nothing was scored by both.
    """
    from loop.releases import compared

    found = compared(project, project.task(task), SystemClock().now())
    if json_:
        print_json({"pairs": found.pairs, "psi": found.psi, "worst": found.worst, "largest": found.largest})
    else:
        _print_differences(found)


def _print_differences(found: Comparison) -> None:
    title = f"Mean difference {found.mean_difference:.4f} over {found.pairs:,} pairs, PSI {found.psi:.3f}"
    rows = [(each["key"], each["value"], each["pairs"], each["mean_difference"]) for each in found.worst]
    print_table(title, ("field", "value", "pairs", "mean difference"), rows)
    for each in found.largest:
        values: Mapping[str, Any] = each["inputs"] | each["features"]
        title = f"{each['request_id']}: champion {each['champion']:.4f}, challenger {each['challenger']:.4f}"
        print_table(title, ("field", "value"), list(values.items()))


@click.command()
@click.pass_obj
@told
def watch(project: Project) -> None:
    """Look every second at every deployed task and roll back a challenger that breaks; until interrupted.

    `skewless serve` does this itself. For serving that was deployed by other means.
    """
    from loop.releases import guarded

    names = [project.task(name).name for name in project.task_names()]  # one may be deployed for the first time later
    with guarded(project, names, click.echo):
        interrupted = interruption()
        click.echo(f"watching {', '.join(names)}", err=True)
        interrupted.wait()
