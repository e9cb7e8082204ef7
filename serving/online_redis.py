"""Feast's Redis online store, read for latency: one pipeline for all views and keys; serving's door to redis-py.

Feast keeps all views of an entity in one hash, so they take one HMGET together. The commands are packed here: what
changes from request to request is the key alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import redis
from redis._parsers.hiredis import NOT_ENOUGH_DATA, _HiredisParser
from redis.backoff import NoBackoff
from redis.retry import Retry

from asof.wire import Decoder, signed
from serving.online import TIMEOUT_SECONDS, Key, Row, StoreUnavailable, ViewSpec

_REMEMBERED = 50_000
"""Answers kept, of one function."""
_UNCHANGING = {int, float, str, bytes, bool, datetime, type(None)}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where a Redis is, as its client wants to know it."""

    host: str
    port: int
    settings: Mapping[str, Any]
    """Further arguments of the client: `db`, `password`, `ssl`, `socket_timeout` and so on."""
    sentinels: tuple[tuple[str, int], ...] = ()
    """Sentinels to ask for the master of the service `master`; `host` and `port` are then not used."""
    master: str = ""


class RedisReader:
    """Reads a Redis online store. Thread-safe: a connection serves one read at a time.

    Args:
        address: of the server.
        project: of the Feast repository; part of every key.
        hashes: view name to the names of its fields, in the order of its features, the timestamp's last.
        encoders: view name to what gives a key's stored form.
        decode: a stored value to Python.
        timeout: seconds to connect, and to answer, unless the address names its own.
    """

    waits = True

    def __init__(
        self,
        address: RedisAddress,
        project: str,
        hashes: Mapping[str, Sequence[bytes]],
        encoders: Mapping[str, Callable[[Key], bytes]],
        decode: Decoder,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._where = (
            f"master {address.master!r} of the sentinels {address.sentinels}"
            if address.sentinels
            else f"{address.host}:{address.port}"
        )
        self._client = _client(address, timeout)
        self._timeout = timeout
        self._project = project.encode()
        self._fields = {view: b"".join([_bulk(name) for name in names]) for view, names in hashes.items()}
        self._encoders = encoders
        self._decoded = _Known(decode)
        self._micros = _Known(_micros)
        self._known_commands: dict[tuple[str, ...], _Known] = {}

    def read(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[list[Row | None]]:
        """Rows of each view for its distinct keys, in their order.

        Raises:
            StoreUnavailable: the server cannot be reached, or answers neither in time nor what was asked.
        """
        groups = _by_entity(asked)
        pieces: list[bytes] = []
        for members in groups:
            pieces += map(self._commands([asked[member][0] for member in members]).__getitem__, asked[members[0]][1])
        replies = iter(self._ask(b"".join(pieces), len(pieces)))
        decoded = self._decoded.__getitem__
        micros = self._micros
        rows: list[list[Row | None]] = [[] for _ in asked]
        for members in groups:
            widths = [(rows[member], len(asked[member][0].features)) for member in members]
            for _ in asked[members[0]][1]:
                values, first = next(replies), 0
                for into, width in widths:
                    end = first + width
                    stamp = values[end]
                    if stamp is None:
                        into.append(None)
                    else:
                        into.append((micros[stamp], tuple(map(decoded, values[first:end]))))
                    first = end + 1
        return rows

    def _commands(self, specs: Sequence[ViewSpec]) -> Mapping[Key, bytes]:
        """What asks for the fields of views that share a hash, by key."""
        names = tuple([spec.name for spec in specs])
        if names not in self._known_commands:
            width = sum(len(spec.features) + 1 for spec in specs)
            head, fields = b"*%d\r\n$5\r\nHMGET\r\n" % (width + 2), b"".join([self._fields[name] for name in names])
            encode, project = self._encoders[names[0]], self._project
            self._known_commands[names] = _Known(lambda key: head + _bulk(encode(key) + project) + fields)
        return self._known_commands[names]

    def _ask(self, commands: bytes, count: int) -> list[list[bytes | None]]:
        if not count:
            return []
        pool = self._client.connection_pool
        for last in (False, True):
            connection = None
            try:
                connection = pool.get_connection()
                connection.send_packed_command([commands])
                return _replies(connection, count)
            except BaseException as error:
                if connection is not None:
                    connection.disconnect()  # replies may be left in it
                # Perhaps it is this connection alone: the server may have been started again since it was made.
                if last or not isinstance(error, redis.ConnectionError):
                    raise self._unavailable(error) if isinstance(error, redis.RedisError) else error from error
            finally:
                if connection is not None:
                    pool.release(connection)
        raise AssertionError("unreachable")

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(
            f"The Redis online store at {self._where} does not answer: {error}",
            hint="start it, or correct online_store.connection_string in feature_store.yaml; "
            f"it has {self._timeout:g} s unless that names a socket_timeout.",
        )


class _Known(dict[Any, Any]):
    """A function's answers, worked out once: popular keys, small numbers and boundaries come again and again.

    Args:
        parse: the function.
    """

    def __init__(self, parse: Callable[[Any], Any]) -> None:
        super().__init__()
        self._parse = parse

    def __missing__(self, asked: Any) -> Any:
        said = self._parse(asked)
        if type(said) in _UNCHANGING:  # a list belongs to whoever asked
            if len(self) >= _REMEMBERED:
                self.clear()
            self[asked] = said
        return said


def _replies(connection: Any, count: int) -> list[list[bytes | None]]:
    """The next replies of a connection; those that have come already are taken from the parser, without a call each."""
    replies: list[list[bytes | None]] = []
    parser = connection._parser
    waiting = parser._reader.gets if isinstance(parser, _HiredisParser) and connection.protocol in (2, "2") else None
    while len(replies) < count:
        replies.append(connection.read_response(disable_decoding=True))
        while waiting and len(replies) < count and (reply := waiting(False)) is not NOT_ENOUGH_DATA:
            if isinstance(reply, Exception):
                raise reply
            replies.append(reply)
    return replies


def _client(address: RedisAddress, timeout: float) -> redis.Redis:
    # Feast's own client waits for ever: a store that hangs would take every thread of the server with it.
    settings: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        **address.settings,
    }
    if not address.sentinels:
        return redis.Redis(host=address.host, port=address.port, **settings)
    from redis.sentinel import Sentinel

    found: redis.Redis = Sentinel(list(address.sentinels), **settings).master_for(address.master)
    return found


def _by_entity(asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[list[int]]:
    """Places of the views that share a hash: same join keys, of the same columns."""
    groups: dict[tuple[tuple[str, ...], tuple[Key, ...]], list[int]] = {}
    for place, (spec, keys) in enumerate(asked):
        groups.setdefault((spec.join_keys, tuple(keys)), []).append(place)
    return list(groups.values())


def _bulk(content: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(content), content)


def _micros(stamp: bytes) -> int:
    """A serialised protobuf Timestamp: seconds in field 1, nanoseconds in field 2, either left out when zero."""
    seconds = nanos = place = 0
    while place < len(stamp):
        tag = stamp[place]
        value, place = signed(stamp, place + 1)
        if tag == 0x08:
            seconds = value
        else:
            nanos = value
    return seconds * 1_000_000 + nanos // 1000
