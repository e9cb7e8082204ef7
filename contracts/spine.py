"""The spine: one row a predicted case, with what was asked, when, and what came of it by a given instant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

import duckdb
import pyarrow as pa

from contracts.clock import as_utc
from contracts.errors import SkewlessError
from contracts.task import Task

_INSTANT = pa.timestamp("us", tz="UTC")
GROUP = "group."
"""Begins the name of a column that `labels_known` was asked for beside its own."""


class SpineError(SkewlessError, ValueError):
    """A spine query that cannot be run or whose rows break its contract."""


class SpineReader(Protocol):
    """`read_spine`, or what gives the same rows from memory."""

    def __call__(
        self, task: Task, *, start: datetime, end: datetime, known_at: datetime, repeated: bool = False
    ) -> pa.Table:
        """As `read_spine`."""
        ...


def read_spine(task: Task, *, start: datetime, end: datetime, known_at: datetime, repeated: bool = False) -> pa.Table:
    """Cases asked about in [start, end), labels masked to what was known at `known_at`.

    Returns:
        The query's columns, one row a case in order of (event timestamp, id). Timestamps are UTC microseconds.
        `label` and `label_known_at` are null where the outcome was not yet known.

    Raises:
        SpineError: a table is missing, the query fails, a named column is absent, or an id is null or (unless
            `repeated` allows it) repeated.
    """
    spine = task.spine
    stamp, known = _quote(spine.event_timestamp), _quote(spine.label_known_at)
    label, case = _quote(spine.label), _quote(spine.id)
    visible = f"{known} <= $known_at"
    query = f"""
        select * replace (
            case when {visible} then {label} end as {label},
            case when {visible} then {known} end as {known}
        )
        from (
            {_text(task)}
        ) spine
        where {stamp} >= $start and {stamp} < $end
        order by {stamp}, {case}
    """
    bounds = {"start": as_utc(start), "end": as_utc(end), "known_at": as_utc(known_at)}
    with _opened(task) as connection:
        _check_columns(task, _columns(connection, task))
        table = connection.sql(query, params=bounds).to_arrow_table()
    table = _in_utc(task, table)
    return table if repeated else _checked(task, table)


def spine_columns(task: Task) -> dict[str, str]:
    """Columns of the spine query and their DuckDB types; the query is bound, no row is read.

    Raises:
        SpineError: a table is missing, or the query cannot be bound.
    """
    with _opened(task) as connection:
        return _columns(connection, task)


def labels_known(
    task: Task,
    *,
    start: datetime,
    end: datetime,
    known_at: datetime,
    groups: Sequence[str] = (),
    read: SpineReader = read_spine,
) -> pa.Table:
    """Matured outcomes of the cases asked about in [start, end), as they were landed: ids may be null or repeat, which
    whoever joins them has to account for.

    Args:
        task: names the spine.
        start: of the cases' instants.
        end: of them, exclusive.
        known_at: labels known later are left out.
        groups: columns of the spine to give as well.
        read: reads the spine.

    Returns:
        Columns `id` (string), `event_timestamp`, `label` (float64), `label_known_at`, and each of `groups` (string).
    """
    spine = task.spine
    table = read(task, start=start, end=end, known_at=known_at, repeated=True)
    wanted = dict.fromkeys([spine.id, spine.event_timestamp, spine.label, spine.label_known_at, *groups])
    known = table.select(list(wanted)).filter(table[spine.label].is_valid())
    return pa.table(
        {
            "id": known[spine.id].cast(pa.string()),
            "event_timestamp": known[spine.event_timestamp],
            "label": known[spine.label].cast(pa.float64()),
            "label_known_at": known[spine.label_known_at],
            **{f"{GROUP}{name}": known[name].cast(pa.string()) for name in groups},
        }
    )


@contextmanager
def _opened(task: Task) -> Iterator[duckdb.DuckDBPyConnection]:
    for name, where in task.spine.tables.items():
        if not where.exists():
            raise SpineError(
                f"Task {task.name!r}: spine table {name!r} has no data at {where}.",
                hint="mend its path in spine.tables, or land it: `skewless ingest` does where the repository can.",
            )
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        try:
            for name, where in task.spine.tables.items():
                source = str(where / "**" / "*.parquet") if where.is_dir() else str(where)
                connection.read_parquet(source, hive_partitioning=True).create_view(name)
            yield connection
        except duckdb.Error as error:
            raise SpineError(
                f"Task {task.name!r}: the spine query {task.spine.sql} failed: {error}",
                hint="run the query alone in DuckDB over the tables the task names.",
            ) from error


def _text(task: Task) -> str:
    return task.spine.sql.read_text().strip().rstrip(";")


def _columns(connection: duckdb.DuckDBPyConnection, task: Task) -> dict[str, str]:
    bound = connection.sql(f"select * from (\n{_text(task)}\n) spine limit 0")
    return dict(zip(bound.columns, map(str, bound.types), strict=True))


def _in_utc(task: Task, table: pa.Table) -> pa.Table:
    """The table with times in UTC, and dates where instants are wanted as the beginning of their day."""
    for name in (task.spine.event_timestamp, task.spine.label_known_at):
        if pa.types.is_date(table[name].type):
            table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.timestamp("us")))
    fields = [field.with_type(_INSTANT) if pa.types.is_timestamp(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields))


def _check_columns(task: Task, found: Iterable[str]) -> None:
    found = list(found)
    for field, column in named_columns(task):
        if column not in found:
            near = difflib.get_close_matches(column, found, n=1)
            raise SpineError(
                f"Task {task.name!r}: the spine query has no column {column!r} ({field}), only {', '.join(found)}.",
                hint=f"did you mean {near[0]!r}?" if near else f"select it in {task.spine.sql}.",
            )


def named_columns(task: Task) -> list[tuple[str, str]]:
    """Every (field, column) by which a task names a column of its spine."""
    spine = task.spine
    single = [
        (f"spine.{field}", getattr(spine, field)) for field in ("id", "event_timestamp", "label", "label_known_at")
    ]
    several = {
        "spine.keys": spine.keys,
        "spine.request_fields": spine.request_fields,
        "fairness.slices": task.fairness.slices,
    }
    return single + [(field, column) for field, columns in several.items() for column in columns]


def _checked(task: Task, table: pa.Table) -> pa.Table:
    spine = task.spine
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
