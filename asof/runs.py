"""Rows found by key while more are added all the time: sorted runs in memory, as in a log-structured merge tree.

What is added is a run of its own. Runs are merged into one of about twice the size, so that there are few; what no
longer matters is left out on the way. A merge of many rows is another thread's work: nobody who adds or asks waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from asof.timeline import Ints, consecutive

Hashes = NDArray[np.uint64]
Mask = NDArray[np.bool_]

ROWS_AT_ONCE = 1 << 16
"""Rows that are merged while somebody waits; more are merged in another thread."""


def hashes_of(rows: pa.Table) -> Hashes:
    """A hash of each row; equal rows have one, in this process."""
    return pl.DataFrame(rows).hash_rows().to_numpy()


@dataclass(frozen=True)
class Run:
    """Rows in the order of their keys' hashes; those of one key in the order they came."""

    rows: pa.RecordBatch
    key: Hashes
    """Of each row's key, ascending."""
    named: tuple[str, ...]
    """The key columns."""
    sure: bool
    """Whether the rows with one hash are of one key."""

    @classmethod
    def of(cls, rows: pa.Table, key: Hashes, named: tuple[str, ...]) -> Run:
        """A run of rows in any order, the hashes of their keys, and the key columns."""
        order = np.argsort(key, kind="stable")  # finds what is sorted already, as in runs that are merged
        batch, key = _batch(rows).take(pa.array(order)), key[order]
        sure = not (changes(batch, named) & (key[1:] == key[:-1])).any()
        return cls(batch, key, named, sure)

    def __len__(self) -> int:
        return len(self.key)

    def look_up(self, keys: Hashes) -> tuple[Ints, Ints]:
        """The rows of some keys, each hash given once: their places, and how many there are of each key."""
        first, end = (np.searchsorted(self.key, keys, side) for side in ("left", "right"))
        return consecutive(first, end - first), end - first


def changes(rows: pa.RecordBatch, columns: Sequence[str]) -> Mask:
    """Of each row but the first whether it differs from the one before it in some of the columns."""
    differs = np.zeros(max(rows.num_rows - 1, 0), bool)
    for name in columns:
        before, after = rows[name].slice(0, len(differs)), rows[name].slice(1)
        # Unequal; or, where that cannot be said, null in one of them alone.
        unequal = pc.coalesce(pc.not_equal(before, after), pc.xor(before.is_null(), after.is_null()))
        differs |= unequal.to_numpy(zero_copy_only=False)
    return differs


@dataclass(frozen=True)
class _Merge:
    """Runs that another thread makes one of."""

    first: int
    end: int
    """One past the last of them."""
    merged: Future[tuple[Run, pa.RecordBatch]]


class Runs:
    """Runs of rows of one schema.

    Args:
        first: the first of them.
        matters: of rows in a run's order and the hashes of their keys, which may be asked about at a moment or later.
    """

    def __init__(self, first: Run, matters: Callable[[pa.RecordBatch, Hashes, int], Mask]) -> None:
        self._runs = [first]
        self._matters = matters
        self._under_way: _Merge | None = None
        self._other = ThreadPoolExecutor(1)  # starts no thread before it is given work

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    @property
    def schema(self) -> pa.Schema:
        """Of the rows."""
        return self._runs[0].rows.schema

    def all(self) -> pa.Table:
        """All rows."""
        return pa.Table.from_batches([run.rows for run in self._runs])

    def rows_of(self, keys: Hashes, columns: list[str]) -> list[pa.RecordBatch]:
        """Some columns of the rows of some keys, each hash given once; keys that share a hash are not told apart."""
        return [run.rows.select(columns).take(pa.array(run.look_up(keys)[0])) for run in self._runs]

    def hold(self, run: Run) -> None:
        """Add rows of the same schema as they are."""
        self._runs.append(run)

    def add(self, run: Run, now: int) -> list[pa.RecordBatch]:
        """Add rows, and merge what has become due.

        Args:
            run: of the same schema.
            now: microseconds; nobody will ask about an earlier moment.

        Returns:
            Rows that were left out because they no longer matter.
        """
        left_out = self._finished()
        self._runs.append(run)
        busy = self._under_way
        first, rows = len(self._runs) - 1, len(run)
        while first > (busy.end if busy else 0):
            before = len(self._runs[first - 1])
            if before > rows or (busy and before + rows > ROWS_AT_ONCE):
                break
            first, rows = first - 1, rows + before
        due = self._runs[first:]
        if len(due) > 1 and rows <= ROWS_AT_ONCE:
            merged, dropped = _merged(due, self._matters, now)
            self._runs[first:] = [merged]
            left_out.append(dropped)
        elif len(due) > 1:
            work = self._other.submit(_merged, due, self._matters, now)
            self._under_way = _Merge(first, len(self._runs), work)
        return left_out

    def _finished(self) -> list[pa.RecordBatch]:
        """Put the other thread's run in the place of those it is made of, if it is there; what that left out."""
        if self._under_way is None or not self._under_way.merged.done():
            return []
        done, self._under_way = self._under_way, None
        merged, dropped = done.merged.result()
        self._runs[done.first : done.end] = [merged]
        return [dropped]


def _merged(
    runs: Sequence[Run], matters: Callable[[pa.RecordBatch, Hashes, int], Mask], now: int
) -> tuple[Run, pa.RecordBatch]:
    """One run of what still matters, and the rows that do not."""
    rows = pa.Table.from_batches([each.rows for each in runs])
    run = Run.of(rows, np.concatenate([each.key for each in runs]), runs[0].named)
    kept = matters(run.rows, run.key, now)
    if kept.all():
        return run, run.rows.slice(0, 0)
    return replace(run, rows=run.rows.filter(pa.array(kept)), key=run.key[kept]), run.rows.filter(pa.array(~kept))


def _batch(rows: pa.Table) -> pa.RecordBatch:
    whole = rows.combine_chunks().to_batches()
    return whole[0] if whole else pa.RecordBatch.from_pylist([], schema=rows.schema)


class HashSet:
    """Hashes, to be found among: sorted arrays, of which two of about one size are made one."""

    def __init__(self, hashes: Hashes) -> None:
        self._sorted = [np.unique(hashes)]

    def add(self, hashes: Hashes) -> None:
        """Add hashes, which may be there already."""
        self._sorted.append(np.unique(hashes))
        while len(self._sorted) > 1 and len(self._sorted[-2]) <= len(self._sorted[-1]):
            both = np.concatenate([self._sorted.pop(-2), self._sorted.pop()])
            self._sorted.append(np.sort(both, kind="stable"))  # merges the two rather than sort anew

    def holds_any(self, hashes: Hashes) -> bool:
        """Whether one of them is there."""
        return any(_holds_any(part, hashes) for part in self._sorted if len(part))


def _holds_any(part: Hashes, hashes: Hashes) -> bool:
    place = np.minimum(np.searchsorted(part, hashes), len(part) - 1)
    return bool((part[place] == hashes).any())
