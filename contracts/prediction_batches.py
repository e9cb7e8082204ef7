"""The prediction log in batches: for readers of more rows than fit in memory.

for batch in prediction_batches(log, rows=200_000):
    ...                                 # batch.rows: a table; batch.passed: rows of the log gone by so far
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts.clock import as_utc
from contracts.predictions import ANSWERED_VARIANTS, segment_paths
from contracts.segment_facts import segment_facts
from contracts.segment_rows import COLUMNS, decode_rows, is_begun, open_to_read, select_rows, stored_features

_READ = 50_000
"""Rows decoded at a time; batches are put together from these."""
Conditions = Sequence[tuple[str, datetime]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of the log."""

    rows: pa.Table
    """Columns as `contracts.predictions.read_predictions` has them."""
    passed: int
    """Rows of the log that were looked at so far, those that were not asked for included."""


def count_rows(log: Path) -> int:
    """Rows in the log, of every variant."""
    return sum(_count(path) for path in segment_paths(log))


def prediction_batches(
    log: Path,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    variants: Sequence[str] = ANSWERED_VARIANTS,
    rows: int = 200_000,
) -> Iterator[Batch]:
    """Logged rows with event timestamps in [start, end): segment after segment, at most `rows` at a time.

    All rows that `read_predictions` returns, each once, in the order in which segments hold them. Memory is a batch's,
    whatever the size of the log. Segments may be written and compacted meanwhile: each is read as it is when its turn
    comes.
    """
    conditions = [(sign, as_utc(bound)) for sign, bound in ((">=", start), ("<", end)) if bound is not None]
    waiting: list[pa.Table] = []
    count = passed = 0
    for path in segment_paths(log):
        for part, read in _parts(path, conditions, variants):
            passed += read
            while count + part.num_rows >= rows:
                fits = rows - count
                yield Batch(_joined([*waiting, part.slice(0, fits)]), passed)
                part, waiting, count = part.slice(fits), [], 0
            if part.num_rows:
                waiting.append(part)
                count += part.num_rows
    if waiting:
        yield Batch(_joined(waiting), passed)


def _joined(parts: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(parts, promote_options="default").combine_chunks()


def _parts(segment: Path, conditions: Conditions, variants: Sequence[str]) -> Iterator[tuple[pa.Table, int]]:
    """Rows asked for and how many were read for them, bit by bit."""
    compacted = segment.with_suffix(".parquet")
    connection = None if compacted.exists() else _pinned(segment, compacted)
    if connection is None:
        yield from _compacted_parts(compacted, conditions, variants)
        return
    with closing(connection):
        if not is_begun(connection):
            return
        features = stored_features(connection)
        total = connection.execute("select count(*) from predictions").fetchone()[0]
        cursor = select_rows(connection, variants, conditions)
        while found := cursor.fetchmany(_READ):
            total -= len(found)
            yield decode_rows(found, features), len(found)
        yield COLUMNS.empty_table(), total


def _pinned(segment: Path, compacted: Path) -> sqlite3.Connection | None:
    """The live segment as of now, or None when it has become Parquet.

    Compaction writes the Parquet file before it removes the segment. If the file is not there once the snapshot is
    held, the segment was whole when it was taken, and stays readable to this connection even when it is removed.
    """
    try:
        connection = open_to_read(segment)
        connection.execute("begin")
        connection.execute("select count(*) from sqlite_master").fetchone()
    except sqlite3.OperationalError:
        if compacted.exists():
            return None
        raise
    if compacted.exists():
        connection.close()
        return None
    return connection


def _compacted_parts(path: Path, conditions: Conditions, variants: Sequence[str]) -> Iterator[tuple[pa.Table, int]]:
    facts = segment_facts(path)
    if not facts.may_hold(conditions):
        yield COLUMNS.empty_table(), facts.rows
        return
    wanted = pa.array(variants, pa.string())
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_READ):
            table = pa.Table.from_batches([batch]).replace_schema_metadata()
            keep = pc.is_in(table["variant"], value_set=wanted)
            for sign, bound in conditions:
                compare = pc.greater_equal if sign == ">=" else pc.less
                stamps = table["event_timestamp"]
                keep = pc.and_(keep, compare(stamps, pa.scalar(bound, stamps.type)))
            yield table.filter(keep), table.num_rows


def _count(segment: Path) -> int:
    compacted = segment.with_suffix(".parquet")
    connection = None if compacted.exists() else _pinned(segment, compacted)
    if connection is None:
        return segment_facts(compacted).rows
    with closing(connection):
        return int(connection.execute("select count(*) from predictions").fetchone()[0]) if is_begun(connection) else 0
