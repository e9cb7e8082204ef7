"""The console composed: monitoring's page, with releases from serving's state and cards from training's records."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.types import ASGIApp

from contracts.bundle import load_bundle
from contracts.clock import Clock, SystemClock
from contracts.registry import ModelVersion, Registry, open_registry
from contracts.task import Task
from loop.project import Project
from monitoring.console import console
from monitoring.console_state import Elsewhere, Move
from serving.rollout import Rollouts
from serving.rollout_state import RolloutEvent

LOCAL = ("127.0.0.1", "localhost", "::1")
"""What this machine is called by itself."""


def build_console(
    project: Project,
    clock: Clock,
    *,
    hosts: Sequence[str] | None = LOCAL,
    mlflow: str | None = None,
    secret: str | None = None,
) -> ASGIApp:
    """The console of a project as an ASGI application.

    Args:
        project: whose tasks and state it shows.
        clock: says when an alert was acknowledged.
        hosts: names, without port, under which it may be asked for; None: any.
        mlflow: address of an MLflow server on the project's tracking store, to link runs to.
        secret: the forms' token, where several processes answer.
    """
    engine = project.open_state()
    registry = _once(lambda: open_registry(project.locations))

    def tasks() -> list[Task]:
        return [project.task(name) for name in project.task_names()]

    def moves(task: Task) -> list[Move]:
        return [_move(event) for event in Rollouts(engine, task).history()]

    def versions(task: Task) -> list[ModelVersion]:
        return registry().versions(task.name)

    def card(task: Task, version: int) -> str | None:
        found = next((each for each in versions(task) if each.version == version), None)
        return None if found is None else _card(project, found)

    def run(version: ModelVersion) -> str:
        return f"{(mlflow or '').rstrip('/')}/#/runs/{version.run_id}"

    where = Elsewhere(moves, versions, card)
    return console(
        project.root.name, engine, tasks, where, clock=clock, hosts=hosts, runs=run if mlflow else None, secret=secret
    )


def mounted(project: Path, data: Path) -> ASGIApp:
    """The console as serving mounts it, behind the administration's token; every replica takes every other's forms."""
    return build_console(Project(project), SystemClock(), hosts=None, secret=_shared_secret(data))


def _shared_secret(data: Path) -> str:
    """Made by whoever comes first; readable by nobody else."""
    path = data / "console.secret"
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=data) as made:  # which only its owner may read
            made.write(secrets.token_urlsafe(32))
            made.flush()
            with contextlib.suppress(FileExistsError):
                os.link(made.name, path)
    return path.read_text()


def _once(make: Callable[[], Registry]) -> Callable[[], Registry]:
    """Opens on the first question, and again after a failure: the page must not wait for a store that is away."""
    made: list[Registry] = []

    def get() -> Registry:
        if not made:
            made.append(make())
        return made[0]

    return get


def _move(event: RolloutEvent) -> Move:
    return Move(
        at=event.at,
        version=event.version,
        from_stage=event.from_stage,
        to_stage=event.to_stage,
        share=event.share,
        actor=event.actor,
        reason=event.reason,
        checks=event.evidence.get("checks", ()),
    )


def _card(project: Project, version: ModelVersion) -> str:
    """The version's card; drawn again where it is gone."""
    from training.records import card_path, write_card
    from training.tracking import read_evaluation

    path: Path = card_path(version.bundle)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    evaluation = read_evaluation(version.run_id, project.locations)
    return write_card(load_bundle(version.bundle), evaluation, version=version.version, status=version.status)
