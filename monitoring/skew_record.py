"""Skew audits on record: what was audited, with what result; a mismatch opens an alert, which blocks promotion."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Engine, Float, Integer, String, Table, insert, select

from contracts.clock import as_utc
from contracts.state import Instant, create_missing, metadata
from monitoring.alerts import open_alert
from monitoring.findings import skew_findings
from monitoring.skew_report import SkewReport

skew_audits = Table(
    "skew_audits",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task", String, nullable=False, index=True),
    Column("at", Instant, nullable=False),
    Column("since", Instant),  # bounds that were asked for; null: the log's own
    Column("until", Instant),
    Column("share", Float, nullable=False),  # of the entity keys
    Column("rows", BigInteger, nullable=False),
    Column("checked", BigInteger, nullable=False),
    Column("mismatches", BigInteger, nullable=False),
    Column("report", JSON, nullable=False),  # SkewReport.to_dict()
)
"""Every audit that was asked for by itself; those of a monitoring run are in its report, those of a rollout in its
evidence."""


def record_audit(
    engine: Engine,
    task: str,
    report: SkewReport,
    *,
    now: datetime,
    since: datetime | None = None,
    until: datetime | None = None,
) -> int | None:
    """Write an audit down and open an alert if it found a mismatch, in one transaction.

    Returns:
        The alert's number; None without a mismatch, or when such an alert is open already.
    """
    now = as_utc(now)
    create_missing(engine)
    row = {
        "task": task,
        "at": now,
        "since": since,
        "until": until,
        "share": report.share,
        "rows": report.rows,
        "checked": report.checked,
        "mismatches": report.mismatches,
        "report": report.to_dict(),
    }
    with engine.begin() as connection:
        connection.execute(insert(skew_audits).values(row))
        for each in skew_findings(report):
            return open_alert(
                connection, task=task, kind=each.kind, message=each.message, evidence=each.evidence, now=now
            )
    return None


def last_audit(engine: Engine, task: str) -> dict[str, Any] | None:
    """The latest audit on record in short: `id`, `at`, `checked`, `mismatches`; None where there is none."""
    create_missing(engine)
    columns = skew_audits.c
    query = select(columns.id, columns.at, columns.checked, columns.mismatches).where(columns.task == task)
    with engine.connect() as connection:
        found = connection.execute(query.order_by(columns.id.desc()).limit(1)).mappings().one_or_none()
    return None if found is None else dict(found)


def read_audits(engine: Engine, task: str) -> list[dict[str, Any]]:
    """Audits of a task, oldest first."""
    create_missing(engine)
    query = select(skew_audits).where(skew_audits.c.task == task).order_by(skew_audits.c.id)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]
