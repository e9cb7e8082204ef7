"""Where monitoring keeps what it found: a row a run, a row a figure of each chunk. Writing again changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Boolean, Column, Engine, Float, Integer, String, Table, delete, insert, select

from contracts.state import Instant, metadata
from monitoring.report import ChunkReport, Drift, MonitoringReport, Performance

monitoring_runs = Table(
    "monitoring_runs",
    metadata,
    Column("task", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("as_of", Instant, primary_key=True),
    Column("bundle_hash", String, nullable=False),
    Column("report", JSON, nullable=False),  # MonitoringReport.to_dict()
)
"""Every run with its whole report."""

monitoring_figures = Table(
    "monitoring_figures",
    metadata,
    Column("task", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("chunk_start", Instant, primary_key=True),
    Column("kind", String, primary_key=True),  # estimated | realized | drift | score_drift | missing
    Column("name", String, primary_key=True),  # the metric, or the feature
    Column("chunk_end", Instant, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("state", String, nullable=False),  # judged | too small | open
    Column("value", Float),
    Column("low", Float),
    Column("high", Float),
    Column("threshold", Float),
    Column("alert", Boolean, nullable=False),
    Column("maturity", Float),  # realized only: share of rows with a known label
    Column("settled", Boolean),  # realized only: whether labels had the time they usually take
    Column("as_of", Instant, nullable=False),
)
"""The latest figure of each chunk; a later run replaces an earlier one's."""


def write_report(engine: Engine, report: MonitoringReport, *, floor: float, lower_is_better: bool) -> None:
    """Store a run and its figures in one transaction, in place of what was stored for the same run and chunks.

    Args:
        engine: the shared state.
        report: what was found.
        floor: the task's performance floor; performance beyond it is marked as an alert.
        lower_is_better: on which side of the floor that is.
    """
    _ensure(engine)
    run, figures = monitoring_runs.c, monitoring_figures.c
    rows = [row for chunk in report.chunks for row in _figures(report, chunk, floor, lower_is_better)]
    starts = [chunk.start for chunk in report.chunks]
    with engine.begin() as connection:
        same_run = (run.task == report.task) & (run.version == report.version) & (run.as_of == report.as_of)
        connection.execute(delete(monitoring_runs).where(same_run))
        connection.execute(
            insert(monitoring_runs).values(
                task=report.task,
                version=report.version,
                as_of=report.as_of,
                bundle_hash=report.bundle_hash,
                report=report.to_dict(),
            )
        )
        same_version = (figures.task == report.task) & (figures.version == report.version)
        connection.execute(delete(monitoring_figures).where(same_version & figures.chunk_start.in_(starts)))
        if rows:
            connection.execute(insert(monitoring_figures), rows)


def read_figures(
    engine: Engine, task: str, *, version: int | None = None, since: datetime | None = None
) -> list[dict[str, Any]]:
    """Stored figures, oldest chunk first; of all versions when none is named."""
    _ensure(engine)
    columns = monitoring_figures.c
    query = select(monitoring_figures).where(columns.task == task)
    if version is not None:
        query = query.where(columns.version == version)
    if since is not None:
        query = query.where(columns.chunk_start >= since)
    query = query.order_by(columns.chunk_start, columns.version, columns.kind, columns.name)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def last_run(engine: Engine, task: str) -> dict[str, Any] | None:
    """The report of the latest run, as plain JSON; None when there was none."""
    _ensure(engine)
    columns = monitoring_runs.c
    query = select(columns.report).where(columns.task == task).order_by(columns.as_of.desc()).limit(1)
    with engine.connect() as connection:
        found: dict[str, Any] | None = connection.execute(query).scalar_one_or_none()
    return found


def _ensure(engine: Engine) -> None:
    metadata.create_all(engine, tables=[monitoring_runs, monitoring_figures])


def _figures(
    report: MonitoringReport, chunk: ChunkReport, floor: float, lower_is_better: bool
) -> Iterator[dict[str, Any]]:
    blank = dict.fromkeys(("value", "low", "high", "threshold", "maturity", "settled"))
    base = blank | {
        "task": report.task,
        "version": report.version,
        "chunk_start": chunk.start,
        "chunk_end": chunk.end,
        "rows": chunk.rows,
        "state": chunk.state,
        "as_of": report.as_of,
        "alert": False,
    }

    def performance(kind: str, found: Performance) -> dict[str, Any]:
        beyond = (
            found.metric == report.metric
            and found.value is not None
            and (found.value > floor if lower_is_better else found.value < floor)
        )
        values = {"value": found.value, "low": found.low, "high": found.high}
        threshold = floor if found.metric == report.metric else None
        return base | values | {"kind": kind, "name": found.metric, "threshold": threshold, "alert": beyond}

    def drift(kind: str, found: Drift) -> dict[str, Any]:
        values = {"value": found.value, "threshold": found.threshold, "alert": found.drifted}
        return base | values | {"kind": kind, "name": found.column}

    if chunk.estimated is not None:
        yield performance("estimated", chunk.estimated)
    if chunk.realized is not None:
        yield performance("realized", chunk.realized) | {"maturity": chunk.maturity, "settled": chunk.settled}
    if chunk.score_drift is not None:
        yield drift("score_drift", chunk.score_drift)
    for each in chunk.drift:
        yield drift("drift", each)
    for quality in chunk.quality:
        values = {"value": quality.missing, "threshold": quality.missing_reference, "alert": quality.vanished}
        yield base | values | {"kind": "missing", "name": quality.feature}
