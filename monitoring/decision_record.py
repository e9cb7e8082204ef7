"""Decisions on record, each with its rule, its reasons and the next step: also the ones to do nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, Engine, String, Table, delete, insert, select

from contracts.clock import as_utc
from contracts.state import Instant, create_missing, metadata
from monitoring.decision import Decision

decisions = Table(
    "decisions",
    metadata,
    Column("task", String, primary_key=True),
    Column("at", Instant, primary_key=True),
    Column("action", String, nullable=False),  # retrain | alert_and_review | alert | none
    Column("rule", String, nullable=False),
    Column("report", JSON, nullable=False),  # Decision.to_dict()
)
"""What was decided when; a decision taken again as of the same instant takes the place of the first."""


def keep_decision(engine: Engine, decision: Decision, now: datetime) -> None:
    """Write a decision down under the instant it was taken at."""
    now = as_utc(now)
    create_missing(engine)
    same = (decisions.c.task == decision.task) & (decisions.c.at == now)
    row = {"task": decision.task, "at": now, "action": decision.action, "rule": decision.rule}
    with engine.begin() as connection:
        connection.execute(delete(decisions).where(same))
        connection.execute(insert(decisions).values(row | {"report": decision.to_dict()}))


def read_decisions(engine: Engine, task: str, *, most: int) -> list[dict[str, Any]]:
    """The latest decisions of a task, newest first: `at`, and what `Decision.to_dict` gives."""
    create_missing(engine)
    columns = decisions.c
    query = select(columns.at, columns.report).where(columns.task == task).order_by(columns.at.desc()).limit(most)
    with engine.connect() as connection:
        return [{"at": row.at, **row.report} for row in connection.execute(query)]
