"""Plain views: the source row each question sees, by searching sorted arrays or by DuckDB's ASOF join.

Both ways follow the rule of `asof.latest`. The first reads the rows of the asked keys and searches them, some keys at a
time where there are many rows: no join, no sort of the questions. It steps back when one key has too many rows, or when
rows tie in everything but their values, which SQL compares for any type.

Grain: R = one source row, Q = one question (key, time).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from asof import latest
from asof.definition import View
from asof.source import Session
from asof.timeline import FOREVER

Ints = NDArray[np.int64]

CELLS_IN_MEMORY = 1 << 26
"""Rows times columns searched at once (about half a GB, and as much again to sort them)."""


@dataclass(frozen=True)
class Newest:
    """What each question sees."""

    rows: pa.Table
    """Source rows, a column per feature asked for."""
    place: Ints
    """Row of each question (grain Q), -1 where nothing was known."""
    event: Ints
    """Event time of that row, microseconds (grain Q)."""

    def repeated(self, which: Ints) -> Newest:
        """The same for whoever asks these questions."""
        return Newest(self.rows, self.place[which], self.event[which])

    def alone(self) -> Newest:
        """The same without the rows that nobody sees."""
        found = np.flatnonzero(self.place >= 0)
        place = np.full(len(self.place), -1, np.int64)
        place[found] = np.arange(len(found))
        return Newest(self.rows.take(pa.array(self.place[found])).combine_chunks(), place, self.event)


def search(view: View, code: Ints, at: Ints, keys: str, session: Session, since: int | None) -> Newest | None:
    """The newest row known at each question, by binary search; None when this way does not fit the rows.

    Args:
        view: a plain view.
        code: key of each question (grain Q).
        at: moment of each question, microseconds.
        keys: table (code, k0, ...) in the session.
        session: reads the source.
        since: leave out events before it, microseconds; None for all.

    Raises:
        EngineFailure: DuckDB gave up.
    """
    width = len(view.features) + 3
    seen = _search(view, code, at, keys, session, since, CELLS_IN_MEMORY // width)
    if not isinstance(seen, TooMany):
        return seen
    # A part of the keys at a time: each part reads the source again, and memory stays the same.
    parts = []
    for first, last in _parts(view, code, at, keys, session, since, CELLS_IN_MEMORY // width):
        asked = np.flatnonzero((code >= first) & (code <= last))
        some = f"(select * from {keys} where code between {first} and {last})"
        part = _search(view, code[asked], at[asked], some, session, since, CELLS_IN_MEMORY // width)
        if part is None or isinstance(part, TooMany):
            return None
        parts.append((asked, part.alone()))
    return _together(parts, len(code))


class TooMany:
    """There are more rows than are searched at once."""


def _search(
    view: View, code: Ints, at: Ints, keys: str, session: Session, since: int | None, limit: int
) -> Newest | TooMany | None:
    names = [feature.name for feature in view.features]
    sql = latest.rows_of(view, session.scan(view.source), keys, names, since=since, until=int(at.max(initial=0)))
    table = session.arrow(latest.some_sql(sql, len(names), limit + 1))
    if table.num_rows > limit:
        return TooMany()
    row_code = table["code"].to_numpy()
    event = table["event"].to_numpy()
    known = table["known"].to_numpy()
    axis, asked = _axis(row_code, known, code, at)
    order = np.lexsort((event, axis)) if (known > event).any() else _order(row_code, known, axis)
    axis, event_R = axis[order], event[order]
    kept = np.flatnonzero(event_R == _running_maximum(row_code[order], event_R))
    if len(kept) < len(order):  # a late row behind an event already known never wins
        axis, event_R, order = axis[kept], event_R[kept], order[kept]
    row = _upto(axis, asked) - 1
    found = row >= 0
    found[found] = row_code[order[row[found]]] == code[found]
    row = row[found]
    tied = np.append(False, (axis[1:] == axis[:-1]) & (event_R[1:] == event_R[:-1]))[: len(axis)]
    if tied[row].any():
        return None
    place, times = np.full(len(code), -1, np.int64), np.zeros(len(code), np.int64)
    place[found], times[found] = order[row], event_R[row]
    return Newest(table.drop_columns(["code", "event", "known"]), place, times)


def _parts(
    view: View, code: Ints, at: Ints, keys: str, session: Session, since: int | None, limit: int
) -> Iterator[tuple[int, int]]:
    """Runs of keys (first and last code) with at most `limit` rows together; a key with more is a run of its own."""
    sql = latest.rows_of(view, session.scan(view.source), keys, since=since, until=int(at.max(initial=0)))
    counted = session.arrow(latest.count_sql(sql))
    # Among the keys are those that no question with a time asks about.
    rows = np.zeros(max(int(code.max(initial=0)), int(counted["code"].to_numpy().max(initial=0))) + 1, np.int64)
    rows[counted["code"].to_numpy()] = counted["rows"].to_numpy()
    upto = np.cumsum(rows)
    first = 0
    while first < len(rows):
        before = upto[first - 1] if first else 0
        last = max(int(np.searchsorted(upto, before + limit, "right")) - 1, first)
        yield first, last
        first = last + 1


def _together(parts: list[tuple[Ints, Newest]], count: int) -> Newest:
    place, event = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    before = 0
    for asked, part in parts:
        place[asked] = np.where(part.place >= 0, part.place + before, -1)
        event[asked] = part.event
        before += part.rows.num_rows
    return Newest(pa.concat_tables([part.rows for _, part in parts]), place, event)


def join(view: View, code: Ints, at: Ints, keys: str, session: Session, since: int | None) -> Newest:
    """As `search`, by DuckDB's ASOF join and a second scan for the features of the rows it finds: for any rows.

    Wants each question once, sorted by key and time.
    """
    scan = session.scan(view.source)
    names = [feature.name for feature in view.features]
    until = int(at.max(initial=0))
    points = session.hold("points", pa.table({"row": np.arange(len(code)), "code": code, "at": at}))
    narrow = latest.rows_of(view, scan, keys, since=since, until=until)
    late = view.source.created is not None and session.arrow(latest.late_sql(narrow)).num_rows > 0
    moments = latest.moments_sql(narrow, points, late=late)
    rows = latest.rows_of(view, scan, keys, names, since=since, until=until)
    table = session.arrow(latest.rows_sql(rows, moments, len(names)))
    row = table["row"].to_numpy()
    if table.num_rows > np.count_nonzero(np.bincount(row, minlength=1)):
        declared = [feature.name for feature in view.declared]
        rows = latest.rows_of(view, scan, keys, names + declared, since=since, until=until)
        table = session.arrow(latest.untied_sql(rows, moments, len(names), len(declared)))
        row = table["row"].to_numpy()
    session.release(points)
    place, event = np.full(len(code), -1, np.int64), np.zeros(len(code), np.int64)
    place[row] = np.arange(table.num_rows)
    event[row] = table["event"].to_numpy()
    return Newest(table.drop_columns(["row", "event"]), place, event)


def _axis(row_code: Ints, known: Ints, code: Ints, at: Ints) -> tuple[Ints, Ints]:
    """(key, time) of rows and of questions as one ascending number each."""
    first = min(int(known.min(initial=0)), int(at.min(initial=0)))
    span = max(int(known.max(initial=0)), int(at.max(initial=0))) - first + 1
    if (int(code.max(initial=0)) + 1) * span < FOREVER:
        return row_code.astype(np.int64) * span + (known - first), code * span + (at - first)
    # Too many keys over too long a time for 64 bits: count the different times instead of the microseconds.
    times, rank = np.unique(known, return_inverse=True)
    asked = np.searchsorted(times, at, "right") - 1
    return row_code.astype(np.int64) * (len(times) + 1) + rank + 1, code * (len(times) + 1) + asked + 1


def _order(code: NDArray[np.integer], known: Ints, axis: Ints) -> Ints:
    """Rows by key and time, in the order they were read where both are equal."""
    if (known[1:] >= known[:-1]).all() and code.max(initial=0) < 1 << 16:
        # Files are mostly written in time order: only keys are left to sort, and 16 bits sort quickly.
        return np.argsort(code.astype(np.uint16), kind="stable")
    return np.argsort(axis, kind="stable")


def _upto(axis: Ints, asked: Ints) -> Ints:
    """How many of the ascending numbers are at most each asked one."""
    # Searched in order, neighbours share their way through memory: a sixth of the time in ten million rows.
    order = np.argsort(asked)
    count = np.empty(len(asked), np.int64)
    count[order] = np.searchsorted(axis, asked[order], "right")
    return count


def _running_maximum(code: NDArray[np.integer], values: Ints) -> Ints:
    """The largest value of each row's key so far; keys ascending."""
    if (np.diff(values) >= 0)[code[1:] == code[:-1]].all():
        return values
    times, rank = np.unique(values, return_inverse=True)
    offset = code.astype(np.int64) * len(times)
    return times[np.maximum.accumulate(offset + rank) - offset]
