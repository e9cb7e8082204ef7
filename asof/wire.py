"""The bytes in which Feast's online stores hold keys and values, by hand, in both directions.

Feast's own way, through protobuf objects, costs most of a request and most of a write. The forms are Feast's (`Value`
and `EntityKey`, key serialisation version 3), the same in every online store of its.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

KeyKind = Literal["int32", "int64", "text", "timestamp"]
ValueKind = Literal["int32", "int64", "double", "float", "bool", "text", "bytes", "timestamp"]
Key = tuple[Any, ...]
Decoder = Callable[[bytes | None], Any]

_NULL_INSTANT = -(1 << 63)  # Feast's null among timestamps
_DOUBLE, _FLOAT = struct.Struct("<d").unpack_from, struct.Struct("<f").unpack_from
_TAGGED_DOUBLE, _TAGGED_FLOAT = struct.Struct("<Bd").pack, struct.Struct("<Bf").pack
_INT32, _INT64, _LENGTH = struct.Struct("<i").pack, struct.Struct("<q").pack, struct.Struct("<II").pack
KEY_TYPES: dict[KeyKind, tuple[int, int]] = {"text": (2, 0), "int32": (3, 4), "int64": (4, 8), "timestamp": (8, 8)}
"""Feast's number of each type of a key, and the bytes it takes; 0 where each value says."""
_HEADS = {kind: _LENGTH(*numbers) for kind, numbers in KEY_TYPES.items()}
_NO_ENTITY = "__dummy_id"


def encoded(values: Sequence[Any], kind: ValueKind) -> list[bytes]:
    """The stored form of scalars; nothing for None.

    Args:
        values: Python's, in the range of their kind; a timestamp is a `datetime` that knows its zone.
        kind: of all of them.
    """
    encode = _VALUES[kind]
    return [b"" if value is None else encode(value) for value in values]


def decoder(parse: Callable[[bytes], Any]) -> Decoder:
    """What turns a serialised value into Python, scalars by hand and the rest by `parse`; None for null and nothing."""

    def decode(stored: bytes | None) -> Any:
        if not stored:
            return None
        tag = stored[0]
        if tag == 0x29:
            return _DOUBLE(stored, 1)[0]
        if tag == 0x20 or tag == 0x18:
            return stored[1] if len(stored) == 2 else signed(stored, 1)[0]
        if tag == 0x12 and stored[1] < 0x80:
            return stored[2:].decode()
        if tag == 0x38:
            return stored[1] != 0
        if tag == 0x35:
            return _FLOAT(stored, 1)[0]
        if tag == 0x40:
            seconds = signed(stored, 1)[0]
            return None if seconds == _NULL_INSTANT else datetime.fromtimestamp(seconds, UTC)
        return parse(stored)

    return decode


def signed(stored: bytes, start: int) -> tuple[int, int]:
    """The variable-length integer at `start`, in two's complement of 64 bits; and the place behind it."""
    value = shift = 0
    place = start
    while True:
        byte = stored[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return (value - (1 << 64) if value >= 1 << 63 else value), place
        shift += 7


def _varint(value: int) -> bytes:
    """The inverse of `signed`."""
    if 0 <= value < 0x80:
        return _ONE_BYTE[value]
    if value < 0:
        value += 1 << 64
    stored = bytearray()
    while value >= 0x80:
        stored.append(value & 0x7F | 0x80)
        value >>= 7
    stored.append(value)
    return bytes(stored)


_ONE_BYTE = [bytes([value]) for value in range(0x80)]


def _content(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


_VALUES: dict[ValueKind, Callable[[Any], bytes]] = {
    "int32": lambda value: b"\x18" + _varint(value),
    "int64": lambda value: b"\x20" + _varint(value),
    "double": lambda value: _TAGGED_DOUBLE(0x29, value),
    "float": lambda value: _TAGGED_FLOAT(0x35, value),
    "bool": lambda value: b"\x38\x01" if value else b"\x38\x00",
    "text": lambda value: _content(b"\x12", value.encode()),
    "bytes": lambda value: _content(b"\x0a", value),
    "timestamp": lambda value: b"\x40" + _varint(int(value.timestamp())),
}


def key_encoder(join_keys: Sequence[str], kinds: Sequence[KeyKind]) -> Callable[[Key], bytes]:
    """What turns a key into the bytes a store knows it by.

    Args:
        join_keys: names as stored, in sorted order; none for a view without entities.
        kinds: of each join key.
    """
    head = key_head(join_keys)
    if not join_keys:
        nobody = head + _text("")
        return lambda key: nobody
    parts = [_KEY_PARTS[kind] for kind in kinds]
    if len(parts) == 1:
        only = parts[0]
        return lambda key: head + only(key[0])
    return lambda key: head + b"".join([part(value) for part, value in zip(parts, key, strict=True)])


def key_head(join_keys: Sequence[str]) -> bytes:
    """What every key of these names begins with; see `key_encoder`."""
    names = join_keys or [_NO_ENTITY]
    return struct.pack("<I", len(names)) + b"".join(map(_text, names))


def _text(value: str) -> bytes:
    content = value.encode()
    return _LENGTH(KEY_TYPES["text"][0], len(content)) + content


_KEY_PARTS: dict[KeyKind, Callable[[Any], bytes]] = {
    "int32": lambda value: _HEADS["int32"] + _INT32(value),
    "int64": lambda value: _HEADS["int64"] + _INT64(value),
    "text": _text,
    "timestamp": lambda value: _HEADS["timestamp"] + _INT64(int(value.timestamp())),
}
