"""Rows in order of time: searched as they are read, and none put aside.

Files are mostly written as things happen. What a question sees is then among the rows read last, or it is what was the
newest row of its key before them. So few rows are held however many there are, and each is looked at once.

A row that comes behind its time is passed on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from asof.search import Found, Gathered, known_of, search

Ints = NDArray[np.int64]

NEVER = -(1 << 63)

STEPS_BACK = 1 / 64
"""Where more of the rows come far behind the one before them, rows are not in order."""


def seem_ordered(batches: Sequence[pa.RecordBatch]) -> bool:
    """Whether rows are in order of time, if those that several threads read at once each are."""
    rows = pa.Table.from_batches(batches)
    known, code = known_of(rows), rows["code"].to_numpy()
    far = int(known.max() - known.min()) * STEPS_BACK
    back = np.count_nonzero(known[:-1] - known[1:] > far)
    changes = np.count_nonzero(code[:-1] != code[1:])
    # Of rows sorted by key, and by time within a key, few come behind the one before them: where the key changes.
    return bool(back <= len(known) * STEPS_BACK and (back == 0 or changes > 4 * back))


class InOrder:
    """What questions see among the rows that come in order.

    Args:
        code: key of each question (grain Q), at least one.
        at: moment of each question, microseconds.
        like: of such columns as `search` wants.
        threads: as many searches at once.
    """

    def __init__(self, code: Ints, at: Ints, like: pa.RecordBatch, threads: int) -> None:
        self._code, self._at = code, at
        self._threads = threads
        self._keys = np.arange(int(code.max()) + 1)
        self._newest = Found.nothing(like, len(self._keys))
        """The newest row of each key so far."""
        self._seen = Gathered(Found.nothing(like, len(code)))

    def others(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Read all rows, and pass on those that come behind their time.

        Args:
            batches: code, event, known where it may differ from event, and features; at least one.
        """
        until = NEVER
        under_way: deque[tuple[Ints, Future[Found]]] = deque()
        with ThreadPoolExecutor(self._threads) as pool:
            waiting = pool.submit(_Waiting, self._at)
            for rows in batches:
                known = known_of(rows)
                behind = known < until
                if behind.any():
                    yield rows.filter(pa.array(behind))
                    rows, known = rows.filter(pa.array(~behind)), known[~behind]
                until = int(known.max(initial=until))
                asked = waiting.result().before(until)
                under_way.append((asked, pool.submit(self._search, rows, asked, until)))
                if len(under_way) > self._threads:
                    self._put(*under_way.popleft())
            for asked, found in under_way:
                self._put(asked, found)
            asked = waiting.result().rest()
        self._seen.put(asked, Found(self._newest.rows, self._newest.places.of(self._code[asked])))

    @property
    def found(self) -> Found:
        """For all questions, once all rows are read."""
        return self._seen.found

    def _search(self, rows: pa.RecordBatch, asked: Ints, until: int) -> Found:
        # What its newest row is by then is one question more about every key.
        code = np.append(self._code[asked], self._keys)
        at = np.append(self._at[asked], np.full(len(self._keys), until))
        return search(pa.Table.from_batches([rows]), code, at).alone()

    def _put(self, asked: Ints, found: Future[Found]) -> None:
        before, found_places = self._newest, found.result().places.behind(self._newest.rows.num_rows)
        rows = pa.concat_tables([before.rows, found.result().rows])
        if len(asked):
            seen = before.places.of(self._code[asked]).or_newer(found_places.of(slice(len(asked))))
            self._seen.put(asked, Found(rows, seen).alone())
        self._newest = Found(rows, before.places.or_newer(found_places.of(slice(len(asked), None)))).alone()


class _Waiting:
    """Questions in order of time, roughly: exactly is three times the work, and each step compares a few anyway."""

    def __init__(self, at: Ints) -> None:
        self._at = at
        self._first = int(at.min())
        self._bits = max((int(at.max()) - self._first).bit_length() - 16, 0)
        bucket = ((at - self._first) >> self._bits).astype(np.uint16)  # numpy sorts small numbers by counting
        self._order = np.argsort(bucket, kind="stable")
        self._ends = np.cumsum(np.bincount(bucket))
        self._done = 0
        self._left = self._order[:0]

    def before(self, time: int) -> Ints:
        """Places of the questions before a time that were not given yet."""
        bucket = min((time - self._first) >> self._bits, len(self._ends) - 1)
        upto = max(self._done, int(self._ends[bucket]) if bucket >= 0 else 0)
        some = np.append(self._left, self._order[self._done : upto])
        self._done = upto
        early = self._at[some] < time
        self._left = some[~early]
        return some[early]

    def rest(self) -> Ints:
        """Places of those not given yet."""
        return np.append(self._left, self._order[self._done :])
