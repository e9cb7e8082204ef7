"""Feast's Redis online store, read for latency: one pipeline for all views and keys.

Feast keeps all views of an entity in one hash, so they take one HMGET together. The commands are packed here: what
changes from request to request is the key alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from asof.wire import Decoder, signed
from serving.online import TIMEOUT_SECONDS, Key, Row, ViewSpec
from serving.redis_servers import RedisAddress, servers_at

_REMEMBERED = 50_000
"""Answers kept, of one function."""
_UNCHANGING = {int, float, str, bytes, bool, datetime, type(None)}


class RedisReader:
    """Reads a Redis online store. Thread-safe: a connection serves one read at a time.

    Args:
        address: of the store.
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
        self._ask = servers_at(address, timeout).ask
        self._project = project.encode()
        self._fields = {view: b"".join([_bulk(name) for name in names]) for view, names in hashes.items()}
        self._encoders = encoders
        self._decoded = _Known(decode)
        self._micros = _Known(_micros)
        self._known_commands: dict[tuple[str, ...], _Known] = {}

    def read(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[list[Row | None]]:
        """Rows of each view for its distinct keys, in their order.

        Raises:
            StoreUnavailable: the store cannot be reached, or answers neither in time nor what was asked.
        """
        groups = _by_entity(asked)
        pieces: list[bytes] = []
        for members in groups:
            pieces += map(self._commands([asked[member][0] for member in members]).__getitem__, asked[members[0]][1])
        replies = iter(self._ask(pieces))
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
