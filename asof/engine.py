"""`as_of`: the value of every feature for every (key, time), from what was knowable at that time.

    with Session() as session:
        answers = as_of(views, spine, session)      # one Answer per view, rows as in the spine

Training calls it with the caller's entity rows, materialization with every live key at a boundary. There is no other
code that computes a feature.

Grain: N = one row of the spine, Q = one distinct question (key, time).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from asof import latest
from asof.definition import View
from asof.dtypes import cast
from asof.errors import AsofError
from asof.newest import newest_known
from asof.source import ColumnNotFound, Session
from asof.timeline import Distinct
from asof.windows import check_windows, window_features

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class KeyTypeMismatch(AsofError, TypeError):
    """A key column of the spine cannot be read as the entity's type."""


@dataclass(frozen=True)
class Spine:
    """Who is asked about, and when (grain N)."""

    keys: pa.Table
    """At least the views' key columns."""
    at: Ints
    """Microseconds since 1970, UTC."""
    asked: Mask
    """False where the time is missing: such a row gets nulls."""


@dataclass(frozen=True)
class Answer:
    """The features of one view for every row of the spine (grain N)."""

    view: View
    features: pa.Table
    event: Ints
    """Time of the source row (plain view) or window boundary (windowed view), microseconds; where found."""
    found: Mask
    """Whether there is a value to give; a window always has one for a key that is not null."""


@dataclass(frozen=True)
class Keyed:
    """A spine's rows by numbered key."""

    code: Ints
    """Of each row; -1 where a key is null."""
    table: str
    """In the session: (code, k0, k1, ...)."""
    count: int


class Questions:
    """The (key, time) that a spine's rows ask about on a grid.

    Args:
        spine: rows with times.
        keyed: their keys.
        every: microseconds between grid points; 0 for none.
    """

    def __init__(self, spine: Spine, keyed: Keyed, every: int) -> None:
        grid = spine.at - spine.at % every if every else spine.at
        asks = spine.asked & (keyed.code >= 0)
        self.asked = slice(None) if asks.all() else np.flatnonzero(asks)
        """Rows of the spine that ask at all (grain A)."""
        self.code = keyed.code[self.asked]
        self.at = grid[self.asked]

    @cached_property
    def distinct(self) -> Distinct:
        """Each question once."""
        return Distinct.of(self.code, self.at)


def as_of(
    views: Sequence[View], spine: Spine, session: Session, *, expire: bool = True, since: int | None = None
) -> list[Answer]:
    """Evaluate views at the rows of a spine.

    Args:
        views: compiled views.
        spine: keys and times; rows may repeat and come in any order.
        session: reads the sources.
        expire: null what is older than its view's TTL at the row's own time. Materialization says no: there the TTL is
            judged when the value is read.
        since: the caller knows that no event of a plain view before this time (microseconds) is anyone's newest.

    Returns:
        One answer per view; its rows are the spine's, in order.

    Raises:
        ColumnNotFound, NotATimestamp, AggregationTypeMismatch, KeyTypeMismatch: before any row is read.
        EngineFailure: DuckDB gave up.
    """
    # Other processes read the sources themselves, and know nothing of rows that were lent here.
    if session.elsewhere is not None and not any(session.has_lent(view.source) for view in views):
        answers: list[Answer] = session.elsewhere.as_of(views, spine, session, expire=expire, since=since)
        return answers
    return evaluate(views, spine, session, expire=expire, since=since)


def evaluate(
    views: Sequence[View], spine: Spine, session: Session, *, expire: bool = True, since: int | None = None
) -> list[Answer]:
    """`as_of` in this process."""
    keyed: dict[tuple[tuple[str, str], ...], Keyed] = {}
    asked: dict[tuple[object, ...], Questions] = {}
    for view in views:
        check(view, session)
    answers = []
    for view in views:
        signature = tuple((key.column, str(key.dtype)) for key in view.keys)
        if signature not in keyed:
            keyed[signature] = number_keys(view, spine, session)
        keys = keyed[signature]
        if (signature, view.every) not in asked:
            asked[signature, view.every] = Questions(spine, keys, view.every)
        answers.append(_answer(view, spine, keys, asked[signature, view.every], session, expire, since))
    for keys in keyed.values():
        if keys.table:
            session.release(keys.table)
    return answers


def check(view: View, session: Session) -> None:
    """Refuse a view its source cannot feed; reads schemas, and runs the source's Python transformation if it has one.

    Raises:
        ColumnNotFound, NotATimestamp, AggregationTypeMismatch: naming view and column.
    """
    scan = session.scan(view.source)
    latest.rows_of(view, scan, "keys", [] if view.is_windowed else [f.name for f in view.features], until=0)
    if view.is_windowed:
        check_windows(view, scan)


def number_keys(view: View, spine: Spine, session: Session) -> Keyed:
    """Give each distinct key of the spine a number.

    Raises:
        ColumnNotFound: the spine lacks a key column.
        KeyTypeMismatch: a key cannot be read as the entity's type.
    """
    if not view.keys:
        return Keyed(np.zeros(len(spine.at), np.int64), "", 1)
    code, distinct = _number(key_columns(view, spine))
    table = session.hold("keys", distinct.add_column(0, "code", pa.array(np.arange(distinct.num_rows), pa.int32())))
    return Keyed(code, table, distinct.num_rows)


def key_columns(view: View, spine: Spine) -> list[pa.ChunkedArray]:
    """The view's keys in the spine, in the entities' types.

    Raises:
        ColumnNotFound: the spine lacks a key column.
        KeyTypeMismatch: a key cannot be read as the entity's type.
    """
    for key in view.keys:
        if key.column not in spine.keys.column_names:
            raise ColumnNotFound(
                f"View {view.name!r} needs join key {key.column!r}; the entity rows have "
                f"{', '.join(spine.keys.column_names)}.",
                hint="Add the column to the entity rows.",
            )
    return [_key_column(spine.keys[key.column], key.column, key.dtype, view) for key in view.keys]


def _number(columns: list[pa.ChunkedArray]) -> tuple[Ints, pa.Table]:
    """The number of each row's key (-1 where a part of it is null), and the keys k0, k1, ... by number."""
    parts = [column.combine_chunks().dictionary_encode() for column in columns]
    parts = [part.combine_chunks() if isinstance(part, pa.ChunkedArray) else part for part in parts]
    code, places = _codes(parts[0]), [np.arange(len(parts[0].dictionary))]
    for part in parts[1:]:
        # Numbered anew after each part, so that the product of two numbers is within 64 bits.
        more, size = _codes(part), len(part.dictionary)
        both = pa.array(code * size + more, mask=(code < 0) | (more < 0)).dictionary_encode()
        before, last = np.divmod(both.dictionary.to_numpy(), size)
        code, places = _codes(both), [*(place[before] for place in places), last]
    keys = [part.dictionary.take(pa.array(place)) for part, place in zip(parts, places, strict=True)]
    return code, pa.table(keys, [f"k{i}" for i in range(len(keys))])


def _codes(column: pa.DictionaryArray) -> Ints:
    return pc.fill_null(column.indices, -1).to_numpy().astype(np.int64)


def _key_column(column: pa.ChunkedArray, name: str, dtype: pa.DataType, view: View) -> pa.ChunkedArray:
    try:
        return cast(column, dtype, f"entity rows, key {name!r}")
    except AsofError as error:
        raise KeyTypeMismatch(
            f"View {view.name!r}: {error.fact}", hint="Give keys in the entity's own type."
        ) from error


def _answer(
    view: View, spine: Spine, keyed: Keyed, questions: Questions, session: Session, expire: bool, since: int | None
) -> Answer:
    asked = questions.asked
    if view.is_windowed:
        distinct = questions.distinct
        table = window_features(view, distinct.code, distinct.at, keyed.table, keyed.count, session)
        place, event = distinct.which, questions.at
    else:
        seen = newest_known(view, questions.code, questions.at, keyed.table, session, since)
        table, place, event = seen.rows, seen.place, seen.event
    found = np.zeros(len(spine.at), bool)
    found[asked] = place >= 0
    index, times = np.zeros(len(spine.at), np.int64), np.zeros(len(spine.at), np.int64)
    index[asked], times[asked] = place, event
    if expire and view.ttl:
        found &= spine.at - times <= view.ttl
    features = table.combine_chunks().take(pa.array(index, mask=~found))
    where = f"view {view.name!r}, feature"
    columns = [
        cast(column, f.dtype, f"{where} {f.name!r}") for f, column in zip(view.features, features.columns, strict=True)
    ]
    return Answer(view, pa.table(columns, [f.name for f in view.features]), times, found)
