"""Rows that were pushed to the online store only, kept until the source has them or no view reaches back that far.

Training does not see them. Later pushes and materializations of the online store count them with the source's own rows.
They lie in one SQLite file beside the registry; a lock beside that lets one push happen at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import RepoConfig

from asof.quoting import identifier, text
from asof.session import Session

_PATIENCE = 60.0
"""Seconds to wait for another process."""


@dataclass(frozen=True)
class Batch:
    """The rows of one push."""

    number: int
    """Ascending in the order of pushes."""
    landed: int
    """When the newest file of the source at the time of the push was written (its mtime, nanoseconds)."""
    rows: pa.Table
    """As the source's files would have them."""


class PushedRows:
    """The rows pushed online only, of all sources of a repository.

    Args:
        path: the SQLite file; made by the first push.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int, int] | None = None

    @property
    def exists(self) -> bool:
        """Whether anything was ever pushed, online or offline."""
        return self._lock_path.exists()

    @property
    def _lock_path(self) -> Path:
        return self._path.with_suffix(".lock")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold back every other push, of this process and of others."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._mutex, open(self._lock_path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # ends with the file, and with the process
            yield

    def add(self, source: str, rows: pa.Table, *, landed: int, expires: int | None) -> int:
        """Keep rows; they are on disk when this returns.

        Args:
            source: path of the source.
            rows: as its files would have them.
            landed: see `Batch`.
            expires: microseconds; no view asks for the rows at this time or later. None: some view always may.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows)
        with self._database() as database:
            added = database.execute(
                "insert into batches (source, landed, expires, rows) values (?, ?, ?, ?)",
                [source, landed, expires, sink.getvalue().to_pybytes()],
            )
            assert added.lastrowid is not None
            return added.lastrowid

    def of(self, source: str, after: int = 0) -> list[Batch]:
        """Batches of a source with a number above `after`."""
        if not self._path.exists():
            return []
        with self._database() as database:
            found = database.execute(
                "select number, landed, rows from batches where source = ? and number > ? order by number",
                [source, after],
            ).fetchall()
        return [Batch(number, landed, pa.ipc.open_stream(rows).read_all()) for number, landed, rows in found]

    def any_of(self, source: str) -> bool:
        """Whether there are rows of a source."""
        if not self._path.exists():
            return False
        with self._database() as database:
            return database.execute("select 1 from batches where source = ? limit 1", [source]).fetchone() is not None

    def sources(self) -> list[str]:
        """Paths of the sources that have rows here."""
        if not self._path.exists():
            return []
        with self._database() as database:
            return [row[0] for row in database.execute("select distinct source from batches")]

    def forget(self, source: str, numbers: list[int], *, expired: int) -> None:
        """Drop the given batches of a source, and those that expired by a time (microseconds)."""
        with self._database() as database:
            database.execute("delete from batches where source = ? and expires <= ?", [source, expired])
            database.executemany("delete from batches where number = ?", [(number,) for number in numbers])

    def remove(self) -> None:
        """Forget everything."""
        for file in (self._path, *(Path(f"{self._path}-{end}") for end in ("wal", "shm")), self._lock_path):
            file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """One transaction on an open connection; a file that was removed, and a forked process, get a new one."""
        now: tuple[int, int, int] | None = None
        if self._path.exists():
            state = self._path.stat()
            now = (os.getpid(), state.st_dev, state.st_ino)
        if self._connection is None or now is None or now != self._opened:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=_PATIENCE, check_same_thread=False)
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            connection.execute(
                "create table if not exists batches (number integer primary key autoincrement, source text not null, "
                "landed integer not null, expires integer, rows blob not null)"
            )
            connection.execute("create index if not exists by_source on batches (source, number)")
            state = self._path.stat()
            self._connection, self._opened = connection, (os.getpid(), state.st_dev, state.st_ino)
        with self._connection:
            yield self._connection


def pushed_rows(config: RepoConfig) -> PushedRows:
    """The pushed rows of a repository: beside a registry that is a file, else in the repository."""
    registry = str(getattr(config.registry, "path", config.registry) or "").removeprefix("sqlite:///")
    folder = Path(config.repo_path or ".")
    if registry and "://" not in registry:
        folder = (folder / registry).parent
    return _at((folder / f"{config.project}.pushed.db").resolve())


@functools.cache
def _at(path: Path) -> PushedRows:
    return PushedRows(path)


def landed_at(files: tuple[Path, ...]) -> int:
    """When the newest of the files was written, nanoseconds."""
    return max((file.stat().st_mtime_ns for file in files), default=0)


def still_missing(
    batches: list[Batch], files: tuple[Path, ...], same: list[str], created: str | None, session: Session
) -> list[Batch]:
    """The batches without the rows that files written since the push have.

    Args:
        batches: of one source.
        files: of that source.
        same: the columns by which a row is recognised; all but `created` when empty. Rows that were pushed equal are
            recognised as many times as the files have them.
        created: column not to compare.
        session: compares.
    """
    left: list[Batch] = []
    for landed in sorted({batch.landed for batch in batches}):
        group = [batch for batch in batches if batch.landed == landed]
        newer = tuple(file for file in files if file.stat().st_mtime_ns > landed)
        columns = [name for name in (same or group[0].rows.column_names) if name != created]
        if not newer or not columns:
            left += group
            continue
        numbers = [np.full(batch.rows.num_rows, batch.number) for batch in group]
        rows = pa.concat_tables([batch.rows for batch in group], promote_options="default")
        mine = session.hold("pushed", rows.append_column("asof batch", pa.array(np.concatenate(numbers), pa.int64())))
        names = ", ".join(map(identifier, columns))
        numbered = f"row_number() over (partition by {names}) as nth"
        equal = " and ".join(f"m.{identifier(name)} is not distinct from t.{identifier(name)}" for name in columns)
        there = f"read_parquet([{', '.join(text(str(file)) for file in newer)}], union_by_name = true)"
        missing = session.arrow(
            f"select m.* exclude (nth) from (select *, {numbered} from {mine}) m "
            f"anti join (select {names}, {numbered} from {there}) t on m.nth = t.nth and {equal}"
        )
        session.release(mine)
        for batch in group:
            rest = missing.filter(pc.equal(missing["asof batch"], batch.number)).drop_columns(["asof batch"])
            if rest.num_rows:
                left.append(Batch(batch.number, landed, rest.cast(batch.rows.schema)))
    return left
