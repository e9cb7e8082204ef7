"""The prediction log without its vectors and scores: which rows there are, where they are kept, whom they are about.

A reader that works on parts of the log finds out here which parts: it is a fraction of the log's size, and compacted
segments give it from a few columns.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts.clock import as_utc
from contracts.predictions import ANSWERED_VARIANTS, prefer_compacted, segment_paths
from contracts.segment_rows import COLUMNS, is_begun, micros, open_to_read

_READ = ("request_id", "position", "variant", "version", "case_id", "event_timestamp", "answered_at", "degraded")
INDEX = pa.schema([COLUMNS.field(name) for name in _READ] + [("segment", pa.string())])
"""Columns of the index: those of the log, and the name of the segment that holds the row."""


class PredictionIndex:
    """The index of one log. Keep it between looks, and what was compacted before is not read again.

    Args:
        log: the log's folder; one that does not exist reads as an empty log.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._kept: dict[Path, pa.Table] = {}
        """Rows of compacted segments: such a file is never written again."""

    def until(self, end: datetime) -> pa.Table:
        """Answered rows asked about before `end`, as `INDEX` has them, in order of (event timestamp, request, position,
        variant).
        """
        end = as_utc(end)
        before = pc.field("event_timestamp") < pa.scalar(end, COLUMNS.field("event_timestamp").type)
        parts = [
            prefer_compacted(path, lambda live: _named(_live(live, end), live), self._compacted).filter(before)
            for path in segment_paths(self._log)
        ]
        table = pa.concat_tables(parts) if parts else INDEX.empty_table()
        return table.sort_by([(name, "ascending") for name in ("event_timestamp", "request_id", "position", "variant")])

    def _compacted(self, path: Path) -> pa.Table:
        if path not in self._kept:
            self._kept[path] = _named(_compacted(path), path)
        return self._kept[path]


def _named(rows: pa.Table, segment: Path) -> pa.Table:
    return rows.append_column("segment", pa.repeat(pa.scalar(segment.stem), rows.num_rows))


def _live(segment: Path, end: datetime) -> pa.Table:
    schema = pa.schema([COLUMNS.field(name) for name in _READ])
    with closing(open_to_read(segment)) as connection:
        if not is_begun(connection):
            return schema.empty_table()
        rows = _select(connection, end)
    columns = zip(*rows, strict=True) if rows else ((),) * len(_READ)
    arrays = [
        pa.array(values, pa.int64() if pa.types.is_timestamp(field.type) else field.type).cast(field.type)
        for field, values in zip(schema, columns, strict=True)
    ]
    return pa.table(arrays, schema=schema)


def _select(connection: sqlite3.Connection, end: datetime) -> list[tuple[object, ...]]:
    marks = ", ".join("?" for _ in ANSWERED_VARIANTS)
    query = f"select {', '.join(_READ)} from predictions where event_timestamp < ? and variant in ({marks})"
    return connection.execute(query, (micros(end), *ANSWERED_VARIANTS)).fetchall()


def _compacted(path: Path) -> pa.Table:
    keep = pc.field("variant").isin(list(ANSWERED_VARIANTS))
    table = pq.read_table(path, columns=list(_READ), partitioning=None, filters=keep)
    return table.select(list(_READ)).replace_schema_metadata().cast(pa.schema([COLUMNS.field(n) for n in _READ]))
