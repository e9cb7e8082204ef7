"""How much an asynchronous writer has answered: a number in a file that its death does not take back.

A durable writer answers what is on disk, so its segments' own counters say everything. An asynchronous one answers
first. It counts each answer in a mapped file, whose bytes the system keeps when the process is killed; each commit
writes down how far that count had been dealt with. What is left between the two, once the writer is gone, was lost.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import IO

import pyarrow.parquet as pq

from contracts.predictions import add_lost, open_segment, settled_in

_log = logging.getLogger(__name__)
_SUFFIX = ".account"
_COUNT = struct.Struct("<q")


class Account:
    """The count of one living writer. Not thread-safe.

    Raises OSError when the file cannot be made, or its disk has no room for it.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{writer}{_SUFFIX}"
        self.answered = 0
        self._file = self.path.open("w+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            os.posix_fallocate(self._file.fileno(), 0, _COUNT.size)  # later writes need no room any more
            self._bytes = mmap.mmap(self._file.fileno(), _COUNT.size)
        except BaseException:
            self.path.unlink(missing_ok=True)
            self._file.close()
            raise

    def add(self, rows: int) -> None:
        """Count rows that are about to be answered."""
        self.answered += rows
        _COUNT.pack_into(self._bytes, 0, self.answered)

    def close(self, *, settled: bool) -> None:
        """Let go of it; the file goes too if everything answered was dealt with."""
        if settled:
            self.path.unlink(missing_ok=True)
        self._bytes.close()
        self._file.close()


def settle_accounts(folder: Path) -> int:
    """Write down what writers that are gone had answered and not logged; returns how many rows those were.

    Safe to repeat, and for several processes at once: a living writer holds its account, and so does who settles it.
    """
    lost = 0
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        with path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if not path.exists():  # settled by another between our look and our lock
                continue
            try:
                lost += _settle(folder, path.name.removesuffix(_SUFFIX), file)
            except (OSError, sqlite3.Error) as error:  # a full disk: the account stays, and is settled the next time
                _log.error("account %s is not settled: %s", path, error)
                continue
            path.unlink()
    return lost


def _settle(folder: Path, writer: str, file: IO[bytes]) -> int:
    content = file.read(_COUNT.size)
    answered = _COUNT.unpack(content)[0] if len(content) == _COUNT.size else 0
    segments = sorted({path.with_suffix(".sqlite") for path in folder.glob(f"{writer}-*") if path.suffix != ".lock"})
    lost = int(answered - max(map(_settled, segments), default=0))
    if lost > 0:
        with closing(open_segment(folder / f"{writer}-lost.sqlite", ())) as connection:
            add_lost(connection, lost, settled=answered)
    return lost


def _settled(segment: Path) -> int:
    compacted = segment.with_suffix(".parquet")
    if compacted.exists():
        return int((pq.read_schema(compacted).metadata or {}).get(b"settled", 0))
    return settled_in(segment)
