"""Feast's SQLite online store, read for latency: one statement for all views, and a memory of what it said.

SQLite tells each connection whether anybody else has committed since (`pragma data_version`). While nobody has, what
was read before is still what the store holds, so it is answered from memory; after any commit everything is read again.
Nothing is ever older than the last commit before the question.
"""

from __future__ import annotations

import calendar
import contextlib
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.vectors import Key, Row, ViewSpec

_REMEMBERED_ROWS = 200_000
_KEYS_PER_STATEMENT = 20_000  # below SQLite's limit on parameters
_NULL_INSTANT = -(1 << 63)  # Feast's null among timestamps
_DOUBLE, _FLOAT = struct.Struct("<d"), struct.Struct("<f")


class SqliteReader:
    """Reads a SQLite online store. Thread-safe: every thread has a connection and a memory of its own.

    Args:
        path: the database.
        tables: view name to table.
        serialize: the stored form of a view's key.
        parse: a stored value to Python, for the types `decode` does not know.
    """

    def __init__(
        self,
        path: Path,
        tables: Mapping[str, str],
        serialize: Callable[[ViewSpec, Key], bytes],
        parse: Callable[[bytes], Any],
    ) -> None:
        self._path = path
        self._tables = {view: '"' + table.replace('"', '""') + '"' for view, table in tables.items()}
        self._serialize = serialize
        self._parse = parse
        self._local = threading.local()

    def read(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[list[Row | None]]:
        """Rows of each view for its distinct keys, in their order.

        Raises:
            sqlite3.Error, OSError: the database cannot be read.
        """
        memory = self._memory()
        missing = [
            (spec, [key for key in keys if key not in known])
            for spec, keys in asked
            for known in (memory.rows.setdefault(spec.name, {}),)
        ]
        if any(keys for _, keys in missing):
            self._fetch(memory, [(spec, keys) for spec, keys in missing if keys])
        return [[memory.rows[spec.name][key] for key in keys] for spec, keys in asked]

    def _memory(self) -> _Memory:
        found = os.stat(self._path)
        file = found.st_dev, found.st_ino
        memory: _Memory | None = getattr(self._local, "memory", None)
        if memory is None or memory.file != file:  # a store that was removed and made anew is another file
            memory = self._local.memory = _Memory(_connect(self._path), file)
        memory.forget_if_changed()
        return memory

    def _fetch(self, memory: _Memory, asked: Sequence[tuple[ViewSpec, list[Key]]]) -> None:
        parts: list[str] = []
        parameters: list[bytes] = []
        by_bytes: list[dict[bytes, Key]] = []
        for spec, keys in asked:
            stored = {self._serialize(spec, key): key for key in keys}
            by_bytes.append(stored)
            memory.rows[spec.name].update(dict.fromkeys(keys))
            for first in range(0, len(stored), _KEYS_PER_STATEMENT):
                if len(parameters) + min(len(stored), _KEYS_PER_STATEMENT) > _KEYS_PER_STATEMENT and parts:
                    self._collect(memory, asked, by_bytes, parts, parameters)
                    parts, parameters = [], []
                chunk = list(stored)[first : first + _KEYS_PER_STATEMENT]
                marks = ",".join("?" * len(chunk))
                parts.append(
                    f"select {len(by_bytes) - 1}, entity_key, feature_name, value, event_ts "
                    f"from {self._tables[spec.name]} where entity_key in ({marks})"
                )
                parameters += chunk
        self._collect(memory, asked, by_bytes, parts, parameters)

    def _collect(
        self,
        memory: _Memory,
        asked: Sequence[tuple[ViewSpec, list[Key]]],
        by_bytes: Sequence[Mapping[bytes, Key]],
        parts: Sequence[str],
        parameters: Sequence[bytes],
    ) -> None:
        cells: dict[tuple[int, bytes], dict[str, Any]] = {}
        stamps: dict[tuple[int, bytes], int] = {}
        for view, entity, feature, value, stamp in memory.connection.execute(" union all ".join(parts), parameters):
            place = view, entity
            if place not in cells:
                cells[place], stamps[place] = {}, stamp
            cells[place][feature] = value
            stamps[place] = max(stamps[place], stamp)
        for (view, entity), values in cells.items():
            spec = asked[view][0]
            row = tuple([decode(values.get(name), self._parse) for name in spec.features])
            memory.rows[spec.name][by_bytes[view][entity]] = _micros(stamps[view, entity]), row
        memory.count(sum(len(keys) for keys in by_bytes))


class _Memory:
    """One thread's connection, and what it read since the last commit of anybody else."""

    def __init__(self, connection: sqlite3.Connection, file: tuple[int, int]) -> None:
        self.connection = connection
        self.file = file
        self.rows: dict[str, dict[Key, Row | None]] = {}
        self._version: int | None = None
        self._held = 0

    def forget_if_changed(self) -> None:
        version = self.connection.execute("pragma data_version").fetchone()[0]
        if version != self._version or self._held > _REMEMBERED_ROWS:
            self.rows, self._version, self._held = {}, version, 0

    def count(self, rows: int) -> None:
        self._held += rows


def decode(stored: bytes | None, parse: Callable[[bytes], Any]) -> Any:
    """A serialised Feast value as Python: the scalar types by hand, the rest by `parse`; None for null."""
    if not stored:
        return None
    tag = stored[0]
    if tag == 0x29:
        return _DOUBLE.unpack_from(stored, 1)[0]
    if tag == 0x35:
        return _FLOAT.unpack_from(stored, 1)[0]
    if tag == 0x20 or tag == 0x18:
        return _signed(stored)
    if tag == 0x38:
        return stored[1] != 0
    if tag == 0x12 and stored[1] < 0x80:
        return stored[2:].decode()
    if tag == 0x40:
        seconds = _signed(stored)
        return None if seconds == _NULL_INSTANT else datetime.fromtimestamp(seconds, UTC)
    return parse(stored)


def _signed(stored: bytes) -> int:
    """The variable-length integer behind the tag, in two's complement of 64 bits."""
    value = shift = 0
    for byte in stored[1:]:
        value |= (byte & 0x7F) << shift
        shift += 7
    return value - (1 << 64) if value >= 1 << 63 else value


def _micros(stamp: int) -> int:
    """Feast stores the machine's local reading of the UTC clock, in whole seconds; this undoes it as Feast does."""
    return calendar.timegm(time.localtime(stamp)) * 1_000_000


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=5, check_same_thread=False)
    # With a write-ahead log a materialization in progress never makes a reader wait. Feast's own default would.
    with contextlib.suppress(sqlite3.OperationalError):
        connection.execute("pragma journal_mode = wal")
    return connection
