"""Plain views: the source row each question sees, as sorted arrays where they are small, by DuckDB where they are not.

Both ways follow the rule of `asof.latest`. The first reads the rows of the asked keys once and searches them: no join,
no second scan. It steps back when there are too many rows, or when rows tie in everything but their values, which SQL
compares for any type.

Grain: R = one source row, Q = one question (key, time).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from asof import latest
from asof.definition import View
from asof.source import Session
from asof.timeline import FOREVER

Ints = NDArray[np.int64]

CELLS_IN_MEMORY = 1 << 24
"""Rows times columns searched as arrays (about 130 MB); DuckDB, which can spill, joins what is larger."""


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
    names = [feature.name for feature in view.features]
    sql = latest.rows_of(view, session.scan(view.source), keys, names, since=since, until=int(at.max(initial=0)))
    limit = CELLS_IN_MEMORY // (len(names) + 3)
    table = session.arrow(latest.some_sql(sql, len(names), limit + 1))
    if table.num_rows > limit:
        return None
    row_code = table["code"].to_numpy()
    event = table["event"].to_numpy()
    known = table["known"].to_numpy()
    axis, asked = _axis(row_code, known, code, at)
    order = np.lexsort((event, axis)) if (known > event).any() else np.argsort(axis, kind="stable")
    axis, event_R = axis[order], event[order]
    newest_so_far = _running_maximum(row_code[order], event_R)
    kept = np.flatnonzero(event_R == newest_so_far)  # a late row behind an event already known never wins
    axis, event_R, order = axis[kept], event_R[kept], order[kept]
    row = np.searchsorted(axis, asked, "right") - 1
    found = row >= 0
    found[found] = row_code[order[row[found]]] == code[found]
    row = row[found]
    tied = np.append(False, (axis[1:] == axis[:-1]) & (event_R[1:] == event_R[:-1]))[: len(axis)]
    if tied[row].any():
        return None
    place, times = np.full(len(code), -1, np.int64), np.zeros(len(code), np.int64)
    place[found], times[found] = order[row], event_R[row]
    return Newest(table.drop_columns(["code", "event", "known"]), place, times)


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


def _running_maximum(code: NDArray[np.integer], values: Ints) -> Ints:
    """The largest value of each row's key so far; keys ascending."""
    if (np.diff(values) >= 0)[code[1:] == code[:-1]].all():
        return values
    times, rank = np.unique(values, return_inverse=True)
    offset = code.astype(np.int64) * len(times)
    return times[np.maximum.accumulate(offset + rank) - offset]
