"""The writing side of the prediction log: many requests, one committing thread.

A request's rows are on disk before its answer goes out; or, where the task prefers that, soon after, and what is lost
meanwhile is counted. Whatever waits when the disk becomes free is committed together, so a lone request never waits for
company and a crowd shares one synchronisation.
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

from contracts.errors import SkewlessError
from contracts.predictions import PredictionRow
from serving.log_account import Account, settle_accounts
from serving.log_segments import Features, LoggedAnswer, Orphan, Segment, answers, claim_orphans, expire

_log = logging.getLogger(__name__)
_GATHER_SECONDS = 0.005
"""How long rows gather that were answered already: to wake the thread for each costs its caller more than the answer's
own computation, and a kill takes no more of them than what comes in as long."""


class Overloaded(SkewlessError, RuntimeError):
    """More work waits than is accepted; the caller should come back later."""


class LogUnavailable(SkewlessError, OSError):
    """The rows could not be committed, so nothing may be answered."""


@dataclass(slots=True)
class LogCounters:
    """What became of the rows since this writer started. Written by one thread each, read by anybody."""

    answered: int = 0
    """Caller-facing rows answered for: committed ones and, of an asynchronous log, those that are still to be."""
    logged: int = 0
    """Caller-facing rows committed."""
    lost: int = 0
    """Rows answered and then not committed."""
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
    ahead: bool
    """Whether its caller was told before its rows were committed."""
    done: Future[bool]
    since: float


class LogWriter:
    """Appends to one task's prediction log. Thread-safe.

    A request that comes again, under an id its caller chose, is recognised as long as the replica lives, and by the
    replica that replaces a killed one.

    Args:
        folder: the task's prediction log.
        started: names the segments, so that they sort by time.
        most_waiting: rows that may wait for the disk before `submit` refuses.
        segment_rows: a segment with as many rows is closed, compacted and followed by a new one; so is yesterday's.
        durable: whether rows are on disk before they count as answered.
        keep: how long compacted segments are kept; for good when None.
    """

    def __init__(
        self,
        folder: Path,
        *,
        started: datetime,
        most_waiting: int = 20_000,
        segment_rows: int = 500_000,
        durable: bool = True,
        keep: timedelta | None = None,
    ) -> None:
        self.counters = LogCounters()
        self._folder = folder
        self._name = f"{started:%Y%m%dT%H%M%SZ}-{os.getpid()}-{secrets.token_hex(3)}"
        self._durable = durable
        self._keep = keep
        self._account: Account | None = None
        self._settled = 0
        self._untold_loss = 0
        self._failing = False
        self._most_waiting = most_waiting
        self._segment_rows = segment_rows
        self._segments: dict[Features, Segment] = {}
        self._retired: list[Path] = []
        self._pending: list[_Entry] = []
        self._wake = threading.Condition()
        self._closed = False
        self._gathering = False
        self._oldest: float | None = None
        self._compactor = ThreadPoolExecutor(1, thread_name_prefix="log-compactor")
        self._earlier: dict[str, Path] = {}
        settle_accounts(folder)
        for orphan in claim_orphans(folder):
            try:
                self._earlier |= dict.fromkeys(orphan.request_ids(), orphan.path)
            except sqlite3.Error as error:
                _log.error("segment %s: %s", orphan.path, error)
            self._compact(orphan)
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def submit(
        self, rows: Sequence[PredictionRow], features: Features, *, answered: int, once: bool = False
    ) -> Future[bool]:
        """Queue the rows of one request.

        Args:
            rows: one or more, their vectors in the order of `features`.
            features: the schema of the rows' vectors.
            answered: how many of them go out to the caller.
            once: look for an earlier request of the same id first, and log nothing when there was one.

        Returns:
            Resolves when the rows are on disk: True, or False when an earlier request had logged them. Raises
            LogUnavailable when they could not be committed. An asynchronous log resolves at once, except for a request
            that is to be looked up first, and for every request while commits fail: then nothing more is lost.

        Raises:
            Overloaded: too many rows wait, or the writer is closed.
        """
        entry = _Entry(rows, features, answered, once, False, Future(), time.monotonic())
        entry.done.set_running_or_notify_cancel()  # a caller that goes away cannot take back what others wait for
        with self._wake:
            if self._closed:
                raise Overloaded("The prediction log is closing.", hint="ask again; another replica will answer.")
            if self.counters.waiting + len(rows) > self._most_waiting:
                raise Overloaded(
                    f"{self.counters.waiting} rows wait for the prediction log, which takes {self._most_waiting}.",
                    hint="ask again after the time in Retry-After.",
                )
            if not (self._durable or once or self._failing):
                entry.ahead = self._count_ahead(answered)
            self._pending.append(entry)
            self.counters.waiting += len(rows)
            if not (entry.ahead and self._gathering):
                self._wake.notify()
        if entry.ahead:
            entry.done.set_result(True)
        return entry.done

    def lag(self) -> float:
        """Seconds that the oldest waiting rows have waited; 0 when none wait."""
        oldest = self._oldest
        return 0.0 if oldest is None else time.monotonic() - oldest

    def is_alive(self) -> bool:
        """Whether rows are being committed."""
        return self._thread.is_alive()

    def find(self, request_id: str) -> list[LoggedAnswer]:
        """What an earlier request of this id was answered; empty when none is known."""
        held = [segment.path for segment in list(self._segments.values())]
        for path in [*held, *self._retired, *filter(None, [self._earlier.get(request_id)])]:
            found = answers(path, request_id)
            if found:
                return found
        return []

    def close(self) -> None:
        """Commit what waits, then close and compact the segments. Repeating it does nothing."""
        with self._wake:
            if self._closed:
                return
            self._closed = True
            self._wake.notify()
        self._thread.join()
        if self._account is not None:
            self._account.close(settled=self._settled == self._account.answered)
        for segment in self._segments.values():
            self._compact(segment.retire())
        self._segments.clear()
        self._compactor.shutdown(wait=True)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._pending and not self._closed:
                    self._wake.wait()
                if not self._pending:
                    return
                if not self._closed and all(entry.ahead for entry in self._pending):
                    self._gathering = True
                    self._wake.wait(_GATHER_SECONDS)
                    self._gathering = False
                entries, self._pending = self._pending, []
            self._oldest = entries[0].since
            self._commit(entries)
            with self._wake:
                self._oldest = self._pending[0].since if self._pending else None
                self.counters.waiting -= sum(len(entry.rows) for entry in entries)

    def _commit(self, entries: list[_Entry]) -> None:
        by_schema: dict[Features, list[_Entry]] = {}
        seen: set[str] = set()
        again: list[_Entry] = []
        for entry in entries:
            request_id = entry.rows[0].request_id
            try:
                repeated = entry.once and (request_id in seen or self._holds(request_id))
            except Exception as error:
                self._refuse(entry, error)
                continue
            if repeated:
                again.append(entry)
            else:
                seen.add(request_id)
                by_schema.setdefault(entry.features, []).append(entry)
        for features, group in by_schema.items():
            self._write(features, group)
        for entry in again:  # only now can the answer that they repeat be found
            self.counters.repeated += 1
            entry.done.set_result(False)

    def _write(self, features: Features, group: list[_Entry]) -> None:
        rows = [row for entry in group for row in entry.rows]
        answered = sum(entry.answered for entry in group)
        loss, settled = self._untold_loss, self._settled
        settled += loss + sum(entry.answered for entry in group if entry.ahead)
        try:
            segment = self._segment(features, rows[0].answered_at.date())
            told = settled if self._account is not None else None
            segment.append(rows, answered + loss, lost=loss, settled=told)
        except Exception as error:  # whatever it is, the callers must hear that nothing was logged
            if len(group) > 1:  # one request's rows may be at fault: the others deserve their own try
                for entry in group:
                    self._write(features, [entry])
            else:
                self._refuse(group[0], error)
            return
        self._settled, self._untold_loss, self._failing = settled, 0, False
        self.counters.commits += 1
        self.counters.logged += answered
        with self._wake:  # an asynchronous log's answers are counted by those who ask
            self.counters.answered += sum(entry.answered for entry in group if not entry.ahead)
        self.counters.shadow += len(rows) - answered
        for entry in group:
            if not entry.ahead:
                entry.done.set_result(True)

    def _count_ahead(self, answered: int) -> bool:
        """Count rows as answered before they are committed; False where that cannot be done so that it lasts."""
        try:
            if self._account is None:
                self._account = Account(self._folder, self._name)
            self._account.add(answered)
        except OSError as error:
            _log.warning("prediction log %s answers only what is on disk: %s", self._folder, error)
            return False
        self.counters.answered += answered
        return True

    def _refuse(self, entry: _Entry, error: Exception) -> None:
        self.counters.failed += len(entry.rows)
        self._failing = True
        _log.error("prediction log %s: %s", self._folder, error)
        if entry.ahead:
            self.counters.lost += entry.answered
            self._untold_loss += entry.answered
            return
        refusal = LogUnavailable(
            f"The prediction log {self._folder} cannot be written: {error}.",
            hint="free disk space or make the folder writable; nothing is answered unlogged.",
        )
        refusal.__cause__ = error
        entry.done.set_exception(refusal)

    def _compact(self, orphan: Orphan) -> None:
        def work() -> None:
            orphan.compact()
            if self._keep is not None:
                for gone in expire(self._folder, self._keep):
                    _log.info("segment %s is older than the log is kept", gone)

        self._compactor.submit(work)

    def _holds(self, request_id: str) -> bool:
        return (
            any(segment.holds(request_id) for segment in self._segments.values())
            or request_id in self._earlier
            or any(answers(path, request_id) for path in self._retired)
        )

    def _segment(self, features: Features, day: date) -> Segment:
        current = self._segments.get(features)
        if current is not None and current.day >= day and current.rows < self._segment_rows:
            return current
        path = self._folder / f"{self._name}-{secrets.token_hex(4)}.sqlite"
        self._segments[features] = Segment.create(path, features, day)
        if current is not None:
            self._retired = [*self._retired[-1:], current.path]
            self._compact(current.retire())
        return self._segments[features]
