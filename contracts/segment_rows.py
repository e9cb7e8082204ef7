"""Rows of a live segment of the prediction log: from SQLite to the columns that every reader gives."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
import pyarrow as pa

from contracts.clock import as_utc

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANT = pa.timestamp("us", tz="UTC")
COLUMNS = pa.schema(
    [
        ("request_id", pa.string()),
        ("position", pa.int32()),
        ("variant", pa.string()),
        ("version", pa.int32()),
        ("case_id", pa.string()),
        ("event_timestamp", _INSTANT),
        ("answered_at", _INSTANT),
        ("inputs", pa.string()),
        ("view_times", pa.string()),
        ("score", pa.float64()),
        ("decision", pa.int8()),
        ("latency_ms", pa.float64()),
        ("degraded", pa.string()),
        ("quantiles", pa.string()),
    ]
)
"""Columns every read returns, before one `feature.<name>` column a logged feature (float32 or string).

`inputs` is JSON of the entity keys and request fields as received; `view_times` is JSON of view name to the event
timestamp (microseconds since the epoch, or null) of the row the view answered with; `degraded` is a comma-separated
list of reasons; `quantiles` is JSON of level to predicted value, empty for a binary task.
A regression's value is its `score`, and its `decision` is 0.
Variants: champion and canary were answered to the caller, shadow was not.
"""
_WHERE_MISSING = {"degraded": "", "quantiles": "{}", "view_times": "{}"}
"""Columns that rows of an older program may lack, and what stands for them; null stands for any other."""
_JSON = ("inputs", "view_times", "quantiles")  # kept as bytes in a segment


def open_to_read(segment: Path) -> sqlite3.Connection:
    """A connection that never writes, nor creates what is not there."""
    return sqlite3.connect(f"file:{quote(str(segment))}?mode=ro", uri=True, timeout=20)


def is_begun(connection: sqlite3.Connection) -> bool:
    """Whether the segment's tables are there: between the file's birth and its first commit they are not."""
    return bool(connection.execute("select 1 from sqlite_master where name = 'counters'").fetchone())


def stored_features(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """What the rows were logged with: (name, kind), in order."""
    return [tuple(row) for row in connection.execute("select name, kind from features order by position")]


def micros(instant: datetime) -> int:
    """Microseconds since the epoch."""
    return (as_utc(instant) - _EPOCH) // timedelta(microseconds=1)


def select_rows(
    connection: sqlite3.Connection,
    variants: Sequence[str] | None,
    conditions: Sequence[tuple[str, datetime]],
    vectors: bool = True,
    requests: Sequence[str] | None = None,
) -> sqlite3.Cursor:
    """Rows as `decode_rows` wants them; `conditions` compare the event timestamp."""
    where = [f"event_timestamp {sign} ?" for sign, _ in conditions]
    values: list[int | str] = [micros(bound) for _, bound in conditions]
    if variants is not None:
        where.append(f"variant in ({', '.join('?' for _ in variants)})")
        values += variants
    if requests is not None:
        where.append(f"request_id in ({', '.join('?' for _ in requests)})")
        values += requests
    there = {row[1] for row in connection.execute("pragma table_info(predictions)")}
    plain = [name if name in there else _literal(name) for name in COLUMNS.names]
    columns = ", ".join([*plain, "numbers, texts" if vectors else "x'', '[]'"])
    query = f"""
        select {columns}
        from predictions {f"where {' and '.join(where)}" if where else ""}
    """
    return connection.execute(query, values)


def with_every_column(rows: pa.Table) -> pa.Table:
    """Rows of an older program with the columns it did not have yet, in today's order."""
    columns = {
        column.name: rows[column.name]
        if column.name in rows.column_names
        else pa.repeat(pa.scalar(_WHERE_MISSING.get(column.name), column.type), len(rows))
        for column in COLUMNS
    }
    return pa.table(columns | {name: rows[name] for name in rows.column_names if name not in columns})


def _literal(column: str) -> str:
    value = _WHERE_MISSING.get(column)
    return "null" if value is None else f"'{value}'"


def decode_rows(rows: Sequence[tuple[Any, ...]], features: Sequence[tuple[str, str]]) -> pa.Table:
    """Selected rows as every reader gives them."""
    by_column = list(zip(*rows, strict=True)) if rows else [()] * 16
    *plain, numbers, texts = by_column
    arrays = {}
    for column, values_read in zip(COLUMNS, plain, strict=True):
        stored = pa.int64() if column.type == _INSTANT else pa.binary() if column.name in _JSON else column.type
        arrays[column.name] = pa.array(values_read, stored).cast(column.type)
    number_names = [name for name, kind in features if kind == "number"]
    text_names = [name for name, kind in features if kind == "text"]
    matrix = np.frombuffer(b"".join(numbers), "<f4").reshape(len(rows), len(number_names))
    strings = [orjson.loads(blob) for blob in texts] if text_names else []
    vector = {name: pa.array(matrix[:, i], from_pandas=True) for i, name in enumerate(number_names)}
    vector |= {name: pa.array([row[i] for row in strings], pa.string()) for i, name in enumerate(text_names)}
    return pa.table(arrays | {f"feature.{name}": vector[name] for name, _ in features})
