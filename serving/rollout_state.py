"""Rollout state in SQL: what a move is decided on, and the one way to change the deployment and its history.

Every change is a compare-and-swap on the deployment's generation and adds one history row in the same transaction. The
history row carries the whole state after the change, so the history alone reproduces the deployment.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import JSON, Column, Connection, Float, Integer, String, Table, UniqueConstraint, insert, select, update
from sqlalchemy.exc import IntegrityError

from contracts.errors import SkewlessError
from contracts.state import Instant, alerts, deployments, drills, metadata

Verdict = Literal["pass", "fail", "inconclusive"]

rollout_events = Table(
    "rollout_events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task", String, nullable=False, index=True),
    Column("generation", Integer, nullable=False),
    Column("at", Instant, nullable=False),
    Column("from_stage", String, nullable=False),  # registered | shadow | canary | paused | champion
    Column("to_stage", String, nullable=False),  # shadow | canary | champion | paused | rolled_back
    Column("version", Integer, nullable=False),  # the version that moved
    Column("share", Float, nullable=False),
    Column("champion", Integer, nullable=False),
    Column("champion_bundle", String, nullable=False),
    Column("challenger", Integer),
    Column("challenger_bundle", String),
    Column("verdict", String),  # pass | fail | inconclusive; null where a person or a drill moved
    Column("actor", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("evidence", JSON, nullable=False),
    UniqueConstraint("task", "generation"),
)
"""Every move of every version, never changed afterwards."""


class StaleMove(SkewlessError, RuntimeError):
    """Somebody else moved first; the move that was asked for has not happened."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What serves a task now: one row of `contracts.state.deployments`."""

    task: str
    generation: int
    champion: int
    """0 is the naive baseline."""
    champion_bundle: str
    challenger: int | None
    challenger_bundle: str | None
    stage: str
    """idle | shadow | canary | paused"""
    share: float
    since: datetime


@dataclass(frozen=True, slots=True)
class RolloutEvent:
    """One move, with the state it led to."""

    task: str
    generation: int
    at: datetime
    from_stage: str
    to_stage: str
    version: int
    share: float
    champion: int
    champion_bundle: str
    challenger: int | None
    challenger_bundle: str | None
    verdict: Verdict | None
    actor: str
    reason: str
    evidence: dict[str, Any]

    @property
    def deployment(self) -> Deployment:
        """The deployment as this move left it."""
        return Deployment(
            task=self.task,
            generation=self.generation,
            champion=self.champion,
            champion_bundle=self.champion_bundle,
            challenger=self.challenger,
            challenger_bundle=self.challenger_bundle,
            stage="idle" if self.to_stage in ("champion", "rolled_back") else self.to_stage,
            share=self.share,
            since=self.at,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the instant in ISO 8601."""
        return asdict(self) | {"at": self.at.isoformat()}


def read_deployment(connection: Connection, task: str) -> Deployment | None:
    """What serves the task, or None before its first version."""
    row = connection.execute(select(deployments).where(deployments.c.task == task)).mappings().first()
    return None if row is None else Deployment(**row)


def read_generation(connection: Connection, task: str) -> int | None:
    """Generation of what serves the task: whether anything has changed, for whoever asks often."""
    generation: int | None = connection.scalar(select(deployments.c.generation).where(deployments.c.task == task))
    return generation


def read_history(connection: Connection, task: str, *, since: int = 0) -> list[RolloutEvent]:
    """Every move of the task from generation `since` on, oldest first."""
    columns = rollout_events.c
    query = select(rollout_events).where(columns.task == task, columns.generation >= since)
    found = connection.execute(query.order_by(columns.generation)).mappings()
    return [RolloutEvent(**{name: value for name, value in row.items() if name != "id"}) for row in found]


def open_alerts(connection: Connection, task: str) -> list[int]:
    """Numbers of the task's alerts that are neither acknowledged nor resolved, oldest first."""
    columns = alerts.c
    query = select(columns.id).where(
        columns.task == task, columns.acknowledged_at.is_(None), columns.resolved_at.is_(None)
    )
    return list(connection.execute(query.order_by(columns.id)).scalars())


def latest_drill(connection: Connection, task: str, kind: str = "rollback") -> tuple[bool | None, datetime | None]:
    """Whether the task's latest drill of a kind passed, and when it was held; two None where none was."""
    columns = drills.c
    query = select(columns.passed, columns.at).where(columns.task == task, columns.kind == kind)
    row = connection.execute(query.order_by(columns.id.desc()).limit(1)).first()
    return (None, None) if row is None else (row.passed, row.at)


def write_move(connection: Connection, before: Deployment | None, event: RolloutEvent) -> None:
    """Put the deployment of `event` in the place of `before`, and the event in the history.

    Raises:
        StaleMove: the deployment is no longer `before`; nothing is written.
    """
    after = asdict(event.deployment)
    if before is None:
        statement: Any = insert(deployments).values(after)
    else:
        statement = (
            update(deployments)
            .where(deployments.c.task == event.task, deployments.c.generation == before.generation)
            .values(after)
        )
    try:
        moved = connection.execute(statement).rowcount
    except IntegrityError:
        moved = 0
    if not moved:
        raise stale(event.task, before.generation if before else 0, None)
    connection.execute(insert(rollout_events).values(asdict(event)))


def stale(task: str, expected: int, found: int | None) -> StaleMove:
    """The error of a move that was decided on an older generation."""
    seen = "it has moved on" if found is None else f"it is at generation {found}"
    return StaleMove(
        f"Task {task!r}: the move was decided on generation {expected}, but {seen}.",
        hint=f"look again (`skewless rollout status {task}`) and decide on what is there now.",
    )
