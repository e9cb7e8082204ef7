"""Drift drills: hold one on the version that is to go live, and put its outcome on record."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pyarrow as pa
from sqlalchemy import Engine, insert

from contracts.bundle import Bundle, load_bundle
from contracts.clock import SystemClock
from contracts.errors import SkewlessError
from contracts.predictions import read_predictions
from contracts.spine import labels_known
from contracts.state import drills
from contracts.task import Task
from loop.command import as_json, as_of, task_argument, told
from loop.project import Project
from loop.terminal import Steps, print_facts, print_json, print_table
from serving.rollout import Rollouts

if TYPE_CHECKING:
    import pandas as pd

    from monitoring.drift_drill import DrillReport


class NothingToRehearse(SkewlessError, LookupError):
    """A task without a version has nothing whose drift could be seen."""


def rehearse_drift(
    project: Project,
    task: Task,
    engine: Engine,
    *,
    now: datetime,
    quick: bool = False,
    say: Callable[[str], None],
) -> DrillReport:
    """Hold a drift drill on the climbing version, or on the champion where none climbs; a row with it is on record.

    Args:
        project: where everything is.
        task: the policy.
        engine: the shared state.
        now: the instant; rows and labels known by then are copied.
        quick: the largest sizes only, without the domain classifier: some seconds.
        say: told what came of it.

    Raises:
        NothingToRehearse: the task was never deployed.
        BundleError: the version's bundle is missing or altered.
    """
    from contracts.scorer import Scorer
    from monitoring.drift_drill import DrillReport, drift_drill

    serving = Rollouts(engine, task).current()
    if serving is None:
        raise NothingToRehearse(
            f"Task {task.name!r} was never deployed.", hint=f"train a version: `skewless retrain {task.name}`."
        )
    version = serving.challenger or serving.champion
    bundle = load_bundle(Path(serving.challenger_bundle or serving.champion_bundle))
    log = None if quick else _labelled_log(project, task, bundle, version, now)
    try:
        report = drift_drill(task, bundle, Scorer(bundle.model_path), log=log, quick=quick)
    except Exception as error:  # whatever breaks in a rehearsal is its finding
        report = DrillReport(
            False, (f"{type(error).__name__}: {error}",), "log" if log is not None else "holdout", quick
        )
    evidence = report.to_dict() | {"version": version, "bundle_hash": bundle.bundle_hash}
    row = {"task": task.name, "kind": "drift", "passed": report.passed, "at": now, "evidence": evidence}
    with engine.begin() as connection:
        connection.execute(insert(drills).values(row))
    say(f"drift drill: {'passed' if report.passed else 'failed'} ({'; '.join(report.reasons)})")
    return report


def _labelled_log(project: Project, task: Task, bundle: Bundle, version: int, now: datetime) -> pd.DataFrame | None:
    from monitoring.chunks import cut
    from monitoring.drift_drill import rows_of_log
    from monitoring.log_frame import of_version
    from monitoring.outcomes import join_labels

    everything = ("champion", "canary", "shadow")
    table = read_predictions(project.locations.predictions(task.name), end=now, variants=everything)
    table = of_version(table, version)
    if not table.num_rows or any(f"feature.{each.name}" not in table.column_names for each in bundle.metadata.features):
        return None
    chunks = cut(table["event_timestamp"].cast(pa.int64()).to_numpy(), task.monitoring, as_of=now)
    labels = labels_known(task, start=chunks[0].start, end=now, known_at=now)
    label = join_labels(table, labels, as_of=now, binary=task.kind == "binary").label
    numbers = np.repeat([chunk.number for chunk in chunks], [chunk.size for chunk in chunks])
    return rows_of_log(table, label, numbers, bundle.metadata.features)


@click.group()
def drill() -> None:
    """Rehearsals: what must be on record before a version goes live."""


@drill.command()
@task_argument
@as_of
@click.option("--quick", is_flag=True, help="The largest size of each kind only, without the domain classifier.")
@as_json
@click.pass_obj
@told
def drift(project: Project, task: str | None, as_of: datetime | None, quick: bool, json_: bool) -> None:
    """Put known drift into copies of real rows and see which detectors see it, how late, and what they cry for nothing.

    Exit status: 0 passed, 1 failed, 2 it could not be held.
    """
    steps, chosen = Steps(), project.task(task)
    with steps.step(f"drift drill of {chosen.name}"):
        now = as_of or SystemClock().now()
        report = rehearse_drift(project, chosen, project.open_state(), now=now, quick=quick, say=steps.say).to_dict()
    if json_:
        print_json({"drill": report})
    else:
        _show(report)
    if not report["passed"]:
        sys.exit(1)


def _show(report: dict[str, Any]) -> None:
    rows = [
        (
            trial["kind"],
            f"{trial['size']:g} {trial['unit']}",
            ", ".join(trial["changed"][:3]) or "rows or outcomes",
            ", ".join(f"{name} in window {at}" for name, at in trial["seen_by"].items()) or "nobody",
        )
        for trial in report["trials"]
    ]
    print_table("Drift put in", ("kind", "size", "changed", "seen by"), rows)
    alarms = {f"false alarms, {name}": f"{share:.1%}" for name, share in report["false_alarms"].items()}
    facts = {"verdict": "passed" if report["passed"] else "failed", "why": "; ".join(report["reasons"])}
    windows = f"{report['quiet']} undrifted, {report['drifted']} after each onset, {report['rows']} rows at least"
    facts |= {"rows from": report["source"], "windows": windows, "not applicable": ", ".join(report["not_applicable"])}
    print_facts("Drill", facts | alarms)
