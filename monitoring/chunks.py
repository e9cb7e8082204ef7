"""Cutting rows into chunks: by time, aligned to the Unix epoch, or by number; the reference into chunks alike.

Chunk `k` of width `w` is [epoch + k·w, epoch + (k + 1)·w); of a size `n`, rows k·n to (k + 1)·n in the order they were
asked for. So a chunk is the same chunk in every run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from contracts.operations_policy import Monitoring

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FEWEST = 3
"""Fewer reference chunks than this say nothing of how much chunks vary."""
_FINEST = 16


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of the log."""

    number: int
    start: datetime
    end: datetime
    """Exclusive."""
    rows: slice
    """Where its rows are among those that were cut."""
    content: str
    """Hash of what is in it: a row that comes late changes it."""
    open: bool
    """Whether more rows are to be expected."""

    @property
    def size(self) -> int:
        """Number of rows."""
        return int(self.rows.stop - self.rows.start)


def cut(stamps: np.ndarray, rules: Monitoring, *, as_of: datetime) -> list[Chunk]:
    """The chunks that rows fall into, oldest first.

    Args:
        stamps: when each row was asked about, in microseconds since the epoch, rising.
        rules: width, or number of rows.
        as_of: a chunk that ends later is open; so is one with fewer rows than `rules.chunk_rows`.
    """
    numbers = row_numbers(stamps, rules)
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1)) if len(numbers) else np.array([], np.int64)
    found = []
    for first, last in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)], strict=True):
        number = int(numbers[first])
        if rules.chunk_rows is None:
            start, end = chunk_bounds(number, rules.chunk)
            waiting = end > as_of
        else:
            start, end = (_EPOCH + int(each) * _MICROSECOND for each in (stamps[first], stamps[last - 1] + 1))
            waiting = last - first < rules.chunk_rows
        content = hashlib.blake2b(np.ascontiguousarray(stamps[first:last]).tobytes(), digest_size=12).hexdigest()
        found.append(Chunk(number, start, end, slice(first, last), content, waiting))
    return found


def row_numbers(stamps: np.ndarray, rules: Monitoring) -> np.ndarray:
    """The chunk of each row, rows in the order they were asked for."""
    if rules.chunk_rows is not None:
        return np.arange(len(stamps)) // rules.chunk_rows
    return chunk_numbers(stamps, rules.chunk)


def chunk_numbers(stamps: np.ndarray, width: timedelta) -> np.ndarray:
    """The chunk of each instant, given in microseconds since the epoch."""
    return np.asarray(stamps, dtype=np.int64) // (width // _MICROSECOND)


def chunk_bounds(number: int, width: timedelta) -> tuple[datetime, datetime]:
    """Start (inclusive) and end (exclusive) of a chunk."""
    start = _EPOCH + number * width
    return start, start + width


def split_factor(reference: np.ndarray, rows: int, *, min_rows: int) -> int:
    """Into how many parts each reference chunk is dealt so that it is about as small as a chunk of `rows` rows.

    A small sample is far from any distribution, so a chunk may only be compared with chunks of about its own size. The
    factor is a power of two: chunks of similar size share one reference.
    """
    _, counts = np.unique(reference, return_counts=True)
    large = counts[counts >= min_rows]
    usual = float(np.median(large)) if len(large) else float(len(reference))
    return int(2 ** round(np.log2(np.clip(usual / max(rows, 1), 1, _FINEST))))


def deal_reference(numbers: np.ndarray, factor: int, *, min_rows: int) -> np.ndarray | None:
    """Chunks of the reference rows, -1 for rows that belong to none.

    Every time chunk with at least `min_rows` rows is dealt at random (seeded) into `factor` parts, so that each part
    still holds the whole span of time. If that leaves fewer than three chunks, the rows are cut in their order into
    chunks of `min_rows` instead.

    Args:
        numbers: the time chunk of each row, rows in order of time.
        factor: from `split_factor`.
        min_rows: the least rows of a time chunk.

    Returns:
        An array as long as `numbers`, or None when there are too few rows for three chunks.
    """
    kinds, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    large = counts >= min_rows
    if large.sum() * factor >= _FEWEST:
        dealt = np.full(len(numbers), -1, dtype=np.int64)
        random = np.random.default_rng(0)
        for kind in np.flatnonzero(large):
            rows = np.flatnonzero(inverse == kind)
            dealt[random.permutation(rows)] = kind * factor + np.arange(len(rows)) % factor
        return dealt
    parts = len(numbers) // min_rows
    if parts < _FEWEST or not len(kinds):
        return None
    return np.arange(len(numbers)) * parts // len(numbers)
