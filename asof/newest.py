"""Plain views: the source row each question sees, by searching sorted arrays or by DuckDB's ASOF join.

Both ways follow the rule of `asof.latest`. The first reads the rows of the asked keys once and searches them, those of
some keys at a time where there are many: no join, no sort of the questions. Which of the rows wins that tie in all but
their values SQL says, as it compares values of any type. The second is for a key that alone has too many rows.

Grain: R = one source row, Q = one question (key, time).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from asof import latest
from asof.definition import View
from asof.session import Session
from asof.split import Split
from asof.timeline import FOREVER, Distinct, sort_codes

Ints = NDArray[np.int64]

CELLS_AT_ONCE = 1 << 23
"""Rows times columns searched at once; more are split by key first, which costs less than searching far apart."""

CELLS_OF_A_KEY = 1 << 26
"""Rows times columns of one key that are searched at once (about half a GB, and as much again to sort them)."""

PART_BITS = 8
"""Of a key's number: rows are split into two to the power of it."""

ROWS_OF_A_BATCH = 1 << 18

ROWS_AT_HAND = 1 << 15
"""Rows that stay near the processor however they are searched: sorting the questions costs more than it saves."""


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
        """The same with the rows that are seen, once for each question, and no others."""
        found = np.flatnonzero(self.place >= 0)
        place = np.full(len(self.place), -1, np.int64)
        place[found] = np.arange(len(found))
        return Newest(self.rows.combine_chunks().take(pa.array(self.place[found])), place, self.event)


@dataclass(frozen=True)
class Ties:
    """Questions that see several rows, which differ in their values alone (grain T: one such set of rows)."""

    questions: Ints
    """Their places (grain U)."""
    which: Ints
    """The set that each sees (grain U)."""
    code: Ints
    event: Ints
    known: Ints
    """Key and times of the rows in each set (grain T)."""


def newest_known(view: View, code: Ints, at: Ints, keys: str, session: Session, since: int | None) -> Newest:
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
    found, left = search(view, code, at, keys, session, since)
    if len(found) == 1 and not len(left):
        return found[0][1]  # all questions, in order
    if len(left) or not found:
        asked = Distinct.of(code[left], at[left])
        found.append((left, join(view, asked.code, asked.at, keys, session, since).repeated(asked.which)))
    place, event = np.full(len(code), -1, np.int64), np.zeros(len(code), np.int64)
    before = 0
    for some, part in found:
        place[some] = np.where(part.place >= 0, part.place + before, -1)
        event[some] = part.event
        before += part.rows.num_rows
    return Newest(pa.concat_tables([part.rows for _, part in found]), place, event)


def search(
    view: View, code: Ints, at: Ints, keys: str, session: Session, since: int | None
) -> tuple[list[tuple[Ints, Newest]], Ints]:
    """As `newest_known`, by binary search.

    Returns:
        What the questions at some places see, a part at a time; where two parts answer one question, the later holds.
        And the places of the questions about a key with too many rows.
    """
    names = [feature.name for feature in view.features]
    late = view.source.created is not None
    rows = latest.rows_of(view, session.scan(view.source), keys, names, since=since, until=int(at.max(initial=0)))
    batches = session.stream(latest.seen_sql(rows, len(names), late=late), ROWS_OF_A_BATCH)
    last = int(code.max(initial=0))
    found, ties, left = [], [], [np.zeros(0, np.int64)]
    with closing(_by_key(batches, code, np.arange(len(code)), last, session.temp_directory)) as parts:
        for asked, searched in _searched(parts, code, at, session.threads):
            if searched is None:
                left.append(asked)
                continue
            seen, tied = searched
            found.append((asked, seen))
            if len(tied.questions):
                ties.append((asked[tied.questions], tied))
    # Only now: while its batches are read, the session answers nothing else.
    found += [(asked, _untied(view, tied, keys, session)) for asked, tied in ties]
    return found, np.concatenate(left)


def _searched(
    parts: Iterator[tuple[Ints, pa.Table | None]], code: Ints, at: Ints, threads: int
) -> Iterator[tuple[Ints, tuple[Newest, Ties] | None]]:
    """Each part's questions and what they see, in the parts' order; as many at once as there are threads."""

    def work(asked: Ints, table: pa.Table) -> tuple[Newest, Ties]:
        seen, tied = _search(table, code[asked], at[asked])
        return seen.alone(), tied  # the rows may be on disk, and are soon given back

    under_way: deque[tuple[Ints, Future[tuple[Newest, Ties]] | None]] = deque()
    with ThreadPoolExecutor(threads) as pool:  # starts no thread before it is given work
        for asked, table in parts:
            if table is not None and len(asked) == len(code):
                yield asked, _search(table, code, at)
                continue
            under_way.append((asked, None if table is None else pool.submit(work, asked, table)))
            if len(under_way) > threads:
                yield _result(*under_way.popleft())
        while under_way:
            yield _result(*under_way.popleft())


def _result(asked: Ints, work: Future[tuple[Newest, Ties]] | None) -> tuple[Ints, tuple[Newest, Ties] | None]:
    return asked, None if work is None else work.result()


def _by_key(
    batches: Iterator[pa.RecordBatch], code: Ints, asked: Ints, last: int, folder: str | None, shift: int = 0
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


def _search(table: pa.Table, code: Ints, at: Ints) -> tuple[Newest, Ties]:
    row_code, event = table["code"].to_numpy(), table["event"].to_numpy()
    known = table["known"].to_numpy() if "known" in table.column_names else event
    features = table.select([name for name in table.column_names if name not in ("code", "event", "known")])
    if not len(row_code) or not len(code):
        nothing = np.zeros(0, np.int64)
        return Newest(features, np.full(len(code), -1), np.zeros(len(code), np.int64)), Ties(*[nothing] * 5)
    number = _numbering(known, code, at)
    axis, time = number(row_code, known), event
    late = known is not event and bool((known > event).any())
    order = np.lexsort((event, axis)) if late else _order(row_code, known, axis)
    if order is not None:
        axis, time = axis[order], event[order]
    if late:  # a row that becomes known behind an event already known never wins
        assert order is not None
        kept = np.flatnonzero(time == _running_maximum(row_code[order], time))
        axis, time, order = axis[kept], time[kept], order[kept]
    asked, keys = number(code, at), int(code.max()) + 1
    if keys <= len(code):
        row = _upto_by_key(axis, asked, code, number(np.arange(keys), known.max())) - 1
    else:
        row = _upto(axis, asked) - 1
    place = row if order is None else order[row]
    found = (row >= 0) & (row_code[place] == code)
    tied = np.append(False, (axis[1:] == axis[:-1]) & (time[1:] == time[:-1]))
    questions = np.flatnonzero(found & tied[row]) if tied.any() else np.zeros(0, np.int64)
    sets, which = np.unique(place[questions], return_inverse=True)
    ties = Ties(questions, which, row_code[sets], event[sets], known[sets])
    return Newest(features, np.where(found, place, -1), time[row]), ties


def _untied(view: View, ties: Ties, keys: str, session: Session) -> Newest:
    """Of each set of rows the one that wins."""
    names, declared = [feature.name for feature in view.features], [feature.name for feature in view.declared]
    number = np.arange(len(ties.code))
    moments = session.hold(
        "ties", pa.table({"row": number, "code": ties.code, "event": ties.event, "known": ties.known})
    )
    rows = latest.rows_of(
        view,
        session.scan(view.source),
        f"(select * from {keys} where code in (select code from {moments}))",
        names + declared,
        since=int(ties.event.min()),
        until=int(ties.known.max()),
    )
    table = session.arrow(latest.untied_sql(rows, f"select * from {moments}", len(names), len(declared)))
    session.release(moments)
    place = np.empty(len(number), np.int64)
    place[table["row"].to_numpy()] = number
    return Newest(table.drop_columns(["row", "event"]), place[ties.which], ties.event[ties.which])


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


def _numbering(known: Ints, code: Ints, at: Ints) -> Callable[[NDArray[np.integer], Ints], Ints]:
    """What makes keys and times, of rows and of questions, one number each that ascends by key, then by time."""
    first = min(int(known.min()), int(at.min()))
    span = max(int(known.max()), int(at.max())) - first + 1
    if (int(code.max()) + 1) * span < FOREVER:
        return lambda code, time: code.astype(np.int64, copy=False) * span + (time - first)
    # Too many keys over too long a time for 64 bits: count the different times instead of the microseconds.
    times = np.unique(known)
    ranks = len(times) + 1
    return lambda code, time: code.astype(np.int64, copy=False) * ranks + np.searchsorted(times, time, "right")


def _order(code: NDArray[np.integer], known: Ints, axis: Ints) -> Ints | None:
    """Rows by key and time, in the order they were read where both are equal; None when that is their order."""
    if (axis[1:] >= axis[:-1]).all():
        return None
    if (known[1:] >= known[:-1]).all():  # files are mostly written in time order: only keys are left to sort
        return sort_codes(code)
    return np.argsort(axis, kind="stable")


def _upto_by_key(axis: Ints, asked: Ints, code: Ints, ends: Ints) -> Ints:
    """As `_upto`; most see the newest row of their key, which needs no search among the others.

    Args:
        axis: ascending.
        asked: numbers.
        code: key of each.
        ends: of each key a number that none of its rows exceeds.
    """
    upto = np.searchsorted(axis, ends, "right")
    count = upto[code]
    older = np.flatnonzero(asked < axis[upto - 1][code])
    count[older] = _upto(axis, asked[older])
    return count


def _upto(axis: Ints, asked: Ints) -> Ints:
    """How many of the ascending numbers are at most each asked one."""
    if len(axis) <= ROWS_AT_HAND:
        return np.searchsorted(axis, asked, "right")
    # Searched in order, neighbours share their way through memory: a sixth of the time in ten million rows.
    order = np.argsort(asked)
    count = np.empty(len(asked), np.int64)
    count[order] = np.searchsorted(axis, asked[order], "right")
    return count


def _running_maximum(code: NDArray[np.integer], values: Ints) -> Ints:
    """The largest value of each row's key so far; keys ascending."""
    times, rank = np.unique(values, return_inverse=True)
    offset = code.astype(np.int64) * len(times)
    return times[np.maximum.accumulate(offset + rank) - offset]
