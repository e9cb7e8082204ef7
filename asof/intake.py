"""A pushed frame as rows of its source, or an error that says which column is wrong; nothing is written here."""

from __future__ import annotations

import difflib
import re
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from asof.clockwork import from_micros
from asof.definition import View
from asof.errors import AsofError


class BadPush(AsofError, ValueError):
    """Pushed rows are not rows of the source."""


def stored_name(view: View, column: str) -> str:
    """What the source's files call a column of the view."""
    return {new: old for old, new in view.source.renamed}.get(column, column)


def needed(view: View) -> set[str]:
    """Columns, as the files call them, that a view cannot be computed without."""
    names = {key.name for key in view.keys} | {view.source.timestamp, *view.source.event_id}
    if view.is_windowed:
        names |= {window.column for window in view.windows if window.column} | set(view.series)
    else:
        names |= {feature.name for feature in view.features}
    return {stored_name(view, name) for name in names}


def newest_event(view: View, rows: pa.Table) -> int:
    """The latest event time of a source's rows, microseconds."""
    return int(pc.max(_event_micros(view, rows)).as_py() or 0)


def oldest_event(view: View, rows: pa.Table) -> int:
    """The earliest event time of a source's rows, microseconds."""
    return int(pc.min(_event_micros(view, rows)).as_py() or 0)


def _event_micros(view: View, rows: pa.Table) -> pa.ChunkedArray:
    times = rows[stored_name(view, view.source.timestamp)]
    return times.cast(pa.timestamp("us", tz=times.type.tz), safe=False).cast(pa.int64())


def rows_of_source(frame: Any, views: list[View], schema: pa.Schema | None, now: int, *, whole: bool) -> pa.Table:
    """The frame's rows in the columns and types of the source all `views` read.

    Args:
        frame: pandas, Polars or Arrow, columns named as in the files or as in the views.
        views: fed by the push.
        schema: of the source's files; the frame's own when there are none yet.
        now: microseconds; when rows that do not say so became known.
        whole: every column of the source must be there (rows to be appended to it), and no other.

    Raises:
        BadPush: a column is missing, unknown, or of another type; a time of several zones, or absent.
    """
    view = views[0]
    columns = _columns(frame, view)
    renamed = {new: old for old, new in view.source.renamed}
    given = {renamed.get(name, name): name for name in columns} | {
        name: name for name in columns if name not in renamed
    }
    created = view.source.created and stored_name(view, view.source.created)
    times = {created, stored_name(view, view.source.timestamp)}
    schema = schema if schema is not None else _own_schema(columns, given, created, times)
    for each in views:
        # A transformation may look at anything.
        wanted = needed(each) if each.source.transform is None else set(schema.names) - {created}
        for name in sorted(wanted | (set(schema.names) - {created} if whole else set())):
            if name in schema.names and name not in given:
                raise _missing(each, name, list(columns), schema.field(name).type)
    if whole and (unknown := sorted(set(given) - set(schema.names))):
        near = difflib.get_close_matches(unknown[0], schema.names, n=1)
        raise BadPush(
            f"Push to view {view.name!r}: column {unknown[0]!r} is not in {view.source.path}; expected "
            f"{', '.join(schema.names)}.",
            hint=f"Did you mean {near[0]!r}?" if near else "Leave it out.",
        )
    rows = len(next(iter(columns.values()))) if columns else 0
    out = []
    for field in schema:
        if field.name in given:
            out.append(_fitted(columns[given[field.name]], field, view))
        elif field.name == created:
            out.append(pa.array([from_micros(now)] * rows, pa.timestamp("us", tz="UTC")).cast(field.type, safe=False))
        else:
            out.append(pa.nulls(rows, field.type))
    table = pa.table(out, schema=pa.schema([field.with_nullable(True) for field in schema]))
    timestamp = stored_name(view, view.source.timestamp)
    if timestamp in table.column_names and table[timestamp].null_count:
        row = pc.index(pc.is_null(table[timestamp]), True).as_py()
        raise BadPush(f"Push to view {view.name!r}: column {timestamp!r} is null in row {row}; expected a time.")
    return table


def _columns(frame: Any, view: View) -> dict[str, Any]:
    if isinstance(frame, pd.DataFrame):
        return {str(name): frame[name] for name in frame.columns}
    if isinstance(frame, pl.DataFrame):
        frame = frame.to_arrow()
    if isinstance(frame, pa.Table):
        return dict(zip(frame.column_names, frame.columns, strict=True))
    raise BadPush(
        f"Push to view {view.name!r}: found {type(frame).__name__}; expected a pandas, Polars or Arrow frame."
    )


def _own_schema(
    columns: dict[str, Any], given: dict[str, str], created: str | None, times: set[str | None]
) -> pa.Schema:
    """Of a source without data: what the frame says, times as they are written here."""
    fields = {}
    for name, column in given.items():
        kind = (
            pa.Array.from_pandas(columns[column]) if isinstance(columns[column], pd.Series) else columns[column]
        ).type
        is_time = pa.types.is_timestamp(kind) or (name in times and _is_text(kind))
        fields[name] = pa.timestamp("us", tz="UTC") if is_time else kind
    if created:
        fields.setdefault(created, pa.timestamp("us", tz="UTC"))
    return pa.schema(list(fields.items()))


def _missing(view: View, name: str, found: list[str], kind: pa.DataType) -> BadPush:
    near = difflib.get_close_matches(name, found, n=1)
    return BadPush(
        f"Push to view {view.name!r}: column {name!r} is missing; found {', '.join(found)}, expected {kind}.",
        hint=f"Did you mean {name!r} by {near[0]!r}?" if near else "Add it; null where there is nothing to say.",
    )


def _fitted(column: Any, field: pa.Field, view: View) -> pa.ChunkedArray | pa.Array:
    wrong = f"Push to view {view.name!r}: column {field.name!r}"
    if isinstance(column, pd.Series):
        if pa.types.is_timestamp(field.type) and column.dtype == object:
            _one_zone(column, wrong, field)
        try:
            column = pa.Array.from_pandas(column)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise BadPush(f"{wrong}: found values of several types, expected {field.type}: {error}") from error
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_timestamp(field.type) and _is_text(column.type):
        column = _read_times(column, wrong)
    if not _alike(column.type, field.type):
        raise BadPush(f"{wrong}: found {column.type}, expected {field.type}.")
    if pa.types.is_timestamp(field.type) and pa.types.is_timestamp(column.type):
        if column.type.tz is None:  # UTC, as in entity rows and in files
            column = column.cast(pa.timestamp(column.type.unit, tz="UTC"))
        return column.cast(field.type, safe=False)
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise BadPush(f"{wrong}: found {column.type} that does not fit, expected {field.type}: {error}.") from error


def _is_text(dtype: pa.DataType) -> bool:
    return pa.types.is_string(dtype) or pa.types.is_large_string(dtype)


def _read_times(column: pa.ChunkedArray | pa.Array, wrong: str) -> pa.Array:
    """Times from text, as JSON delivers them; without a zone they are UTC, with one each has its own."""
    times = []
    for row, said in enumerate(column.to_pylist()):
        try:
            time = None if said is None else _iso_time(said)
        except ValueError:
            raise BadPush(
                f"{wrong}: found {said!r} in row {row}, expected a time.",
                hint="Write times as ISO 8601, for example 2013-01-01T12:00:00Z; without a zone they are UTC.",
            ) from None
        times.append(time)
    return pa.array(times, pa.timestamp("us", tz="UTC"))


def _iso_time(said: str) -> datetime:
    if not _ISO_TIME.fullmatch(said):  # Python alone would read milliseconds since 1970 as a day of the Middle Ages
        raise ValueError
    time = datetime.fromisoformat(said)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


_ISO_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?)?", re.ASCII)


def _one_zone(column: pd.Series, wrong: str, field: pa.Field) -> None:
    """Arrow would read datetimes of several zones as if they were of the first."""
    zones = {str(value.tzinfo or "naive") for value in column.dropna() if isinstance(value, datetime)}
    if len(zones) > 1:
        raise BadPush(
            f"{wrong}: found times of several zones ({', '.join(sorted(zones))}), expected {field.type}.",
            hint="Convert them to UTC first.",
        )


_KINDS = (
    (pa.types.is_boolean, "boolean"),
    (pa.types.is_integer, "number"),
    (pa.types.is_floating, "number"),
    (pa.types.is_decimal, "number"),
    (pa.types.is_string, "text"),
    (pa.types.is_large_string, "text"),
    (pa.types.is_timestamp, "time"),
    (pa.types.is_date, "date"),
    (pa.types.is_list, "list"),
    (pa.types.is_large_list, "list"),
    (pa.types.is_fixed_size_list, "list"),
)


def _alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a cast between the types only changes how a value is written down, not what it is."""
    if pa.types.is_null(found):
        return True

    def kind(dtype: pa.DataType) -> str:
        return next((name for test, name in _KINDS if test(dtype)), str(dtype))

    return kind(found) == kind(wanted)
