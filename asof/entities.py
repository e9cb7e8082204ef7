"""Entity rows in any form a caller has them, as a table and a spine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from asof.clockwork import to_micros
from asof.definition import View
from asof.engine import Spine
from asof.errors import AsofError
from asof.latest import rows_of
from asof.quoting import identifier
from asof.session import Session

EVENT_TIMESTAMP = "event_timestamp"
_OFFSET = r"(?:[zZ]|[+-]\d\d:?\d\d)\s*$"


class InvalidEntityRows(AsofError, ValueError):
    """The entity rows have no usable time column."""


@dataclass(frozen=True)
class EntityRows:
    """The caller's rows, and what they ask."""

    table: pa.Table
    """Every column the caller gave, the time as microseconds in UTC."""
    timestamp: str
    """Name of the time column."""
    spine: Spine
    missing: dict[str, int]
    """Rows without a value, by join key or time column that has such rows: their features are null."""

    def extent(self) -> tuple[datetime | None, datetime | None]:
        """First and last time asked about; nothing when there are no rows."""
        ends = pc.min_max(self.table[self.timestamp]).as_py()
        return ends["min"], ends["max"]


def read_entities(
    rows: Any, session: Session, views: list[View], start: datetime | None = None, end: datetime | None = None
) -> EntityRows:
    """Read entity rows.

    Args:
        rows: pandas, Polars or Arrow frame, SQL for DuckDB, or None to ask about the views' own events.
        session: runs the SQL.
        views: name the join keys when `rows` is None.
        start: first event time when `rows` is None.
        end: last event time when `rows` is None.

    Raises:
        InvalidEntityRows: no time column, several, or one that mixes time zones.
    """
    if rows is None:
        table = _own_events(session, views, start, end)
    elif isinstance(rows, str):
        table = session.arrow(rows)
    elif isinstance(rows, pd.DataFrame):
        table = _from_pandas(rows)
    elif isinstance(rows, pl.DataFrame | pl.LazyFrame):
        table = rows.lazy().collect().to_arrow()
    elif isinstance(rows, pa.Table):
        table = rows
    else:
        raise InvalidEntityRows(
            f"Entity rows must be a pandas, Polars or Arrow frame or SQL, found {type(rows).__name__}."
        )
    timestamp = _timestamp_column(table)
    times = _event_times(table[timestamp], timestamp)
    table = _in_utc(table.set_column(table.column_names.index(timestamp), timestamp, times))
    at = pc.fill_null(times.cast(pa.int64()), 0).to_numpy()
    asked = pc.is_valid(times).to_numpy() if times.null_count else np.ones(len(times), bool)
    needed = {timestamp, *(key.column for view in views for key in view.keys)}
    missing = {name: table[name].null_count for name in table.column_names if name in needed and table[name].null_count}
    return EntityRows(table, timestamp, Spine(table, at, asked), missing)


def _from_pandas(frame: pd.DataFrame) -> pa.Table:
    # Objects are parsed here: Arrow would silently read datetimes of several zones as one.
    frame = frame.copy(deep=False)
    for name in frame.columns:
        column = frame[name]
        if column.dtype == object and (name == EVENT_TIMESTAMP or isinstance(_first(column), datetime)):
            frame[name] = _parsed(column, name)
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except pa.ArrowException as error:
        raise InvalidEntityRows(f"Entity rows: a column mixes types: {error}") from error


def _first(column: pd.Series) -> object:
    return next((value for value in column if value is not None), None)


def _parsed(column: pd.Series, name: str) -> pd.Series:
    present = column.dropna()
    zones = {str(value.tzinfo or "naive") for value in present if isinstance(value, datetime)}
    if isinstance(_first(present), str):
        zoned = present.astype(str).str.contains(_OFFSET)
        zones |= {"naive", "with an offset"} if zoned.any() and not zoned.all() else set()
    if len(zones) > 1:
        raise InvalidEntityRows(
            f"Entity rows: {name!r} mixes time zones: found {', '.join(sorted(zones))}; expected one.",
            hint="Convert it to UTC first.",
        )
    try:
        return pd.to_datetime(column, utc=True)
    except (ValueError, TypeError) as error:
        raise InvalidEntityRows(f"Entity rows: {name!r} holds what is no time: {error}") from error


def _timestamp_column(table: pa.Table) -> str:
    names = table.column_names
    if EVENT_TIMESTAMP in names:
        return EVENT_TIMESTAMP
    times = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    if len(times) == 1:
        return times[0]
    found = f"several: {', '.join(times)}" if times else f"none among {', '.join(names)}"
    raise InvalidEntityRows(f"Entity rows need one time column, found {found}.", hint=f"Name it {EVENT_TIMESTAMP!r}.")


def _event_times(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or column.type == pa.string_view():
        column = pa.chunked_array([pa.Array.from_pandas(_parsed(column.to_pandas(), name))])
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    if not pa.types.is_timestamp(column.type):
        raise InvalidEntityRows(f"Entity rows: {name!r} must hold times, found {column.type}.")
    return _utc(column).cast(pa.timestamp("us", tz="UTC"), safe=False)


def _in_utc(table: pa.Table) -> pa.Table:
    """The table with every time in UTC: a request field is the same whichever kind of frame it came in."""
    for place, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and field.type.tz != "UTC":
            table = table.set_column(place, field.name, _utc(table[field.name]))
    return table


def _utc(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.timestamp(column.type.unit, tz="UTC"))


def _own_events(session: Session, views: list[View], start: datetime | None, end: datetime | None) -> pa.Table:
    """The keys and times of the views' own events between two times."""
    if end is None:
        raise InvalidEntityRows("Without entity rows, an end date is needed.", hint="Pass end_date.")
    parts = []
    names = sorted({key.column for view in views for key in view.keys})
    for view in views:
        own = {key.column: key.name for key in view.keys}
        keyless = replace(view, keys=())
        since = to_micros(start) if start else None
        sql = rows_of(keyless, session.scan(view.source), "", list(own.values()), since=since, until=to_micros(end))
        columns = [
            f"c{list(own).index(name)} as {identifier(name)}" if name in own else f"null as {identifier(name)}"
            for name in names
        ]
        parts.append(
            f"select distinct {', '.join([*columns, 'make_timestamptz(known) as event_timestamp'])} from ({sql})"
        )
    return session.arrow(f"{' union '.join(parts)} order by all")
