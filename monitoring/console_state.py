"""What the console shows of a task, read from the stored state; figures are taken as monitoring left them.

Rollout's history and the versions belong to other stages; whoever composes them hands them in as `Elsewhere`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, select

from contracts.registry import ModelVersion
from contracts.state import deployments, drills, retrain_requests
from contracts.task import LOWER_IS_BETTER, Task
from monitoring.alerts import list_alerts, list_reviews
from monitoring.decision_record import read_decisions
from monitoring.results import last_run, read_figures
from monitoring.skew_record import read_audits

CHUNKS = 30
"""The latest so many are shown."""
EVENTS = 12
"""Decisions, moves and retrainings shown, in all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """One move of a release."""

    at: datetime
    version: int
    from_stage: str
    to_stage: str
    share: float
    actor: str
    reason: str
    checks: Sequence[dict[str, Any]] = ()
    """Each with `name`, `verdict` and `reason`."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What other stages keep."""

    moves: Callable[[Task], Sequence[Move]]
    """A task's releases, oldest first."""
    versions: Callable[[Task], Sequence[ModelVersion]]
    """A task's versions, oldest first."""
    card: Callable[[Task, int], str | None]
    """A version's model card, a whole HTML page; None where there is none."""


@dataclass(frozen=True, slots=True)
class Served:
    """What answers now."""

    champion: int
    """0 is the naive baseline."""
    challenger: int | None
    stage: str
    share: float
    since: datetime


@dataclass(frozen=True, slots=True)
class Point:
    """Performance of one version in one chunk, and what its decisions cost."""

    start: datetime
    version: int
    estimated: float | None = None
    low: float | None = None
    high: float | None = None
    realized: float | None = None
    cost: float | None = None
    """Of a labelled case on average."""
    cost_low: float | None = None
    cost_high: float | None = None
    settled: bool = False
    maturity: float | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """Drift of one feature, or as one detector of all together sees it, in one chunk."""

    start: datetime
    value: float | None
    threshold: float | None
    drifted: bool


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was decided or done."""

    at: datetime
    source: str
    """monitoring | release | retraining"""
    title: str
    reasons: tuple[str, ...]
    next_step: str = ""
    checks: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class TaskState:
    """All the page says of one task."""

    task: Task
    served: Served | None
    alerts: list[dict[str, Any]]
    """Not resolved, oldest first."""
    reviews: list[dict[str, Any]]
    """Not held yet, the one due first at the top."""
    report: dict[str, Any] | None
    """Of the latest monitoring run, as `monitoring.results.last_run` gives it."""
    points: list[Point]
    drift: dict[str, list[Cell]]
    """By feature, the most drifted first; each with its chunks, oldest first."""
    together: dict[str, list[Cell]]
    """Likewise by detector of all features together."""
    skew: dict[str, Any] | None
    """The latest audit, of its own or of a monitoring run: `at`, `checked`, `mismatches`, `rows`."""
    drill: tuple[bool, datetime] | None
    decision: dict[str, Any] | None
    """The latest, as `monitoring.decision_record.read_decisions` gives it."""
    events: list[Event]
    versions: Sequence[ModelVersion]
    failed: str = ""
    """Why the versions are not known."""

    @property
    def waiting(self) -> list[dict[str, Any]]:
        """Alerts that nobody has acknowledged: they block promotion."""
        return [alert for alert in self.alerts if alert["acknowledged_at"] is None]

    @property
    def latest(self) -> tuple[str, float, int] | None:
        """The last figure that counts, and its version: realized where labels had their time, else estimated."""
        for point in reversed(self.points):
            if point.realized is not None and point.settled:
                return "realized", point.realized, point.version
        for point in reversed(self.points):
            if point.estimated is not None:
                return "estimated", point.estimated, point.version
        return None

    @property
    def watched(self) -> bool:
        """Whether the latest monitoring run looked at what serves now; what it decided is of another version if not."""
        return self.served is not None and self.report is not None and self.report["version"] == self.served.champion

    def beyond_floor(self, value: float) -> bool:
        """Whether performance is on the wrong side of the task's floor."""
        floor = self.task.monitoring.performance_floor
        return value > floor if self.task.success.metric in LOWER_IS_BETTER else value < floor


def read_task(engine: Engine, task: Task, elsewhere: Elsewhere) -> TaskState:
    """Everything known of a task. Never fails for a task that has not been trained, served or watched yet."""
    moves, decisions = list(elsewhere.moves(task)), read_decisions(engine, task.name, most=EVENTS)
    report = last_run(engine, task.name)
    figures = read_figures(engine, task.name)
    starts = sorted({row["chunk_start"] for row in figures})[-CHUNKS:]
    shown = [row for row in figures if starts and row["chunk_start"] >= starts[0]]
    versions, failed = _versions(elsewhere, task)
    return TaskState(
        task=task,
        served=_served(engine, task.name),
        alerts=list_alerts(engine, task.name),
        reviews=list_reviews(engine, task.name),
        report=report,
        points=_points(shown, task.success.metric),
        drift=_drift(shown, report, "drift"),
        together=_drift(shown, report, "together"),
        skew=_skew(engine, task.name, report),
        drill=_drill(engine, task.name),
        decision=decisions[0] if decisions else None,
        events=_events(engine, task.name, moves, decisions),
        versions=versions,
        failed=failed,
    )


def _served(engine: Engine, task: str) -> Served | None:
    of = deployments.c
    query = select(of.champion, of.challenger, of.stage, of.share, of.since).where(of.task == task)
    with engine.connect() as connection:
        row = connection.execute(query).one_or_none()
    return None if row is None else Served(*row)


def _versions(elsewhere: Elsewhere, task: Task) -> tuple[Sequence[ModelVersion], str]:
    try:
        return elsewhere.versions(task), ""
    except (RuntimeError, OSError, ValueError, LookupError) as error:  # a registry that is away hides nothing else
        return (), str(error)


def _points(figures: list[dict[str, Any]], metric: str) -> list[Point]:
    found: dict[tuple[datetime, int], dict[str, Any]] = {}
    for row in figures:
        kind, told = row["kind"], row["kind"] == "cost" or row["name"] == metric
        if not told or row["value"] is None or kind not in ("estimated", "realized", "cost"):
            continue
        point = found.setdefault((row["chunk_start"], row["version"]), {})
        if kind == "estimated":
            point |= {"estimated": row["value"], "low": row["low"], "high": row["high"]}
            continue
        point |= {"settled": bool(row["settled"]), "maturity": row["maturity"]}
        if kind == "cost":
            point |= {"cost": row["value"], "cost_low": row["low"], "cost_high": row["high"]}
        else:
            point |= {"realized": row["value"]}
    return [Point(start, version, **values) for (start, version), values in sorted(found.items())]


def _drift(figures: list[dict[str, Any]], report: dict[str, Any] | None, kind: str) -> dict[str, list[Cell]]:
    """Of the version that was watched last: another one's inputs were held against another reference."""
    if report is None:
        return {}
    found: dict[str, list[Cell]] = {}
    for row in figures:
        if row["kind"] == kind and row["version"] == report["version"]:
            cell = Cell(row["chunk_start"], row["value"], row["threshold"], row["alert"])
            found.setdefault(row["name"], []).append(cell)

    def rank(name: str) -> tuple[int, float]:
        return sum(cell.drifted for cell in found[name]), max(excess(cell) or 0.0 for cell in found[name])

    return {name: sorted(found[name], key=lambda cell: cell.start) for name in sorted(found, key=rank, reverse=True)}


def excess(cell: Cell) -> float | None:
    """Drift in multiples of what is usual; from 1 on the feature has drifted. None where it was not measured."""
    if cell.value is None:
        return None
    if not cell.threshold:
        return 2.0 if cell.drifted else 0.0
    return cell.value / cell.threshold


def _skew(engine: Engine, task: str, report: dict[str, Any] | None) -> dict[str, Any] | None:
    found = [
        {"at": audit["at"], "checked": audit["checked"], "mismatches": audit["mismatches"], "rows": audit["rows"]}
        for audit in read_audits(engine, task)[-1:]
    ]
    if report is not None and report["skew"]:
        at = datetime.fromisoformat(report["as_of"])
        found.append({"at": at, **{name: report["skew"][name] for name in ("checked", "mismatches", "rows")}})
    return max(found, key=lambda each: each["at"], default=None)


def _drill(engine: Engine, task: str) -> tuple[bool, datetime] | None:
    of = drills.c
    query = select(of.passed, of.at).where(of.task == task, of.kind == "rollback").order_by(of.id.desc()).limit(1)
    with engine.connect() as connection:
        row = connection.execute(query).one_or_none()
    return None if row is None else (row.passed, row.at)


_DECIDED = {
    "retrain": "Asked for a retraining",
    "alert_and_review": "Raised an alert, and a review",
    "alert": "Raised an alert",
    "none": "Nothing to do",
}


def _events(engine: Engine, task: str, moves: Sequence[Move], decisions: Sequence[dict[str, Any]]) -> list[Event]:
    found = [
        Event(
            each["at"],
            "monitoring",
            _DECIDED.get(each["action"], each["action"].replace("_", " ")),
            tuple(each["reasons"]),
            "" if each["action"] == "none" else each["next_step"],
        )
        for each in decisions
    ]
    for move in moves[-EVENTS:]:
        found.append(Event(move.at, "release", _moved(move), (f"{move.reason} (by {move.actor})",), "", move.checks))
    of = retrain_requests.c
    query = select(retrain_requests).where(of.task == task).order_by(of.id.desc()).limit(EVENTS)
    with engine.connect() as connection:
        for row in connection.execute(query).mappings():
            if row["finished_at"] is None:
                step = f"run `skewless retrain {task}`"
                found.append(Event(row["requested_at"], "retraining", "Waits to be run", (row["reason"],), step))
            else:
                title = f"Version {row['version']} was {row['outcome']}" if row["version"] else str(row["outcome"])
                found.append(Event(row["finished_at"], "retraining", title, (f"reason: {row['reason']}",)))
    return sorted(found, key=lambda event: event.at, reverse=True)[:EVENTS]


def _moved(move: Move) -> str:
    if move.to_stage == "rolled_back":
        return f"Version {move.version} was rolled back"
    if move.to_stage == "paused":
        return f"Version {move.version} is paused"
    if move.to_stage == "champion":
        return f"Version {move.version} became champion"
    share = f", {move.share:.0%} of the keys" if move.to_stage == "canary" else ""
    return f"Version {move.version} entered {move.to_stage}{share}"
