"""Plain views: the newest row known at a moment, as SQL over DuckDB's native ASOF JOIN.

Two steps keep the join narrow. `moments_sql` finds *when*: of each point the event time of its row, from keys and times
alone. `rows_sql` finds *which*: only the matched rows' features are fetched, by an ordinary hash join.

A row is known at max(event, created). Of the rows known at t the newest event wins, so a row that becomes known late,
behind an event already known, never wins: `_records` drops it before the join.
"""

from __future__ import annotations

from collections.abc import Iterable

from asof.definition import View
from asof.source import Scan


def rows_of(
    view: View, scan: Scan, keys: str, columns: Iterable[str] = (), *, since: int | None = None, until: int
) -> str:
    """SQL for the source rows of the given keys: code, event, known, created (microseconds) and the columns.

    Args:
        view: whose keys to match.
        scan: its source.
        keys: table (code, k0, k1, ...); ignored for a view without keys.
        columns: names to fetch, as c0, c1, ...
        since: leave out events before it; None for all.
        until: leave out what happens or becomes known after it.

    Raises:
        ColumnNotFound, NotATimestamp: naming view and column.
    """
    source = scan.source
    event = scan.micros(source.timestamp, "timestamp field")
    repeats = source.event_id and not scan.once
    relation = first_known(scan, event, until) if repeats else scan.between(since, until)
    chosen = [f"{'k.code' if view.keys else '0'} as code", f"{event} as event"]
    # Up to the end of the microsecond: a source may be finer than we are.
    wanted = [scan.bound(source.timestamp, "<", until + 1)]
    if since is not None:
        wanted.append(scan.bound(source.timestamp, ">=", since))
    if source.created:
        created = scan.micros(source.created, "created timestamp column")
        # greatest() passes over nulls: a row without a created time was known when it happened.
        chosen += [f"greatest({event}, {created}) as known", f"{created} as created"]
        quoted = scan.require(source.created, "created timestamp column")
        wanted.append(f"({quoted} is null or {scan.bound(source.created, '<', until + 1)})")
    else:
        chosen += [f"{event} as known", "null as created"]
    chosen += [f"{scan.require(column, 'column')} as c{i}" for i, column in enumerate(columns)]
    join = ""
    if view.keys:
        own = [f"cast({scan.require(key.name, 'join key')} as {sql_type(key.dtype)})" for key in view.keys]
        join = f"\njoin {keys} k on {' and '.join(f'{key} = k.k{i}' for i, key in enumerate(own))}"
        if view.shard is not None:
            wanted.append(f"{part_of(own, view.shard.of)} = {view.shard.number}")
    return f"select {', '.join(chosen)}\nfrom {relation} s{join}\nwhere {' and '.join(wanted)}"


def first_known(scan: Scan, event: str, until: int) -> str:
    """SQL for the rows without those that tell of an event another row told of before.

    No row may be left out for its age first: what makes a later row a repetition may be older than any window.
    """
    source = scan.source
    ids = [scan.require(name, "event id") for name in source.event_id]
    first = event
    if source.created:
        first = f"greatest({event}, {scan.micros(source.created, 'created timestamp column')}), {event}"
    return (
        f"(select * from {scan.between(None, until)} s\nqualify {' or '.join(f'{id} is null' for id in ids)} "
        # Told twice at one moment, with other values: the same one wins on every path.
        f"or row_number() over (partition by {', '.join(ids)} order by {first}, s) = 1)"
    )


def seen_sql(rows: str, width: int, *, late: bool) -> str:
    """SQL for code, event, known, c0, c1, ...

    Args:
        rows: SQL of `rows_of`, with `width` columns.
        width: number of columns.
        late: whether a row may become known after it happened; without `known` if not.
    """
    columns = "".join(f", c{i}" for i in range(width))
    return f"select code, event{', known' if late else ''}{columns}\nfrom ({rows})"


def late_sql(rows: str) -> str:
    """SQL that yields a row if anything became known after it happened."""
    return f"select 1 from ({rows}) where known > event limit 1"


def moments_sql(rows: str, points: str, *, late: bool) -> str:
    """SQL for the match of each point: row (of the point), code, event and known of what it sees.

    Args:
        rows: SQL of `rows_of`.
        points: table (row, code, at).
        late: whether some row became known after it happened.
    """
    seen = _records(rows) if late else f"select code, event, event as known from ({rows})"
    return (
        f"select p.row, p.code, s.event, s.known\nfrom {points} p\n"
        f"asof join ({seen}) s on p.code = s.code and p.at >= s.known"
    )


def _records(rows: str) -> str:
    """Of each key the rows that are the newest event known when they become known, one per moment."""
    return (
        f"select code, event, known from (select code, known, max(event) as event from ({rows}) group by code, known)\n"
        "qualify event >= coalesce(max(event) over (partition by code order by known "
        "rows between unbounded preceding and 1 preceding), event)"
    )


def rows_sql(rows: str, moments: str, width: int) -> str:
    """SQL for the features of each match: row, event, c0, c1, ...; several rows per match where events tie.

    Args:
        rows: SQL of `rows_of`, with `width` columns.
        moments: SQL of `moments_sql`.
        width: number of columns.
    """
    columns = "".join(f", s.c{i}" for i in range(width))
    return f"{_with(moments)}select m.row, m.event{columns}\n{_matched(rows)}"


def untied_sql(rows: str, moments: str, width: int, declared: int) -> str:
    """As `rows_sql`, one row per match: the latest created; after that the greatest values, in declared order.

    Args:
        rows: SQL of `rows_of`, with `width` columns asked for and then all `declared` ones.
        moments: SQL of `moments_sql`.
        width: number of columns to return.
        declared: number of columns that break ties.
    """
    columns = "".join(f", s.c{i}" for i in range(width))
    ties = "".join(f", s.c{i} desc nulls last" for i in range(width, width + declared))
    return (
        f"{_with(moments)}select m.row, m.event{columns}\n{_matched(rows)}\n"
        f"qualify row_number() over (partition by m.row order by s.created desc nulls last{ties}) = 1"
    )


def _with(moments: str) -> str:
    return f"with moments as materialized (\n{moments})\n"


def _matched(rows: str) -> str:
    return f"from moments m\njoin ({rows}) s on m.code = s.code and m.event = s.event and m.known = s.known"


def part_of(keys: list[str], parts: int) -> str:
    """SQL for the part, from 0, that a key belongs to; equal keys of one type are in one part wherever they come from.

    Args:
        keys: SQL of each part of the key, cast to its type.
        parts: number of parts.
    """
    return f"hash({', '.join(keys)}) % {parts}"


_SQL_TYPES = {
    "string": "varchar",
    "int64": "bigint",
    "int32": "integer",
    "double": "double",
    "float": "float",
    "bool": "boolean",
    "timestamp[us, tz=UTC]": "timestamptz",
}


def sql_type(dtype: object) -> str:
    """DuckDB's name of a join key's Arrow type."""
    return _SQL_TYPES.get(str(dtype), "varchar")


def is_plain(dtype: object) -> bool:
    """Whether DuckDB holds the Arrow type as it is, so that equal keys hash alike in source and spine."""
    return str(dtype) in _SQL_TYPES
