"""Where monitoring keeps what it found: a row a run, a row a chunk with its whole report, a row a figure of each chunk.

A chunk is kept under a key of everything its figures depend on: the bundle (whose hash covers the reference) and the
policy. A run that finds a chunk under its own key, with the same rows, takes it as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    String,
    Table,
    delete,
    insert,
    select,
    update,
)

from contracts.state import Instant, create_missing, metadata
from monitoring.report import ChunkReport, Drift, MonitoringReport, Performance

monitoring_runs = Table(
    "monitoring_runs",
    metadata,
    Column("task", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("as_of", Instant, primary_key=True),
    Column("bundle_hash", String, nullable=False),
    Column("run_id", String, nullable=False),  # the training run that made the version
    Column("key", String, nullable=False),  # of the chunks it saw
    Column("summary", JSON, nullable=False),  # MonitoringReport.summary()
)
"""Every run: what it found in all."""

monitoring_chunks = Table(
    "monitoring_chunks",
    metadata,
    Column("task", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("key", String, primary_key=True),
    Column("chunk", BigInteger, primary_key=True),
    Column("chunk_start", Instant, nullable=False),
    Column("chunk_end", Instant, nullable=False),
    Column("state", String, nullable=False),  # judged | too small | open
    Column("content", String, nullable=False),  # hash of the rows
    Column("labels", String, nullable=False),  # hash of what was known of them
    Column("bundle_hash", String, nullable=False),
    Column("run_id", String, nullable=False),
    Column("measured_at", Instant, nullable=False),
    Column("realized_at", Instant, nullable=False),
    Column("report", JSON, nullable=False),  # ChunkReport.to_dict()
)
"""The latest report of each chunk."""

monitoring_figures = Table(
    "monitoring_figures",
    metadata,
    Column("task", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("chunk", BigInteger, primary_key=True),
    Column("kind", String, primary_key=True),
    # estimated | realized | cost | drift | score_drift | together | missing | unseen | repeated | age | slice
    Column("name", String, primary_key=True),  # the metric, the feature, the detector, the view, the group
    Column("chunk_start", Instant, nullable=False, index=True),
    Column("chunk_end", Instant, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("state", String, nullable=False),
    Column("value", Float),
    Column("low", Float),
    Column("high", Float),
    Column("threshold", Float),
    Column("alert", Boolean, nullable=False),
    Column("maturity", Float),  # realized only: share of rows with a known label
    Column("settled", Boolean),  # realized only: whether labels had the time they usually take
    Column("as_of", Instant, nullable=False),
)
"""The latest figures of each chunk, under the latest key; for plots and for questions in SQL."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A chunk's report and what it was made of."""

    report: ChunkReport
    content: str
    labels: str


def read_chunks(engine: Engine, task: str, version: int, key: str) -> dict[int, Kept]:
    """The chunks kept under a key, by their number."""
    create_missing(engine)
    columns = monitoring_chunks.c
    query = select(columns.chunk, columns.report, columns.content, columns.labels)
    query = query.where(columns.task == task, columns.version == version, columns.key == key)
    with engine.connect() as connection:
        return {
            row.chunk: Kept(ChunkReport.from_dict(row.report), row.content, row.labels)
            for row in connection.execute(query)
        }


def write_report(
    engine: Engine,
    report: MonitoringReport,
    *,
    key: str,
    measured: Sequence[Kept],
    realized: Sequence[Kept],
    floor: float,
    lower_is_better: bool,
) -> None:
    """Store a run and the chunks it changed in one transaction, in place of what was stored for the same.

    Chunks that a later cut no longer has are removed.

    Args:
        engine: the shared state.
        report: what was found; `report.chunks` are all there are.
        key: what the chunks depend on.
        measured: chunks that were measured anew.
        realized: chunks of which only labels and state are new.
        floor: the task's performance floor; performance beyond it is marked as an alert.
        lower_is_better: on which side of the floor that is.
    """
    create_missing(engine)
    run = monitoring_runs.c
    with engine.begin() as connection:
        same_run = (run.task == report.task) & (run.version == report.version) & (run.as_of == report.as_of)
        connection.execute(delete(monitoring_runs).where(same_run))
        connection.execute(
            insert(monitoring_runs).values(
                task=report.task,
                version=report.version,
                as_of=report.as_of,
                bundle_hash=report.bundle_hash,
                run_id=report.run_id,
                key=key,
                summary=report.summary(),
            )
        )
        _write_chunks(connection, report, key, measured, realized)
        _write_figures(connection, report, key, [*measured, *realized], floor, lower_is_better)


def read_figures(
    engine: Engine, task: str, *, version: int | None = None, since: datetime | None = None
) -> list[dict[str, Any]]:
    """Stored figures, oldest chunk first; of all versions when none is named."""
    create_missing(engine)
    columns = monitoring_figures.c
    query = select(monitoring_figures).where(columns.task == task)
    if version is not None:
        query = query.where(columns.version == version)
    if since is not None:
        query = query.where(columns.chunk_start >= since)
    with engine.connect() as connection:
        found = [dict(row) for row in connection.execute(query).mappings()]
    # Here and not in SQL: databases do not agree on the order of texts.
    return sorted(found, key=lambda row: (row["chunk_start"], row["version"], row["kind"], row["name"]))


def last_run(engine: Engine, task: str) -> dict[str, Any] | None:
    """The latest run as plain JSON, with the chunks it saw; None when there was none."""
    create_missing(engine)
    run, chunk = monitoring_runs.c, monitoring_chunks.c
    query = select(monitoring_runs).where(run.task == task).order_by(run.as_of.desc(), run.version.desc()).limit(1)
    with engine.connect() as connection:
        found = connection.execute(query).mappings().one_or_none()
        if found is None:
            return None
        chunks = select(chunk.report).where(
            chunk.task == task,
            chunk.version == found["version"],
            chunk.key == found["key"],
            chunk.chunk_start < found["as_of"],
        )
        reports = connection.execute(chunks.order_by(chunk.chunk)).scalars().all()
    return dict(found["summary"]) | {"chunks": list(reports)}


def _write_chunks(
    connection: Connection, report: MonitoringReport, key: str, measured: Sequence[Kept], realized: Sequence[Kept]
) -> None:
    columns = monitoring_chunks.c
    mine = (columns.task == report.task) & (columns.version == report.version) & (columns.key == key)
    past = mine & (columns.chunk_start < report.as_of)  # a run that looks back leaves alone what came after
    there = set(connection.execute(select(columns.chunk).where(past)).scalars())
    gone = there - {chunk.number for chunk in report.chunks}
    again = {each.report.number for each in measured} & there
    for number in sorted(gone | again):
        connection.execute(delete(monitoring_chunks).where(mine, columns.chunk == number))
    rows = [
        {
            "task": report.task,
            "version": report.version,
            "key": key,
            "chunk": each.report.number,
            "chunk_start": each.report.start,
            "chunk_end": each.report.end,
            "bundle_hash": report.bundle_hash,
            "run_id": report.run_id,
            "measured_at": report.as_of,
            **_changing(report, each),
            "content": each.content,
        }
        for each in measured
    ]
    if rows:
        connection.execute(insert(monitoring_chunks), rows)
    for each in realized:
        changed = update(monitoring_chunks).where(mine, columns.chunk == each.report.number)
        connection.execute(changed.values(_changing(report, each)))


def _changing(report: MonitoringReport, each: Kept) -> dict[str, Any]:
    return {
        "state": each.report.state,
        "labels": each.labels,
        "realized_at": report.as_of,
        "report": each.report.to_dict(),
    }


def _write_figures(
    connection: Connection,
    report: MonitoringReport,
    key: str,
    changed: Sequence[Kept],
    floor: float,
    lower_is_better: bool,
) -> None:
    columns, run = monitoring_figures.c, monitoring_runs.c
    mine = (columns.task == report.task) & (columns.version == report.version)
    mine &= columns.chunk_start < report.as_of
    there = set(connection.execute(select(columns.chunk).where(mine).distinct()).scalars())
    numbers = {chunk.number for chunk in report.chunks}
    other = select(run.key).where(run.task == report.task, run.version == report.version, run.as_of < report.as_of)
    before = connection.execute(other.order_by(run.as_of.desc()).limit(1)).scalar_one_or_none()
    chunks = [each.report for each in changed]
    if before != key:  # another policy, or another bundle under the same number: none of its figures may stay
        chunks, again = list(report.chunks), there
    else:
        again = {chunk.number for chunk in chunks} | (there - numbers)
    for number in sorted(again & there):
        connection.execute(delete(monitoring_figures).where(mine, columns.chunk == number))
    rows = [row for chunk in chunks for row in _figures(report, chunk, floor, lower_is_better)]
    if rows:
        connection.execute(insert(monitoring_figures), rows)


def _figures(
    report: MonitoringReport, chunk: ChunkReport, floor: float, lower_is_better: bool
) -> Iterator[dict[str, Any]]:
    blank = dict.fromkeys(("value", "low", "high", "threshold", "maturity", "settled"))
    base = blank | {
        "task": report.task,
        "version": report.version,
        "chunk": chunk.number,
        "chunk_start": chunk.start,
        "chunk_end": chunk.end,
        "rows": chunk.rows,
        "state": chunk.state,
        "as_of": report.as_of,
        "alert": False,
    }

    def performance(kind: str, found: Performance, name: str | None = None) -> dict[str, Any]:
        judged = found.metric == report.metric
        beyond = (
            judged and found.value is not None and (found.value > floor if lower_is_better else found.value < floor)
        )
        values = {"value": found.value, "low": found.low, "high": found.high, "threshold": floor if judged else None}
        return base | values | {"kind": kind, "name": name or found.metric, "alert": beyond}

    def drift(kind: str, found: Drift) -> dict[str, Any]:
        values = {"value": found.value, "threshold": found.threshold, "alert": found.drifted}
        return base | values | {"kind": kind, "name": found.column}

    mature = {"maturity": chunk.maturity, "settled": chunk.settled}
    if chunk.estimated is not None:
        yield performance("estimated", chunk.estimated)
    if chunk.realized is not None:
        yield performance("realized", chunk.realized) | mature
    if chunk.cost is not None:
        yield performance("cost", chunk.cost) | mature
    if chunk.score_drift is not None:
        yield drift("score_drift", chunk.score_drift)
    for each in chunk.drift:
        yield drift("drift", each)
    for each in chunk.together:
        yield drift("together", each)
    for quality in chunk.quality:
        values = {"value": quality.missing, "threshold": quality.missing_reference, "alert": quality.vanished}
        yield base | values | {"kind": "missing", "name": quality.feature}
        yield base | {"value": quality.unseen, "kind": "unseen", "name": quality.feature}
        yield base | {"value": quality.repeated, "kind": "repeated", "name": quality.feature}
    for age in chunk.freshness:
        yield base | {"value": age.median_age, "high": age.max_age, "kind": "age", "name": age.view}
    for group in chunk.slices:
        found = group.realized or Performance(report.metric, None)
        yield performance("slice", found, f"{group.column}={group.value}") | mature
