"""What of a task's past may go: training frames that no deployed, earlier or recent version needs.

Bundles and registered versions always stay: they are small, and a rollback may need any of them. A frame that is gone
is made again from the sources by `skewless reproduce`. How long answers stay is the task's to say: `serving.log_keep`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from contracts.locations import Locations
from contracts.registry import ModelVersion
from contracts.settings import Retention, retention_rules
from contracts.task import Task
from loop.command import as_json, task_argument, told
from loop.project import Project
from loop.terminal import print_facts, print_json
from serving.rollout_state import RolloutEvent


@dataclass(frozen=True, slots=True)
class Retained:
    """What was removed, or would be."""

    task: str
    frames: tuple[str, ...]
    """Content hashes."""
    bytes: int
    kept_for: tuple[int, ...]
    """Versions whose frames stay."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "task": self.task,
            "frames": list(self.frames),
            "bytes": self.bytes,
            "kept_for": list(self.kept_for),
        }


@click.command()
@task_argument
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@as_json
@click.pass_obj
@told
def retention(project: Project, task: str | None, dry_run: bool, json_: bool) -> None:
    """Remove training frames that nothing needs any more, by `[retention]` in skewless.toml.

    What a deployed version needs, one that climbs, or one that was champion, always stays. Without rules nothing goes.
    """
    chosen = project.task(task)
    found = tidy(project, chosen, dry_run=dry_run).to_dict()
    if json_:
        print_json(found)
        return
    facts = {"frames": len(found["frames"]), "bytes": found["bytes"]}
    facts |= {"kept for versions": ", ".join(map(str, found["kept_for"])) or "all"}
    print_facts(f"{chosen.name}: {'would be removed' if dry_run else 'removed'}", facts)


def tidy(project: Project, task: Task, *, dry_run: bool = False) -> Retained:
    """Remove what may go by the project's settings and the releases so far.

    Raises:
        SettingsError: the settings cannot be used.
        TrainingInProgress: the task is being trained.
    """
    from contracts.registry import open_registry
    from serving.rollout import Rollouts

    rules = retention_rules(project.root)
    versions = open_registry(project.locations).versions(task.name)
    needed = needed_versions(versions, Rollouts(project.open_state(), task).history(), rules)
    return retain(task, project.locations, rules, versions, needed, dry_run=dry_run)


def needed_versions(
    versions: Sequence[ModelVersion], history: Iterable[RolloutEvent], rules: Retention
) -> frozenset[int]:
    """Versions that are among the newest, deployed, climbing, or were champion: a rollback may give traffic to any."""
    newest = sorted(each.version for each in versions)[-rules.frames :] if rules.frames else []
    served = {event.champion for event in history}
    climbing = [event.challenger for event in history][-1:]
    return frozenset({*newest, *served, *(each for each in climbing if each is not None)} - {0})


def retain(
    task: Task,
    locations: Locations,
    rules: Retention,
    versions: Sequence[ModelVersion],
    needed: frozenset[int],
    *,
    dry_run: bool = False,
) -> Retained:
    """Remove by the rules what the versions in `needed` do not need. Ended half-way, the next time removes the rest.

    Raises:
        TrainingInProgress: the task is being trained: the frame of that training belongs to no version yet.
    """
    from training.lock import one_at_a_time

    with one_at_a_time(task, locations):
        frames = _frames(task, locations, versions, needed) if rules.frames else []
        freed = sum(file.stat().st_size for folder in frames for file in folder.rglob("*") if file.is_file())
        if not dry_run:
            for folder in frames:
                shutil.rmtree(folder)
    return Retained(task.name, tuple(folder.name for folder in frames), freed, tuple(sorted(needed)))


def _frames(task: Task, locations: Locations, versions: Sequence[ModelVersion], needed: frozenset[int]) -> list[Path]:
    wanted = {each.dataset_hash for each in versions if each.version in needed}
    folders = locations.snapshots(task.name).glob("*")
    return sorted(folder for folder in folders if folder.is_dir() and folder.name not in wanted)
