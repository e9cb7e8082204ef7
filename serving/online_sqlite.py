"""Feast's SQLite online store, read for latency: one statement for all views and keys, nothing remembered."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.online import Key, Row, StoreUnavailable, ViewSpec
from serving.online_values import Decoder

_STAMP = ""  # among the names of a row's cells: no feature is called this
_KEYS_PER_STATEMENT = 20_000  # below SQLite's limit on parameters


class SqliteReader:
    """Reads a SQLite online store. Thread-safe: every thread has a connection of its own.

    Args:
        path: the database.
        tables: view name to table.
        encoders: view name to what gives a key's stored form.
        decode: a stored value to Python.
    """

    waits = False

    def __init__(
        self,
        path: Path,
        tables: Mapping[str, str],
        encoders: Mapping[str, Callable[[Key], bytes]],
        decode: Decoder,
    ) -> None:
        self._path = path
        self._tables = {view: '"' + table.replace('"', '""') + '"' for view, table in tables.items()}
        self._encoders = encoders
        self._decode = decode
        self._local = threading.local()

    def read(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[list[Row | None]]:
        """Rows of each view for its distinct keys, in their order.

        Raises:
            StoreUnavailable: the database is not there, is no database, or lacks a view's table.
        """
        stored = [[self._encoders[spec.name](key) for key in keys] for spec, keys in asked]
        found: list[dict[bytes, dict[str, Any]]] = [{} for _ in asked]
        last_view, last_entity = -1, b""
        cells: dict[str, Any] = {}
        try:
            connection = self._connection()
            for sql, parameters in self._statements(asked, stored):
                for view, entity, feature, value, stamp in connection.execute(sql, parameters):
                    if entity != last_entity or view != last_view:
                        last_view, last_entity = view, entity
                        cells = found[view].setdefault(entity, {_STAMP: stamp})
                    if stamp > cells[_STAMP]:
                        cells[_STAMP] = stamp
                    cells[feature] = value
        except (sqlite3.Error, OSError) as error:
            self._local.__dict__.clear()
            raise StoreUnavailable(
                f"The SQLite online store {self._path} cannot be read: {error}.",
                hint="`feast apply` makes its tables, materializing fills them; or correct online_store.path.",
            ) from error
        decode = self._decode
        micros: dict[int, int] = {}
        answer: list[list[Row | None]] = []
        for (spec, _), keys, held in zip(asked, stored, found, strict=True):
            names = spec.features
            rows: list[Row | None] = []
            for key in keys:
                values = held.get(key)
                if values is None:
                    rows.append(None)
                    continue
                stamp = values[_STAMP]
                if stamp not in micros:  # what was materialized together shares it
                    micros[stamp] = _micros(stamp)
                rows.append((micros[stamp], tuple([decode(values.get(name)) for name in names])))
            answer.append(rows)
        return answer

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

    def _connection(self) -> sqlite3.Connection:
        status = os.stat(self._path)
        file = status.st_dev, status.st_ino
        if getattr(self._local, "file", None) != file:  # a store that was removed and made anew is another file
            self._local.connection, self._local.file = _connect(self._path), file
        connection: sqlite3.Connection = self._local.connection
        return connection


def _micros(stamp: int) -> int:
    """Feast stores the machine's local reading of the UTC clock, in whole seconds; this undoes it as Feast does."""
    return (stamp + time.localtime(stamp).tm_gmtoff) * 1_000_000


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=5, check_same_thread=False)
    # With a write-ahead log a materialization in progress never makes a reader wait. Feast's own default would.
    with contextlib.suppress(sqlite3.OperationalError):
        connection.execute("pragma journal_mode = wal")
    connection.execute("pragma cache_size = -32768")  # KiB; its default of 2 MiB reads most pages again and again
    return connection
