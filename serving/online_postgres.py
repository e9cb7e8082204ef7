"""Feast's PostgreSQL online store, read for latency: one prepared query for all views and keys.

Serving's door to psycopg. Its cursors wait for a server without limit and convert every cell; the layer below, libpq's
own (`psycopg.pq`), does neither.
"""

from __future__ import annotations

import contextlib
import select
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import pq, sql

from asof.wire import Decoder
from serving.online import TIMEOUT_SECONDS, Key, Row, StoreUnavailable, ViewSpec

_ARRAY_HEAD, _LENGTH = struct.Struct(">iiIii").pack, struct.Struct(">i").pack
_TAG, _INT64 = struct.Struct(">h").pack, struct.Struct(">q").unpack
_BYTEA = 17  # PostgreSQL's number of the type
_YEAR_2000 = 946_684_800_000_000  # from where PostgreSQL counts microseconds
_BINARY = 1

Cells = dict[tuple[bytes, bytes], dict[bytes, bytes]]
"""(view's tag, entity) to feature to stored value."""


class PostgresReader:
    """Reads a PostgreSQL online store. Thread-safe: a connection serves one read at a time.

    Args:
        connection: arguments of `psycopg.connect`.
        tables: view name to table.
        encoders: view name to what gives a key's stored form.
        decode: a stored value to Python.
        timeout: seconds to connect, and to answer.
    """

    waits = True

    def __init__(
        self,
        connection: Mapping[str, Any],
        tables: Mapping[str, str],
        encoders: Mapping[str, Callable[[Key], bytes]],
        decode: Decoder,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._arguments = dict(connection)
        self._tables = dict(tables)
        self._encoders = encoders
        self._decode = decode
        self._timeout = timeout
        self._idle: deque[_Connection] = deque()

    def read(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[list[Row | None]]:
        """Rows of each view for its distinct keys, in their order.

        Raises:
            StoreUnavailable: the server cannot be reached, does not answer in time, or lacks a view's table.
        """
        stored = [[self._encoders[spec.name](key) for key in keys] for spec, keys in asked]
        tables = tuple([self._tables[spec.name] for spec, _ in asked])
        cells, stamps = _collected(self._ask(tables, [_array(keys) for keys in stored]))
        decode = self._decode
        rows: list[list[Row | None]] = []
        for view, ((spec, _), keys) in enumerate(zip(asked, stored, strict=True)):
            tag, names = _TAG(view), [name.encode() for name in spec.features]
            found: list[Row | None] = []
            for key in keys:
                values = cells.get((tag, key))
                if values is None:
                    found.append(None)
                else:
                    found.append((stamps[tag, key], tuple([decode(values.get(name)) for name in names])))
            rows.append(found)
        return rows

    def _ask(self, tables: tuple[str, ...], parameters: list[bytes]) -> pq.abc.PGresult:
        for last in (False, True):
            connection = None
            try:
                try:
                    connection = self._idle.pop()
                except IndexError:
                    last = True
                    connection = _Connection(self._arguments, self._timeout)
                result = connection.ask(tables, parameters, self._timeout)
            except BaseException as error:
                if connection is not None:
                    connection.close()
                if isinstance(error, psycopg.Error | TimeoutError):
                    self._close_idle()  # they ended with their server, or their prepared query with its table
                    if last or isinstance(error, TimeoutError):
                        raise self._unavailable(error) from error
                else:
                    raise
            else:
                self._idle.append(connection)
                return result
        raise AssertionError("the second time is the last")

    def _close_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        if isinstance(error, psycopg.errors.UndefinedTable):
            hint = "`feast apply` makes its tables, materializing fills them."
        else:
            hint = (
                "start it, or correct online_store in feature_store.yaml; "
                f"it has {self._timeout:g} s to connect and to answer."
            )
        where = "{host}:{port}/{dbname}".format(**{"host": "", "port": "", "dbname": ""} | self._arguments)
        fact = str(error).strip() or "no answer in time"
        return StoreUnavailable(f"The PostgreSQL online store at {where} does not answer: {fact}", hint=hint)


class _Connection:
    """One connection and the queries prepared on it."""

    def __init__(self, arguments: Mapping[str, Any], timeout: float) -> None:
        limits = {"connect_timeout": max(round(timeout), 1), "client_encoding": "utf8", "autocommit": True}
        self._connection = psycopg.connect(**{**arguments, **limits})
        self._libpq: Any = self._connection.pgconn
        self._prepared: dict[tuple[str, ...], bytes] = {}
        self._reading, self._writing = select.poll(), select.poll()
        self._reading.register(self._libpq.socket, select.POLLIN)
        self._writing.register(self._libpq.socket, select.POLLIN | select.POLLOUT)

    def close(self) -> None:
        self._connection.close()

    def ask(self, tables: tuple[str, ...], parameters: list[bytes], timeout: float) -> pq.abc.PGresult:
        """The cells of the keys in `parameters`, an array a table.

        Raises:
            psycopg.Error: the server refuses, or is gone.
            TimeoutError: it does not answer in time; the connection is of no further use.
        """
        deadline = time.monotonic() + timeout
        name = self._prepared.get(tables)
        if name is None:
            name = b"read_%d" % len(self._prepared)
            self._libpq.send_prepare(name, self._query(tables), None)
            self._result(deadline)
            self._prepared[tables] = name
        formats = [_BINARY] * len(parameters)
        self._libpq.send_query_prepared(name, parameters, formats, _BINARY)
        return self._result(deadline)

    def _query(self, tables: tuple[str, ...]) -> bytes:
        """Feast writes the UTC clock without a zone, which the session's zone then colours: `::timestamp` undoes it."""
        parts = [
            sql.SQL(
                "select {}::int2, entity_key, feature_name, value, event_ts::timestamp from {} "
                f"where entity_key = any(${i + 1}::bytea[])"
            ).format(sql.Literal(i), sql.Identifier(table))
            for i, table in enumerate(tables)
        ]
        return sql.SQL(" union all ").join(parts).as_bytes(self._connection)

    def _result(self, deadline: float) -> pq.abc.PGresult:
        libpq = self._libpq
        while libpq.flush():
            _wait(self._writing, deadline)
            libpq.consume_input()  # a server that has to say something first takes no more
        last = None
        while True:
            while libpq.is_busy():
                _wait(self._reading, deadline)
                libpq.consume_input()
            result = libpq.get_result()
            if result is None:
                break
            last = result
        if last is None or last.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            raise psycopg.errors.error_from_result(last) if last else psycopg.OperationalError("no answer")
        answer: pq.abc.PGresult = last
        return answer


def _wait(events: select.poll, deadline: float) -> None:
    if not events.poll(max(deadline - time.monotonic(), 0) * 1000):
        raise TimeoutError("no answer in time")


def _array(keys: Sequence[bytes]) -> bytes:
    """PostgreSQL's binary form of a bytea[]."""
    if not keys:
        return _ARRAY_HEAD(0, 0, _BYTEA, 0, 0)[:12]
    return _ARRAY_HEAD(1, 0, _BYTEA, len(keys), 1) + b"".join([_LENGTH(len(key)) + key for key in keys])


def _collected(result: pq.abc.PGresult) -> tuple[Cells, dict[tuple[bytes, bytes], int]]:
    """The cells by view and entity, and the newest event timestamp of each (microseconds since the epoch)."""
    cells: Cells = {}
    raw: dict[tuple[bytes, bytes], bytes] = {}
    newest: dict[tuple[bytes, bytes], int] = {}
    cell: Callable[[int, int], Any] = result.get_value
    for i in range(result.ntuples):
        place = cell(i, 0), cell(i, 1)
        stamp = cell(i, 4)
        if place not in cells:
            cells[place], raw[place], newest[place] = {}, stamp, _INT64(stamp)[0] + _YEAR_2000
        elif stamp != raw[place]:
            newest[place] = max(newest[place], _INT64(stamp)[0] + _YEAR_2000)
        cells[place][cell(i, 2)] = cell(i, 3)
    return cells, newest
