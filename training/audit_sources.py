"""What the audit sees behind the frame: how old each source is, how late its rows come, what it says of its types.

Only rows known at the cutoff are looked at. A window's rows count as many times as they were told: this is about the
source, not about its features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from asof.session import Session
from asof.source import Scan
from asof.view import View
from contracts.duration import show_duration
from contracts.task import Audit
from training.arrays import feature_of
from training.audit_columns import Column
from training.definitions import Definitions
from training.findings import Finding, Severity

_MICROSECOND = timedelta(microseconds=1)
_COUNTS = frozenset({"count", "count_distinct"})
_TTLS, _GAPS = 2, 10
"""A source is stale after so many TTLs, or so many of the longest gap between its events."""
_LEAST_EVENTS = 10
_FAMILIES = {
    "text": "VARCHAR UUID String Uuid string large_string",
    "integer": "TINYINT SMALLINT INTEGER BIGINT HUGEINT UTINYINT USMALLINT UINTEGER UBIGINT "
    "Int32 Int64 int8 int16 int32 int64",
    "real": "FLOAT DOUBLE DECIMAL Float32 Float64 float double halffloat",
    "boolean": "BOOLEAN Bool bool",
}
_FAMILY = {name: family for family, names in _FAMILIES.items() for name in names.split()}
_HARMLESS = {("integer", "real"), ("boolean", "integer"), ("boolean", "real"), ("integer", "boolean")}
"""(held by the source, declared) that lose nothing worth telling."""


@dataclass(frozen=True, slots=True)
class SourceState:
    """The source of one view, as known at the cutoff. Times are microseconds."""

    view: str
    rows: int
    in_window: int
    """Rows of the training window."""
    newest: int | None
    """Event time of the newest row."""
    age: int | None
    limit: int | None
    """Age beyond which it is stale; None when nothing says."""
    limit_from: str
    """Where the limit comes from, in words."""
    late: int
    """Rows of the window known more than `audit.late_after` after their event."""
    delays: tuple[int, int, int]
    """Between event and known in the window: median, 95th percentile, largest."""
    covered: float
    """Share of the frame's rows with any feature of the view; a count of 0 is none."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def read_sources(
    definitions: Definitions,
    session: Session,
    columns: Sequence[Column],
    limits: Audit,
    *,
    start: int,
    cutoff: int,
) -> list[SourceState]:
    """Ask each view's source.

    Args:
        definitions: the views.
        session: reads their files.
        columns: of the frame, for the share of rows that a view covers.
        limits: of the task.
        start: of the training window, microseconds.
        cutoff: its end; rows known later do not exist.

    Raises:
        AsofError: a source that is not there, or lacks a column.
    """
    asked: dict[tuple[str, str, str | None, int], tuple[Any, ...]] = {}
    by_feature: dict[str, list[Column]] = {}
    for column in columns:
        by_feature.setdefault(feature_of(column.name), []).append(column)
    states = []
    for view in definitions.views:
        source, scan = view.source, session.scan(view.source)
        key = (source.path, source.timestamp, source.created, id(source.transform))
        if key not in asked:
            late_after = limits.late_after // _MICROSECOND
            asked[key] = _one(session, _summary_sql(scan, start, cutoff, late_after))
        rows, newest, in_window, late, *delays = asked[key]
        limit, because = _limit(view, limits, session, scan, start, cutoff)
        states.append(
            SourceState(
                view=view.name,
                rows=rows,
                in_window=in_window,
                newest=newest,
                age=None if newest is None else cutoff - newest,
                limit=limit,
                limit_from=because,
                late=late,
                delays=(int(delays[0] or 0), int(delays[1] or 0), int(delays[2] or 0)),
                covered=_covered(view, [c for f in definitions.features_of(view.name) for c in by_feature.get(f, ())]),
            )
        )
    return states


def _rows_sql(scan: Scan, cutoff: int) -> str:
    source = scan.source
    event = scan.micros(source.timestamp, "timestamp field")
    known = event
    if source.created:
        known = f"greatest({event}, {scan.micros(source.created, 'created timestamp column')})"
    return (
        f"select {event} as event, {known} as known from {scan.between(None, cutoff)} s "
        f"where {scan.bound(source.timestamp, '<', cutoff + 1)} and {known} <= {cutoff}"
    )


def _summary_sql(scan: Scan, start: int, cutoff: int, late_after: int) -> str:
    inside = f"filter (event >= {start})"
    return (
        f"select count(*), max(event), count(*) {inside}, "
        f"count(*) filter (event >= {start} and known - event > {late_after}), "
        f"median(known - event) {inside}, quantile_disc(known - event, 0.95) {inside}, max(known - event) {inside} "
        f"from ({_rows_sql(scan, cutoff)})"
    )


def _limit(view: View, limits: Audit, session: Session, scan: Scan, start: int, cutoff: int) -> tuple[int | None, str]:
    if view.name in limits.stale_after:
        return limits.stale_after[view.name] // _MICROSECOND, "audit.stale_after"
    if view.is_windowed:
        bounded = view.reach if view.reach < cutoff else 0
        return bounded or None, "its longest window" if bounded else ""
    if view.ttl:
        return _TTLS * view.ttl, f"{_TTLS} TTLs"
    gaps = (
        f"select count(*), max(gap) from (select event - lag(event) over (order by event) as gap from "
        f"(select distinct event from ({_rows_sql(scan, cutoff)}) where event >= {start}))"
    )
    events, longest = _one(session, gaps)
    if events < _LEAST_EVENTS:
        return None, ""
    return _GAPS * longest, f"{_GAPS} times the longest gap in the window"


def _covered(view: View, columns: Sequence[Column]) -> float:
    counts = {window.feature.name for window in view.windows if window.function in _COUNTS}
    if not columns:
        return 1.0  # only read by an on-demand view: its own features tell
    something = np.zeros(len(columns[0].missing), bool)
    for column in columns:
        with np.errstate(invalid="ignore"):
            something |= column.values > 0 if column.name in counts else ~column.missing
    return float(something.mean())


def source_findings(states: Sequence[SourceState], limits: Audit) -> Iterator[Finding]:
    """Sources that stopped, come late, or have nothing for most rows."""
    for state in states:
        if state.age is None:
            evidence = "its source has no row known at the cutoff"
            yield Finding("stale", state.view, "blocking", evidence, "land its data, or move the cutoff")
        elif state.limit is not None and state.age > state.limit:
            evidence = f"its newest row is {_span(state.age)} old, more than {_span(state.limit)} ({state.limit_from})"
            action = "repair the source, or end the window before it stopped; audit.stale_after allows more"
            yield Finding("stale", state.view, "blocking", evidence, action)
        share = state.late / state.in_window if state.in_window else 0.0
        if share > limits.max_late:
            evidence = (
                f"{share:.1%} of {state.in_window:,} rows became known more than {show_duration(limits.late_after)} "
                f"after their event; median {_span(state.delays[0])}, longest {_span(state.delays[2])}"
            )
            action = (
                "serving will not have them either; a longer window, or a view of what is known early, suffers less"
            )
            yield Finding("late", state.view, "warning", evidence, action)
        if state.covered < limits.min_coverage:
            severity: Severity = "warning" if state.covered else "blocking"
            evidence = f"{state.covered:.1%} of rows have any feature of it, {limits.min_coverage:.0%} are asked"
            action = "check its join key against the spine's, its TTL, and how far back its source reaches"
            yield Finding("coverage", state.view, severity, evidence, action)


def type_findings(definitions: Definitions, arrived: Mapping[str, str], session: Session) -> Iterator[Finding]:
    """Features whose values are of another type than declared: in their source, or as they came."""
    declared = {feature.name: feature.declared for feature in definitions.features}
    for view in definitions.views:
        scan = session.scan(view.source)
        for feature in () if view.is_windowed else view.features:
            if feature.name in declared and feature.name in scan.sql_types:
                yield from _source_type(scan, feature.name, declared[feature.name], session)
    for name, came in arrived.items():
        want, found = _FAMILY.get(declared.get(name, "")), _FAMILY.get(came)
        if want and found and "text" in (want, found) and want != found:
            evidence = f"declared {declared[name]}, it came as {came}"
            yield Finding("type", name, "blocking", evidence, "make its transformation give what its schema says")


def _source_type(scan: Scan, name: str, declared: str, session: Session) -> Iterator[Finding]:
    stored = scan.sql_types[name]
    found, want = _FAMILY.get(stored.partition("(")[0]), _FAMILY.get(declared)
    if not found or not want or found == want or (found, want) in _HARMLESS:
        return
    column = scan.require(name, "feature")
    evidence = f"declared {declared}, its source holds {stored}"
    if (found, want) == ("real", "integer"):
        [cut] = _one(session, f"select count(*) filter ({column} <> trunc({column})) from {scan.relation} s")
        if cut:
            lost = f"{evidence}: {cut:,} values lose their fraction"
            yield Finding("type", name, "blocking", lost, "declare it Float64, or round it in the source")
        else:
            yield Finding("type", name, "info", f"{evidence}, all whole", "declare what the source holds")
        return
    yield Finding("type", name, "blocking", evidence, "declare what the source holds, or convert it there")


def _one(session: Session, sql: str) -> tuple[Any, ...]:
    return tuple(column[0].as_py() for column in session.arrow(sql).columns)


def _span(micros: int) -> str:
    return show_duration(timedelta(seconds=micros // 1_000_000))
