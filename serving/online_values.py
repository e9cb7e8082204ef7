"""The stored form of keys and values, by hand: Feast's own way through protobuf objects costs most of a request.

The forms are Feast's (`Value` and `EntityKey`, key serialisation version 3), the same in every online store of its.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from serving.online import Key

KeyKind = Literal["int32", "int64", "text", "timestamp"]
Decoder = Callable[[bytes | None], Any]

_NULL_INSTANT = -(1 << 63)  # Feast's null among timestamps
_DOUBLE, _FLOAT = struct.Struct("<d").unpack_from, struct.Struct("<f").unpack_from
_INT32, _INT64, _LENGTH = struct.Struct("<IIi").pack, struct.Struct("<IIq").pack, struct.Struct("<II").pack
_TEXT_TYPE, _INT32_TYPE, _INT64_TYPE, _TIMESTAMP_TYPE = 2, 3, 4, 8  # Feast's numbers of value types
_NO_ENTITY = "__dummy_id"


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


def key_encoder(join_keys: Sequence[str], kinds: Sequence[KeyKind]) -> Callable[[Key], bytes]:
    """What turns a key into the bytes a store knows it by.

    Args:
        join_keys: names as stored, in sorted order; none for a view without entities.
        kinds: of each join key.
    """
    names = [name.encode() for name in join_keys] or [_NO_ENTITY.encode()]
    head = struct.pack("<I", len(names)) + b"".join(_LENGTH(_TEXT_TYPE, len(name)) + name for name in names)
    if not join_keys:
        nobody = head + _LENGTH(_TEXT_TYPE, 0)
        return lambda key: nobody
    parts = [_KEY_PARTS[kind] for kind in kinds]
    if len(parts) == 1:
        only = parts[0]
        return lambda key: head + only(key[0])
    return lambda key: head + b"".join([part(value) for part, value in zip(parts, key, strict=True)])


def _text(value: str) -> bytes:
    content = value.encode()
    return _LENGTH(_TEXT_TYPE, len(content)) + content


_KEY_PARTS: dict[KeyKind, Callable[[Any], bytes]] = {
    "int32": lambda value: _INT32(_INT32_TYPE, 4, value),
    "int64": lambda value: _INT64(_INT64_TYPE, 8, value),
    "text": _text,
    "timestamp": lambda value: _INT64(_TIMESTAMP_TYPE, 8, int(value.timestamp())),
}
