"""Plain views: the source row each question sees, by searching sorted arrays or by DuckDB's ASOF join.

Both ways follow the rule of `asof.latest`. The first reads the rows of the asked keys once and searches them. Where
there are many it searches them as they are read, if they come in order of time, and else those of some keys at a time.
The second is for a key that alone has too many rows.

Grain: R = one source row, Q = one question (key, time).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from asof import latest
from asof.definition import View
from asof.in_order import InOrder, seem_ordered
from asof.search import Found, Gathered, Places, search
from asof.session import Session
from asof.split import Split
from asof.timeline import Distinct

Ints = NDArray[np.int64]

CELLS_AT_ONCE = 1 << 23
"""Rows times columns searched at once; more are split by key first, which costs less than searching far apart."""

CELLS_OF_A_KEY = 1 << 26
"""Rows times columns of one key that are searched at once (about half a GB, and as much again to sort them)."""

PART_BITS = 8
"""Of a key's number: rows are split into two to the power of it."""

ROWS_OF_A_BATCH = 1 << 18

ROWS_FOR_A_KEY = 4
"""So many in a batch at least, to search it by itself: the newest row of every key is looked up with each."""


def newest_known(view: View, code: Ints, at: Ints, keys: str, session: Session, since: int | None) -> Found:
    """The newest row known at each question.

    Args:
        view: a plain view.
        code: key of each question (grain Q).
        at: moment of each question, microseconds.
        keys: table (code, k0, ...) in the session; ignored for a view without keys.
        session: reads the source.
        since: leave out events before it, microseconds; None for all.

    Raises:
        EngineFailure: DuckDB gave up.
        SpillFailed: there are many rows, and no room for them on disk.
    """
    names = [feature.name for feature in view.features]
    rows = latest.rows_of(view, session.scan(view.source), keys, names, since=since, until=int(at.max(initial=0)))
    sql = latest.seen_sql(rows, len(names), late=view.source.created is not None)
    found, left = _searched(sql, code, at, session)
    # Only now: while its batches are read, the session answers nothing else.
    if not len(left) and not found.places.tied.any():
        return found
    seen = Gathered(found)
    if found.places.tied.any():
        seen.put(*_untied(view, code, found.places, keys, session))
    if len(left):
        asked = Distinct.of(code[left], at[left])
        joined = join(view, asked.code, asked.at, keys, session, since)
        seen.put(left, Found(joined.rows, joined.places.of(asked.which)))
    return seen.found


def _searched(sql: str, code: Ints, at: Ints, session: Session) -> tuple[Found, Ints]:
    """What is found among the rows, and the places of the questions about a key with too many."""
    with closing(session.stream(sql, ROWS_OF_A_BATCH)) as batches:
        held, cells = [], 0
        for batch in batches:
            held.append(batch)
            cells += batch.num_rows * batch.num_columns
            if cells > CELLS_AT_ONCE:
                break
        else:
            return search(pa.Table.from_batches(held), code, at), np.zeros(0, np.int64)
        few_keys = ROWS_FOR_A_KEY * (int(code.max(initial=0)) + 1) <= ROWS_OF_A_BATCH
        if not (len(code) and few_keys and seem_ordered(held)):
            rows = chain(held, batches)
            del held
            return _found(rows, code, at, session)
    with closing(session.stream(sql, ROWS_OF_A_BATCH, in_order=True)) as batches:
        ordered = InOrder(code, at, batch, session.threads)
        others = ordered.others(batches)
        first = next(others, None)
        if first is None:
            return ordered.found, np.zeros(0, np.int64)
        found, left = _found(chain([first], others), code, at, session)
    both = ordered.found
    places = both.places.or_newer(found.places.behind(both.rows.num_rows))
    return Found(pa.concat_tables([both.rows, found.rows]), places), left


def _found(batches: Iterator[pa.RecordBatch], code: Ints, at: Ints, session: Session) -> tuple[Found, Ints]:
    """As `_searched`, among rows in no order, of one batch at least."""
    first = next(batches)
    seen, left = Gathered(Found.nothing(first, len(code))), [np.zeros(0, np.int64)]
    rows, last, every = chain([first], batches), int(code.max(initial=0)), np.arange(len(code))
    with closing(_by_key(rows, code, every, last, session.temp_directory)) as parts:
        for asked, found in _at_once(parts, code, at, session.threads):
            if found is None:
                left.append(asked)
            else:
                seen.put(asked, found)
    return seen.found, np.concatenate(left)


def _at_once(
    parts: Iterator[tuple[Ints, pa.Table | None]], code: Ints, at: Ints, threads: int
) -> Iterator[tuple[Ints, Found | None]]:
    """Each part's questions and what they see, in the parts' order; as many at once as there are threads."""

    def work(asked: Ints, table: pa.Table) -> Found:
        return search(table, code[asked], at[asked]).alone()  # the rows may be on disk, and are soon given back

    under_way: deque[tuple[Ints, Future[Found] | None]] = deque()
    with ThreadPoolExecutor(threads) as pool:  # starts no thread before it is given work
        for asked, table in parts:
            if table is not None and len(asked) == len(code):
                yield asked, search(table, code, at)  # all there is: the rows stay as they are, however many ask
                continue
            under_way.append((asked, None if table is None else pool.submit(work, asked, table)))
            if len(under_way) > threads:
                yield _result(*under_way.popleft())
        while under_way:
            yield _result(*under_way.popleft())


def _result(asked: Ints, work: Future[Found] | None) -> tuple[Ints, Found | None]:
    return asked, None if work is None else work.result()


def _by_key(
    batches: Iterable[pa.RecordBatch], code: Ints, asked: Ints, last: int, folder: str | None, shift: int = 0
) -> Generator[tuple[Ints, pa.Table | None]]:
    """The rows, those of some keys at a time, with the questions about these; None for one key with too many.

    Args:
        batches: at least one; rows of keys whose last `shift` bits are the same.
        code: key of every question.
        asked: places of the questions about these keys.
        last: the largest key.
        folder: to put rows aside.
        shift: bits.
    """
    alone = last >> shift == 0
    held: list[pa.RecordBatch] = []
    cells = 0
    for batch in batches:
        held.append(batch)
        cells += batch.num_rows * batch.num_columns
        if cells > (CELLS_OF_A_KEY if alone else CELLS_AT_ONCE):
            break
    else:
        yield asked, pa.Table.from_batches(held)
        return
    if alone:
        yield asked, None
        return
    parts = 1 << PART_BITS
    with Split(folder, parts) as split:
        for batch in chain(held, batches):
            split.add(batch, (batch["code"].to_numpy() >> shift) & (parts - 1))
        del held
        part = ((code[asked] >> shift) & (parts - 1)).astype(np.uint8)
        questions = np.split(asked[np.argsort(part, kind="stable")], np.cumsum(np.bincount(part, minlength=parts))[:-1])
        for number, some in enumerate(questions):
            if len(some):
                yield from _by_key(iter(split.part(number)), code, some, last, folder, shift + PART_BITS)
                split.forget()


def _untied(view: View, code: Ints, places: Places, keys: str, session: Session) -> tuple[Ints, Found]:
    """The questions that see several rows, which differ in their values alone, and the row that wins for each."""
    tied = np.flatnonzero(places.tied)
    code, event, known = code[tied], places.event[tied], places.known[tied]
    times = Distinct.of(known - event, event)
    sets = Distinct.of(code, times.which)
    event, known = times.at[sets.at], (times.at + times.code)[sets.at]
    names, declared = [feature.name for feature in view.features], [feature.name for feature in view.declared]
    number = np.arange(len(event))
    moments = session.hold("ties", pa.table({"row": number, "code": sets.code, "event": event, "known": known}))
    rows = latest.rows_of(
        view,
        session.scan(view.source),
        f"(select * from {keys} where code in (select code from {moments}))",
        names + declared,
        since=int(event.min()),
        until=int(known.max()),
    )
    table = session.arrow(latest.untied_sql(rows, f"select * from {moments}", len(names), len(declared)))
    session.release(moments)
    place = np.empty(len(number), np.int64)
    place[table["row"].to_numpy()] = number
    won = Places(place, event, known, np.zeros(len(place), bool))
    return tied, Found(table.drop_columns(["row", "event"]), won.of(sets.which))


def join(view: View, code: Ints, at: Ints, keys: str, session: Session, since: int | None) -> Found:
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
    return Found(table.drop_columns(["row", "event"]), Places(place, event, event, np.zeros(len(place), bool)))
