"""Commands of the person on duty: releases and alerts."""

from __future__ import annotations

import getpass
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import click

from contracts.clock import SystemClock
from loop.command import INSTANT, WORDS, as_json, task_argument, told
from loop.project import Project
from loop.rehearse import drill
from loop.rollout_views import differences, history, watch
from loop.terminal import Steps, print_json, print_table

if TYPE_CHECKING:
    from serving.rollout import Move

at = click.option("--at", type=INSTANT, help="The instant to write down; default: now. For data from another time.")


@click.group()
def rollout() -> None:
    """Releases: shadow, canary, champion, and back. No command skips a step."""


@rollout.command()
@task_argument
@as_json
@click.pass_obj
@told
def status(project: Project, task: str | None, json_: bool) -> None:
    """What serves, what climbs, and how it came to be."""
    from serving.rollout import Rollouts

    events = Rollouts(project.open_state(), project.task(task)).history()
    if json_:
        print_json({"moves": [event.to_dict() for event in events]})
        return
    rows = [
        (e.generation, f"{e.at:%F %H:%M}", e.version, f"{e.from_stage} -> {e.to_stage}", e.share, e.actor, e.reason)
        for e in events
    ]
    print_table("Releases", ("generation", "at", "version", "move", "share", "by", "why"), rows)


@rollout.command()
@task_argument
@at
@as_json
@click.pass_obj
@told
def advance(project: Project, task: str | None, at: datetime | None, json_: bool) -> None:
    """Judge the climbing version on the evidence of its stage and make the move that follows."""
    from loop.releases import advance as advance_release
    from loop.releases import open_rollouts

    rollouts = open_rollouts(project.open_state(), project.task(task), project.locations)
    now = at or SystemClock().now()
    move = advance_release(rollouts, project.locations, now=now)
    if json_:
        print_json(move.to_dict())
        return
    rows = [(check.name, check.verdict, check.reason) for check in move.checks]
    print_table(f"{move.from_stage} -> {move.to_stage}: {move.reason}", ("check", "verdict", "why"), rows)


@rollout.command()
@click.argument("version", metavar="TASK@VERSION")
@at
@click.pass_obj
@told
def submit(project: Project, version: str, at: datetime | None) -> None:
    """Let a version that passed its gates begin its climb in shadow: one of `train`, or one that was rolled back.

    \b
    Example:
      skewless rollout submit late_arrival@3
    """
    from contracts.registry import open_registry
    from loop.retrain import submit as submit_version

    task = project.task(version.partition("@")[0])
    found = open_registry(project.locations).resolve(version)
    now = at or SystemClock().now()
    move = submit_version(project, task, project.open_state(), found.version, found.bundle, now=now, say=Steps().say)
    _told_move(move)


def _told_move(move: Move) -> None:
    click.echo(f"version {move.version}: {move.from_stage} -> {move.to_stage}")
    if move.follow_error:
        click.echo(f"the registry's aliases are behind: {move.follow_error}", err=True)
        sys.exit(1)


def _move(name: str, help_: str) -> click.Command:
    @click.command(name, help=help_)
    @task_argument
    @click.option("--why", type=WORDS, required=True, help="Goes on record.")
    @click.option(
        "--generation",
        type=int,
        help="The generation you decided on (`status` shows it): refused if somebody has moved since. "
        "Without it a second press rolls back a second version.",
    )
    @at
    @click.pass_obj
    @told
    def command(project: Project, task: str | None, why: str, generation: int | None, at: datetime | None) -> None:
        from loop.releases import open_rollouts

        rollouts = open_rollouts(project.open_state(), project.task(task), project.locations)
        _told_move(getattr(rollouts, name)(why, getpass.getuser(), at or SystemClock().now(), expected=generation))

    return command


rollout.add_command(
    _move("rollback", "Drop the challenger; with none climbing, give traffic back to the champion before.")
)
rollout.add_command(_move("pause", "Take the challenger off all traffic and wait for a person."))
rollout.add_command(_move("approve", "Let a paused challenger go on at the step it was paused at."))

for command in (history, differences, watch, drill):
    rollout.add_command(command)


@click.group()
def alerts() -> None:
    """What a person must see; an unacknowledged alert blocks promotion."""


@alerts.command("list")
@task_argument
@click.option("--all", "all_", is_flag=True, help="Resolved ones too.")
@as_json
@click.pass_obj
@told
def list_(project: Project, task: str | None, all_: bool, json_: bool) -> None:
    """Open alerts, newest last."""
    from monitoring.alerts import list_alerts

    found = list_alerts(project.open_state(), task and project.task(task).name, open_only=not all_)
    if json_:
        print_json({"alerts": found})
        return
    rows = [(a["id"], a["task"], a["kind"], a["opened_at"], a["message"], a["note"]) for a in found]
    print_table("Alerts", ("id", "task", "kind", "opened", "what", "note"), rows)


@alerts.command()
@click.argument("number", type=int)
@click.option("--note", type=WORDS, required=True, help="Why it is over; goes on record.")
@click.pass_obj
@told
def resolve(project: Project, number: int, note: str) -> None:
    """Close an alert whose cause is gone; monitoring does so by itself once later chunks no longer show it."""
    from monitoring.alerts import resolve as resolve_alert

    resolve_alert(project.open_state(), number, now=SystemClock().now(), note=note, by=getpass.getuser())
    click.echo(f"alert {number} resolved")


@alerts.command()
@task_argument
@click.option("--done", type=int, help="The review that was held.")
@click.option("--note", default="", help="What it found; goes on record.")
@as_json
@click.pass_obj
@told
def reviews(project: Project, task: str | None, done: int | None, note: str, json_: bool) -> None:
    """Open reviews, the one due first at the top; or write down that one was held."""
    from monitoring.alerts import finish_review, list_reviews

    engine = project.open_state()
    if done is not None:
        finish_review(engine, done, note=note, now=SystemClock().now())
        click.echo(f"review {done} done")
        return
    found = list_reviews(engine, task and project.task(task).name)
    if json_:
        print_json({"reviews": found})
        return
    rows = [(r["id"], r["task"], r["due_at"], r["alert"], r["message"]) for r in found]
    print_table("Reviews", ("id", "task", "due", "alert", "what"), rows)


@alerts.command()
@click.argument("number", type=int)
@click.option("--note", type=WORDS, required=True, help="What was found; goes on record.")
@click.pass_obj
@told
def acknowledge(project: Project, number: int, note: str) -> None:
    """Take note of an alert, which unblocks promotion."""
    from monitoring.alerts import acknowledge as acknowledge_alert

    acknowledge_alert(project.open_state(), number, note=note, now=SystemClock().now(), by=getpass.getuser())
    click.echo(f"alert {number} acknowledged")
