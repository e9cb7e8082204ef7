"""`as_of`: the value of every feature for every (key, time), from what was knowable at that time.

    with Session() as session:
        answers = as_of(views, spine, session)      # one Answer per view, rows as in the spine

Training calls it with the caller's entity rows, materialization with every live key at a boundary. There is no other
code that computes a feature.

Grain: N = one row of the spine, Q = one distinct question (key, time).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from asof import latest
from asof.definition import Feature, View
from asof.dtypes import cast
from asof.errors import AsofError
from asof.newest import newest_known
from asof.session import Session
from asof.source import ColumnNotFound
from asof.timeline import Distinct
from asof.windows import check_windows, window_features

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


Signature = tuple[tuple[str, str], ...]
"""Columns and types of a view's keys in the spine."""

ROWS_WORTH_A_THREAD = 1 << 14
"""Fewer are numbered and answered in less time than threads take to start."""


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


@dataclass(frozen=True)
class Seen:
    """What the rows that ask (grain A) see of one view."""

    view: View
    asked: Ints | slice
    """Their places in the spine."""
    rows: pa.Table
    """A column per feature."""
    place: Ints
    """The row that each sees, -1 for none."""
    event: Ints
    """Time of that row, or of the window's end, microseconds."""


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
    alike: dict[Signature, View] = {}
    for view in views:
        check(view, session)
        alike.setdefault(_signature(view), view)
    with ThreadPoolExecutor(session.threads) as pool:  # starts no thread before it is given work
        many, several = len(spine.at) >= ROWS_WORTH_A_THREAD, len(views) > 1
        each: Callable[..., Iterator[Any]] = pool.map if many and several else map
        each_column: Callable[..., Iterator[Any]] = pool.map if many and not several else map
        numbered = each(partial(number_keys, spine=spine), alike.values())
        keyed = {
            signature: _keyed(code, keys, session) for signature, (code, keys) in zip(alike, numbered, strict=True)
        }
        # The session reads the next view's rows while the last view's values are put in their places.
        answers: list[Answer] = list(
            each(
                partial(_answer, spine=spine, expire=expire, each_column=each_column),
                _seen(views, spine, keyed, session, since),
            )
        )
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


def number_keys(view: View, spine: Spine) -> tuple[Ints, pa.Table | None]:
    """The number of each row's key (-1 where a part of it is null), and the keys k0, k1, ... by number.

    Raises:
        ColumnNotFound: the spine lacks a key column.
        KeyTypeMismatch: a key cannot be read as the entity's type.
    """
    if not view.keys:
        return np.zeros(len(spine.at), np.int64), None
    return _number(key_columns(view, spine))


def _signature(view: View) -> Signature:
    """The same for views whose keys are numbered alike."""
    return tuple((key.column, str(key.dtype)) for key in view.keys)


def _keyed(code: Ints, keys: pa.Table | None, session: Session) -> Keyed:
    if keys is None:
        return Keyed(code, "", 1)
    table = session.hold("keys", keys.add_column(0, "code", pa.array(np.arange(keys.num_rows), pa.int32())))
    return Keyed(code, table, keys.num_rows)


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
    if pa.types.is_integer(dtype):
        _check_whole(column, name, view)
    try:
        return cast(column, dtype, f"entity rows, key {name!r}")
    except AsofError as error:
        raise KeyTypeMismatch(
            f"View {view.name!r}: {error.fact}", hint="Give keys in the entity's own type."
        ) from error


def _check_whole(column: pa.ChunkedArray, name: str, view: View) -> None:
    """Refuse fractions where keys are whole numbers, and floats so large that some of them share one: both would be
    answered with the features of another key. A column of whole numbers with nulls is one of floats in pandas."""
    if not (pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        return
    finite = column if pa.types.is_decimal(column.type) else column.filter(pc.is_finite(column))
    broken = finite.filter(pc.not_equal(pc.trunc(finite), finite))
    told = "which is no whole number"
    if not len(broken) and pa.types.is_floating(column.type):
        exact = 2.0 ** (np.finfo(column.type.to_pandas_dtype()).nmant + 1)
        broken = finite.filter(pc.greater_equal(pc.abs(finite), pa.scalar(exact, finite.type)))
        told = f"and from {exact:.0f} on a {column.type} has no place for every whole number"
    if len(broken):
        raise KeyTypeMismatch(
            f"View {view.name!r}: entity rows, key {name!r}: found {broken[0].as_py()} in a column of {column.type}, "
            f"{told}.",
            hint="Give whole numbers; in pandas, dtype 'Int64' keeps them beside missing ones.",
        )


def _seen(
    views: Sequence[View], spine: Spine, keyed: dict[Signature, Keyed], session: Session, since: int | None
) -> Iterator[Seen]:
    asked: dict[tuple[Signature, int], Questions] = {}
    for view in views:
        signature = _signature(view)
        keys = keyed[signature]
        if (signature, view.every) not in asked:
            asked[signature, view.every] = Questions(spine, keys, view.every)
        questions = asked[signature, view.every]
        if view.is_windowed:
            distinct = questions.distinct
            table = window_features(view, distinct.code, distinct.at, keys.table, keys.count, session)
            yield Seen(view, questions.asked, table, distinct.which, questions.at)
        else:
            newest = newest_known(view, questions.code, questions.at, keys.table, session, since)
            yield Seen(view, questions.asked, newest.rows, newest.places.row, newest.places.event)


def _answer(seen: Seen, spine: Spine, expire: bool, each_column: Callable[..., Iterator[Any]]) -> Answer:
    view = seen.view
    index, times = seen.place, seen.event
    if not isinstance(seen.asked, slice):
        index, times = np.full(len(spine.at), -1, np.int64), np.zeros(len(spine.at), np.int64)
        index[seen.asked], times[seen.asked] = seen.place, seen.event
    found = index >= 0
    if expire and view.ttl:
        found &= spine.at - times <= view.ttl
    place = pa.array(index, mask=~found)

    def placed(column: pa.ChunkedArray, feature: Feature) -> pa.ChunkedArray | pa.Array:
        values = column.combine_chunks().take(place)
        return cast(values, feature.dtype, f"view {view.name!r}, feature {feature.name!r}")

    columns = list(each_column(placed, seen.rows.columns, view.features))
    return Answer(view, pa.table(columns, [f.name for f in view.features]), times, found)
