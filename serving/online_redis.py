"""Feast's Redis online store, read for latency: one pipeline for all views and keys; serving's door to redis-py.

Feast keeps all views of an entity in one hash, so they take one HMGET together. The commands are packed here: what
changes from request to request is the key alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from asof.wire import Decoder, signed
from serving.online import TIMEOUT_SECONDS, Key, Row, StoreUnavailable, ViewSpec


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
    """

    waits = True

    def __init__(
        self,
        address: RedisAddress,
        project: str,
        hashes: Mapping[str, Sequence[bytes]],
        encoders: Mapping[str, Callable[[Key], bytes]],
        decode: Decoder,
    ) -> None:
        self._where = (
            f"master {address.master!r} of the sentinels {address.sentinels}"
            if address.sentinels
            else f"{address.host}:{address.port}"
        )
        self._client = _client(address)
        self._project = project.encode()
        self._fields = {view: b"".join([_bulk(name) for name in names]) for view, names in hashes.items()}
        self._encoders = encoders
        self._decode = decode

    def read(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[list[Row | None]]:
        """Rows of each view for its distinct keys, in their order.

        Raises:
            StoreUnavailable: the server cannot be reached, or answers neither in time nor what was asked.
        """
        groups = _by_entity(asked)
        pieces: list[bytes] = []
        for members in groups:
            spec, keys = asked[members[0]]
            width = sum(len(asked[member][0].features) + 1 for member in members)
            fields = b"".join([self._fields[asked[member][0].name] for member in members])
            head, encode, project = b"*%d\r\n$5\r\nHMGET\r\n" % (width + 2), self._encoders[spec.name], self._project
            pieces += [head + _bulk(encode(key) + project) + fields for key in keys]
        replies = iter(self._ask(b"".join(pieces), len(pieces)))
        decode = self._decode
        rows: list[list[Row | None]] = [[] for _ in asked]
        for members in groups:
            widths = [(rows[member], len(asked[member][0].features)) for member in members]
            for _ in asked[members[0]][1]:
                values, first = next(replies), 0
                for into, width in widths:
                    end = first + width
                    stamp = values[end]
                    found = None if stamp is None else (_micros(stamp), tuple([decode(v) for v in values[first:end]]))
                    into.append(found)
                    first = end + 1
        return rows

    def _ask(self, commands: bytes, count: int) -> list[list[bytes | None]]:
        if not count:
            return []
        pool = self._client.connection_pool
        for last in (False, True):
            connection = None
            try:
                connection = pool.get_connection()
                connection.send_packed_command([commands])
                return [connection.read_response(disable_decoding=True) for _ in range(count)]
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
            f"it has {TIMEOUT_SECONDS:g} s unless that names a socket_timeout.",
        )


def _client(address: RedisAddress) -> redis.Redis:
    # Feast's own client waits for ever: a store that hangs would take every thread of the server with it.
    settings: dict[str, Any] = {
        "socket_timeout": TIMEOUT_SECONDS,
        "socket_connect_timeout": TIMEOUT_SECONDS,
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
