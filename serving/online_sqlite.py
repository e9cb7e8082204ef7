"""Feast's SQLite online store, read for latency: one statement for all views and keys not read since the last commit.

Popular keys (a city, a carrier) come with every request, while a store changes at a boundary or a push. A connection
therefore remembers what it read until SQLite says that somebody committed. What has to be fetched is fetched in one
transaction with that question, so what is remembered and what is fetched are of one state of the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from asof.wire import Decoder
from serving.online import TIMEOUT_SECONDS, Key, Row, StoreBusy, StoreUnavailable, ViewSpec

_STAMP = ""  # among the names of a row's cells: no feature is called this
_KEYS_PER_STATEMENT = 20_000  # below SQLite's limit on parameters
_REMEMBERED_ROWS = 50_000


class SqliteReader:
    """Reads a SQLite online store. Thread-safe: every thread has a connection of its own.

    Args:
        path: the database.
        tables: view name to table.
        encoders: view name to what gives a key's stored form.
        decode: a stored value to Python.
        timeout: seconds to wait for somebody's lock, in a thread that may wait.
    """

    waits = False

    def __init__(
        self,
        path: Path,
        tables: Mapping[str, str],
        encoders: Mapping[str, Callable[[Key], bytes]],
        decode: Decoder,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._path = path
        self._tables = {view: '"' + table.replace('"', '""') + '"' for view, table in tables.items()}
        self._encoders = encoders
        self._decode = decode
        self._timeout = timeout
        self._local = threading.local()

    def read(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[list[Row | None]]:
        """Rows of each view for its distinct keys, in their order.

        Raises:
            StoreBusy: it is locked just now, and this is an event loop.
            StoreUnavailable: the database is not there, is no database, stays locked, or lacks a view's table.
        """
        try:
            memory = self._memory()
            memory.forget_if_changed()
            if missing := memory.missing(asked):
                memory.connection.execute("begin")
                try:
                    if memory.forget_if_changed():  # somebody committed since we asked
                        missing = memory.missing(asked)
                    self._fetch(memory, missing)
                finally:
                    memory.connection.execute("commit")
        except (sqlite3.Error, OSError) as error:
            self._local.__dict__.clear()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY and _on_event_loop():
                raise StoreBusy(f"The SQLite online store {self._path} is locked just now.") from error
            raise StoreUnavailable(
                f"The SQLite online store {self._path} cannot be read: {error}.",
                hint="`feast apply` makes its tables, materializing fills them; or correct online_store.path.",
            ) from error
        return [[rows[key] for key in keys] for rows, keys in ((memory.of(spec), keys) for spec, keys in asked)]

    def _fetch(self, memory: _Memory, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> None:
        stored = [[self._encoders[spec.name](key) for key in keys] for spec, keys in asked]
        found: list[dict[bytes, dict[str, Any]]] = [{} for _ in asked]
        last_view, last_entity = -1, b""
        cells: dict[str, Any] = {}
        for sql, parameters in self._statements(asked, stored):
            for view, entity, feature, value, stamp in memory.connection.execute(sql, parameters):
                if entity != last_entity or view != last_view:
                    last_view, last_entity = view, entity
                    cells = found[view].setdefault(entity, {_STAMP: stamp})
                if stamp > cells[_STAMP]:
                    cells[_STAMP] = stamp
                cells[feature] = value
        decode = self._decode
        micros: dict[int, int] = {}
        for (spec, keys), entities, held in zip(asked, stored, found, strict=True):
            names, rows = spec.features, memory.of(spec)
            for key, entity in zip(keys, entities, strict=True):
                values = held.get(entity)
                if values is None:
                    rows[key] = None
                    continue
                stamp = values[_STAMP]
                if stamp not in micros:  # what was materialized together shares it
                    micros[stamp] = _micros(stamp)
                rows[key] = micros[stamp], tuple([decode(values.get(name)) for name in names])
            memory.held += len(keys)

    def _statements(
        self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]], stored: Sequence[Sequence[bytes]]
    ) -> list[tuple[str, list[bytes]]]:
        """One statement, unless there are more keys than SQLite takes parameters."""
        statements: list[tuple[str, list[bytes]]] = []
        parts: list[str] = []
        parameters: list[bytes] = []
        for view, ((spec, _), keys) in enumerate(zip(asked, stored, strict=True)):
            for first in range(0, len(keys), _KEYS_PER_STATEMENT):
                chunk = keys[first : first + _KEYS_PER_STATEMENT]
                if parts and len(parameters) + len(chunk) > _KEYS_PER_STATEMENT:
                    statements.append((" union all ".join(parts), parameters))
                    parts, parameters = [], []
                parts.append(
                    f"select {view}, entity_key, feature_name, value, event_ts "
                    f"from {self._tables[spec.name]} where entity_key in (?{',?' * (len(chunk) - 1)})"
                )
                parameters += chunk
        if parts:
            statements.append((" union all ".join(parts), parameters))
        return statements

    def _memory(self) -> _Memory:
        status = os.stat(self._path)
        file = status.st_dev, status.st_ino
        memory: _Memory | None = getattr(self._local, "memory", None)
        if memory is None or memory.file != file:  # a store that was removed and made anew is another file
            memory = self._local.memory = _Memory(_connect(self._path, self._timeout), file)
        return memory


class _Memory:
    """One thread's connection, and what it read since anybody's last commit."""

    def __init__(self, connection: sqlite3.Connection, file: tuple[int, int]) -> None:
        self.connection = connection
        self.file = file
        self.held = 0
        self._rows: dict[str, dict[Key, Row | None]] = {}
        self._version: int | None = None

    def of(self, spec: ViewSpec) -> dict[Key, Row | None]:
        """Rows of a view by key; None where the store has none."""
        return self._rows.setdefault(spec.name, {})

    def missing(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[tuple[ViewSpec, list[Key]]]:
        """What of a question is not remembered; empty when all of it is."""
        missing = [(spec, [key for key in keys if key not in self.of(spec)]) for spec, keys in asked]
        return missing if any(keys for _, keys in missing) else []

    def forget_if_changed(self) -> bool:
        """Drop everything if somebody committed since the last question, or if it has become much; says whether."""
        (version,) = self.connection.execute("pragma data_version").fetchone()
        changed: bool = version != self._version or self.held > _REMEMBERED_ROWS
        if changed:
            self._rows, self._version, self.held = {}, version, 0
        return changed


def _micros(stamp: int) -> int:
    """Feast stores the machine's local reading of the UTC clock, in whole seconds; this undoes it as Feast does."""
    return (stamp + time.localtime(stamp).tm_gmtoff) * 1_000_000


def _on_event_loop() -> bool:
    """Whether waiting here would stop others."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _connect(path: Path, timeout: float) -> sqlite3.Connection:
    patience = 0.0 if _on_event_loop() else timeout
    connection = sqlite3.connect(path, isolation_level=None, timeout=patience, check_same_thread=False)
    # With a write-ahead log a materialization in progress never makes a reader wait. Feast's own default would.
    with contextlib.suppress(sqlite3.OperationalError):
        connection.execute("pragma journal_mode = wal")
    connection.execute("pragma cache_size = -32768")  # KiB; its default of 2 MiB reads most pages again and again
    return connection
