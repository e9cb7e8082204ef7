"""The files below a prediction log: who writes which, whose writer is gone, what a request of some id was answered.

A segment's writer holds an exclusive lock on `<segment>.lock` as long as it lives. The operating system frees the lock
of a killed writer, so the next start sees which segments are orphans, and compacts them.
"""

from __future__ import annotations

import fcntl
import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq

from contracts.predictions import ANSWERED_VARIANTS, PredictionRow, append, compact, open_segment

_log = logging.getLogger(__name__)
Features = tuple[tuple[str, str], ...]
"""(name, kind) of a model's inputs, in its order: the schema of a segment."""
OWN_ID = "auto-"
"""Begins the request ids that serving makes itself: nobody can ask under one again."""
_ANSWER = ("position", "case_id", "inputs", "score", "decision", "variant", "version", "quantiles", "degraded")


@dataclass(frozen=True, slots=True)
class LoggedAnswer:
    """One row of what an earlier request of the same id was answered."""

    position: int
    case_id: str | None
    inputs: str
    score: float
    decision: int
    variant: str
    version: int
    quantiles: str
    """JSON."""
    degraded: str
    """Reasons, separated by commas."""


class SegmentLocked(OSError):
    """A segment that another writer holds."""


class Segment:
    """A segment being written by this process; made by `create`. Not thread-safe, except for `answers`."""

    def __init__(self, path: Path, features: Features, day: date, lock: IO[bytes]) -> None:
        self.path = path
        self.day = day
        self.rows = 0
        self._lock = lock
        self._connection = open_segment(path, features)

    @classmethod
    def create(cls, path: Path, features: Features, day: date) -> Segment:
        """Lock and open a new segment. Raises OSError or sqlite3.Error when it cannot be made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        if lock is None:
            raise SegmentLocked(f"{path} is locked by another writer")
        try:
            return cls(path, features, day, lock)
        except BaseException:  # a full disk would be littered with one file for each request that it refuses
            for suffix in ("", "-wal", "-shm", "-journal"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            _unlock(path, lock)
            raise

    def append(
        self, rows: Sequence[PredictionRow], answered: int, *, lost: int = 0, settled: int | None = None
    ) -> None:
        """Commit rows; on disk when this returns. Raises sqlite3.Error when nothing of it was kept.

        The other arguments are those of `contracts.predictions.append`.
        """
        append(self._connection, rows, answered=answered, lost=lost, settled=settled)
        self.rows += len(rows)

    def holds(self, request_id: str) -> bool:
        """Whether a request of this id was answered from here."""
        query = "select 1 from predictions where request_id = ? and variant in (?, ?) limit 1"
        return self._connection.execute(query, (request_id, *ANSWERED_VARIANTS)).fetchone() is not None

    def answers(self, request_id: str) -> list[LoggedAnswer]:
        """What a request of this id was answered."""
        return answers(self.path, request_id)

    def retire(self) -> Orphan:
        """Close the segment; what is left to do is to compact it."""
        self._connection.close()
        return Orphan(self.path, self._lock)


class Orphan:
    """A segment that nobody writes any more, locked by this process until it is compacted."""

    def __init__(self, path: Path, lock: IO[bytes]) -> None:
        self.path = path
        self._lock = lock

    def request_ids(self) -> list[str]:
        """Ids that callers chose, of the requests answered from here."""
        reader = _reader(self.path)
        try:
            query = "select distinct request_id from predictions where request_id not glob ? and variant in (?, ?)"
            return [found for (found,) in reader.execute(query, (f"{OWN_ID}*", *ANSWERED_VARIANTS))]
        finally:
            reader.close()

    def compact(self) -> None:
        """Compact and unlock. What cannot be compacted stays as it is, and is read as it is."""
        try:
            compact(self.path)
        except Exception:
            _log.exception("segment %s stays uncompacted", self.path)
        finally:
            _unlock(self.path, self._lock)


def claim_orphans(folder: Path) -> list[Orphan]:
    """Lock every segment whose writer is gone."""
    found = []
    for path in sorted(folder.glob("*.sqlite")):
        lock = _lock(path)
        if lock is None:
            continue
        if path.exists():
            found.append(Orphan(path, lock))
        else:  # another starter compacted it between our look and our lock
            _unlock(path, lock)
    return found


def expire(folder: Path, keep: timedelta) -> list[Path]:
    """Remove compacted segments whose newest answer is older than `keep` before the newest of all; returns those.

    With a segment go its rows and its part of the account, so what is left adds up as before. Time is the log's own: a
    log that nobody writes any more keeps what it has.
    """
    newest = {path: found for path in folder.glob("*.parquet") if (found := _newest_answer(path)) is not None}
    gone = [path for path, found in newest.items() if found < max(newest.values()) - keep]
    for path in gone:
        path.unlink(missing_ok=True)
    return gone


def _newest_answer(compacted: Path) -> datetime | None:
    """By the file's own statistics; None where it has no rows, or is gone."""
    try:
        metadata = pq.read_metadata(compacted)
    except OSError:
        return None
    column = metadata.schema.names.index("answered_at")
    groups = [metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups)]
    found: list[datetime] = [each.max for each in groups if each is not None and each.has_min_max]
    return max(found, default=None)


def answers(segment: Path, request_id: str) -> list[LoggedAnswer]:
    """What a request of this id was answered, wherever the segment's rows are just now; empty for an unknown id."""
    try:
        reader = _reader(segment)
    except sqlite3.OperationalError:
        reader = None
    if reader is not None:
        try:
            query = (
                f"select {', '.join(_ANSWER)} from predictions "
                "where request_id = ? and variant in (?, ?) order by position"
            )
            found: list[Any] = reader.execute(query, (request_id, *ANSWERED_VARIANTS)).fetchall()
            return [LoggedAnswer(*_decoded(row)) for row in found]
        except sqlite3.OperationalError:  # it was compacted in between
            pass
        finally:
            reader.close()
    rows = pq.read_table(
        segment.with_suffix(".parquet"),
        columns=list(_ANSWER),
        filters=[("request_id", "=", request_id), ("variant", "in", list(ANSWERED_VARIANTS))],
        partitioning=None,
    )
    return sorted((LoggedAnswer(**row) for row in rows.to_pylist()), key=lambda row: row.position)


def _decoded(row: Sequence[Any]) -> list[Any]:
    return [value.decode() if isinstance(value, bytes) else value for value in row]


def _reader(segment: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{segment}?mode=ro", uri=True, timeout=20)


def _lock(segment: Path) -> IO[bytes] | None:
    """The exclusive lock of a segment; None while its writer lives."""
    file = Path(f"{segment}.lock").open("ab")  # noqa: SIM115  held for the segment's life
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _unlock(segment: Path, lock: IO[bytes]) -> None:
    if not segment.exists():
        Path(f"{segment}.lock").unlink(missing_ok=True)
    lock.close()
