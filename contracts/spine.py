"""The spine: one row a predicted case, with what was asked, when, and what came of it by a given instant."""

from __future__ import annotations

from datetime import datetime

import duckdb
import pyarrow as pa

from contracts.clock import as_utc
from contracts.errors import SkewlessError
from contracts.task import Task

_INSTANT = pa.timestamp("us", tz="UTC")


class SpineError(SkewlessError, ValueError):
    """A spine query that cannot be run or whose rows break its contract."""


def read_spine(task: Task, *, start: datetime, end: datetime, known_at: datetime) -> pa.Table:
    """Cases asked about in [start, end), labels masked to what was known at `known_at`.

    Returns:
        The query's columns, one row a case in order of (event timestamp, id). Timestamps are UTC microseconds.
        `label` and `label_known_at` are null where the outcome was not yet known.

    Raises:
        SpineError: a table is missing, the query fails, a named column is absent, or an id is null or repeated.
    """
    spine = task.spine
    for name, where in spine.tables.items():
        if not where.exists():
            raise SpineError(
                f"Task {task.name!r}: spine table {name!r} has no data at {where}.", hint="run `skewless ingest` first."
            )
    stamp, known = _quote(spine.event_timestamp), _quote(spine.label_known_at)
    label, case = _quote(spine.label), _quote(spine.id)
    visible = f"{known} <= $known_at"
    query = f"""
        select * replace (
            case when {visible} then {label} end as {label},
            case when {visible} then {known} end as {known}
        )
        from (
            {spine.sql.read_text().strip().rstrip(";")}
        ) spine
        where {stamp} >= $start and {stamp} < $end
        order by {stamp}, {case}
    """
    bounds = {"start": as_utc(start), "end": as_utc(end), "known_at": as_utc(known_at)}
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        try:
            for name, where in spine.tables.items():
                source = str(where / "**" / "*.parquet") if where.is_dir() else str(where)
                connection.read_parquet(source, hive_partitioning=True).create_view(name)
            table = connection.sql(query, params=bounds).to_arrow_table()
        except duckdb.Error as error:
            raise SpineError(
                f"Task {task.name!r}: the spine query {spine.sql} failed: {error}",
                hint="run the query alone in DuckDB over the tables the task names.",
            ) from error
    return _checked(task, _in_utc(table))


def labels_known(task: Task, *, start: datetime, end: datetime, known_at: datetime) -> pa.Table:
    """Matured outcomes of the cases asked about in [start, end).

    Returns:
        Columns `id` (string), `event_timestamp`, `label` (float64), `label_known_at`; only labels known at `known_at`.
    """
    table = read_spine(task, start=start, end=end, known_at=known_at)
    spine = task.spine
    known = table.filter(table[spine.label].is_valid())
    return pa.table(
        {
            "id": known[spine.id].cast(pa.string()),
            "event_timestamp": known[spine.event_timestamp],
            "label": known[spine.label].cast(pa.float64()),
            "label_known_at": known[spine.label_known_at],
        }
    )


def _in_utc(table: pa.Table) -> pa.Table:
    fields = [field.with_type(_INSTANT) if pa.types.is_timestamp(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields))


def _checked(task: Task, table: pa.Table) -> pa.Table:
    spine = task.spine
    named = [spine.id, spine.event_timestamp, spine.label, spine.label_known_at]
    for column in [*named, *spine.keys, *spine.request_fields, *task.fairness.slices]:
        if column not in table.column_names:
            raise SpineError(
                f"Task {task.name!r}: the spine query has no column {column!r}, only {', '.join(table.column_names)}.",
                hint=f"select it in {spine.sql}.",
            )
    if table[spine.id].null_count:
        raise SpineError(f"Task {task.name!r}: {table[spine.id].null_count} spine rows have no {spine.id!r}.")
    repeated = table.num_rows - len(table[spine.id].unique())
    if repeated:
        raise SpineError(
            f"Task {task.name!r}: {repeated} spine rows repeat a {spine.id!r}.",
            hint="one row a case: deduplicate the query.",
        )
    return table


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
