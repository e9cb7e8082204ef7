"""The writing side of the prediction log: many requests, one committing thread, one segment file a replica.

A request's rows are on disk before its answer goes out. Whatever waits when the disk becomes free is committed
together, so a lone request never waits for company and a crowd shares one synchronisation.

A writer holds an exclusive lock on `<segment>.lock` as long as it lives. The operating system frees the lock of a
killed writer, so the next start sees which segments are orphans and compacts them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import IO

from contracts.errors import SkewlessError
from contracts.predictions import ANSWERED_VARIANTS, PredictionRow, append, compact, open_segment

_log = logging.getLogger(__name__)
Features = tuple[tuple[str, str], ...]
"""(name, kind) of a model's inputs, in its order: the schema of a segment."""


class Overloaded(SkewlessError, RuntimeError):
    """More rows wait to be logged than the writer accepts; the caller should come back later."""


class LogUnavailable(SkewlessError, OSError):
    """The rows could not be committed, so nothing may be answered."""


@dataclass(frozen=True, slots=True)
class LoggedAnswer:
    """What an earlier request of the same id was answered, row by row."""

    position: int
    case_id: str | None
    inputs: bytes
    score: float
    decision: int
    variant: str
    version: int
    degraded: str


@dataclass(slots=True)
class LogCounters:
    """What became of the rows, since this writer started. Read without a lock: each is one integer."""

    answered: int = 0
    """Caller-facing rows committed."""
    shadow: int = 0
    repeated: int = 0
    """Requests whose rows an earlier request of the same id had logged."""
    failed: int = 0
    """Rows that could not be committed; their requests were refused."""
    waiting: int = 0
    commits: int = 0


@dataclass(slots=True)
class _Entry:
    rows: Sequence[PredictionRow]
    features: Features
    answered: int
    once: bool
    done: Future[bool]


@dataclass(slots=True)
class _Segment:
    path: Path
    day: date
    connection: sqlite3.Connection
    lock: IO[bytes]
    rows: int = 0


class LogWriter:
    """Appends to one task's prediction log. Thread-safe.

    Args:
        folder: the task's prediction log.
        started: names the segments, so that they sort by time.
        most_waiting: rows that may wait for the disk before `submit` refuses.
        segment_rows: a segment with as many rows is closed, compacted and followed by a new one; so is yesterday's.
    """

    def __init__(
        self, folder: Path, *, started: datetime, most_waiting: int = 20_000, segment_rows: int = 500_000
    ) -> None:
        self.counters = LogCounters()
        self._folder = folder
        self._name = f"{started:%Y%m%dT%H%M%SZ}-{os.getpid()}"
        self._most_waiting = most_waiting
        self._segment_rows = segment_rows
        self._segments: dict[Features, _Segment] = {}
        self._pending: list[_Entry] = []
        self._wake = threading.Condition()
        self._closed = False
        self._compactor = ThreadPoolExecutor(1, thread_name_prefix="log-compactor")
        self._orphans = self._compactor.submit(compact_orphans, folder)
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def submit(
        self, rows: Sequence[PredictionRow], features: Features, *, answered: int, once: bool = False
    ) -> Future[bool]:
        """Queue the rows of one request.

        Args:
            rows: in the order of `features`.
            features: the schema of the rows' vectors.
            answered: how many of them go out to the caller.
            once: look for an earlier request of the same id first, and log nothing when there was one.

        Returns:
            Resolves when the rows are on disk: True, or False when an earlier request had logged them. Raises
            LogUnavailable when they could not be committed.

        Raises:
            Overloaded: too many rows wait, or the writer is closed.
        """
        entry = _Entry(rows, features, answered, once, Future())
        with self._wake:
            if self._closed:
                raise Overloaded("The prediction log is closing.", hint="ask again; another replica will answer.")
            if self.counters.waiting + len(rows) > self._most_waiting:
                raise Overloaded(
                    f"{self.counters.waiting} rows wait for the prediction log; it takes {self._most_waiting}.",
                    hint="ask again after the time in Retry-After.",
                )
            self._pending.append(entry)
            self.counters.waiting += len(rows)
            self._wake.notify()
        return entry.done

    def is_alive(self) -> bool:
        """Whether rows are being committed."""
        return self._thread.is_alive()

    def find(self, request_id: str) -> list[LoggedAnswer]:
        """What an earlier request of this id was answered by this writer; empty when there was none."""
        query = (
            "select position, case_id, inputs, score, decision, variant, version, degraded from predictions "
            "where request_id = ? and variant in (?, ?) order by position"
        )
        for segment in list(self._segments.values()):
            with sqlite3.connect(f"file:{segment.path}?mode=ro", uri=True, timeout=20) as reader:
                found = reader.execute(query, (request_id, *ANSWERED_VARIANTS)).fetchall()
            reader.close()
            if found:
                return [LoggedAnswer(*row) for row in found]
        return []

    def close(self) -> None:
        """Commit what waits, then close and compact the segments. Repeating it does nothing."""
        with self._wake:
            if self._closed:
                return
            self._closed = True
            self._wake.notify()
        self._thread.join()
        for segment in self._segments.values():
            self._retire(segment)
        self._segments.clear()
        self._compactor.shutdown(wait=True)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._pending and not self._closed:
                    self._wake.wait()
                if not self._pending:
                    return
                entries, self._pending = self._pending, []
            self._commit(entries)
            with self._wake:
                self.counters.waiting -= sum(len(entry.rows) for entry in entries)

    def _commit(self, entries: list[_Entry]) -> None:
        by_schema: dict[Features, list[_Entry]] = {}
        seen: set[str] = set()
        for entry in entries:
            request_id = entry.rows[0].request_id
            try:
                repeated = entry.once and (request_id in seen or self._holds(request_id))
            except sqlite3.Error as error:
                self._refuse(entry, error)
                continue
            seen.add(request_id)
            if repeated:
                self.counters.repeated += 1
                entry.done.set_result(False)
            else:
                by_schema.setdefault(entry.features, []).append(entry)
        for features, group in by_schema.items():
            self._write(features, group)

    def _write(self, features: Features, group: list[_Entry]) -> None:
        rows = [row for entry in group for row in entry.rows]
        answered = sum(entry.answered for entry in group)
        try:
            segment = self._segment(features, rows[0].answered_at.date())
            append(segment.connection, rows, answered=answered)
        except Exception as error:  # whatever it is, the callers must hear that nothing was logged
            if len(group) > 1:  # one request's rows may be at fault: the others deserve their own try
                for entry in group:
                    self._write(features, [entry])
            else:
                self._refuse(group[0], error)
            return
        segment.rows += len(rows)
        self.counters.commits += 1
        self.counters.answered += answered
        self.counters.shadow += len(rows) - answered
        for entry in group:
            entry.done.set_result(True)

    def _refuse(self, entry: _Entry, error: Exception) -> None:
        self.counters.failed += len(entry.rows)
        _log.error("prediction log %s: %s", self._folder, error)
        refusal = LogUnavailable(
            f"The prediction log {self._folder} cannot be written: {error}.",
            hint="free disk space or make the folder writable; nothing is answered unlogged.",
        )
        refusal.__cause__ = error
        entry.done.set_exception(refusal)

    def _holds(self, request_id: str) -> bool:
        query = "select 1 from predictions where request_id = ? and variant in (?, ?) limit 1"
        return any(
            segment.connection.execute(query, (request_id, *ANSWERED_VARIANTS)).fetchone() is not None
            for segment in self._segments.values()
        )

    def _segment(self, features: Features, day: date) -> _Segment:
        current = self._segments.get(features)
        if current is not None and current.day >= day and current.rows < self._segment_rows:
            return current
        path = self._folder / f"{self._name}-{secrets.token_hex(4)}.sqlite"
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        if lock is None:
            raise OSError(f"{path} is locked by another writer")
        try:
            opened = _Segment(path, day, open_segment(path, features), lock)
        except BaseException:
            _unlock(path, lock)
            raise
        self._segments[features] = opened
        if current is not None:
            self._retire(current)
        return opened

    def _retire(self, segment: _Segment) -> None:
        segment.connection.close()
        self._compactor.submit(_compact, segment.path, segment.lock)


def compact_orphans(folder: Path) -> int:
    """Compact the segments whose writer is gone; returns how many."""
    done = 0
    for path in sorted(folder.glob("*.sqlite")):
        lock = _lock(path)
        if lock is not None:
            done += _compact(path, lock)
    return done


def _compact(path: Path, lock: IO[bytes]) -> bool:
    """Compact a segment that is locked by us; what cannot be compacted stays as it is and is still read."""
    try:
        if not path.exists():  # another starter did it between our look and our lock
            return False
        compact(path)
        return True
    except Exception:
        _log.exception("segment %s stays uncompacted", path)
        return False
    finally:
        _unlock(path, lock)


def _lock(path: Path) -> IO[bytes] | None:
    """The exclusive lock of a segment; None while its writer lives."""
    file = Path(f"{path}.lock").open("ab")  # noqa: SIM115  it is held for the segment's life
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _unlock(path: Path, lock: IO[bytes]) -> None:
    if not path.exists():
        Path(f"{path}.lock").unlink(missing_ok=True)
    lock.close()
