"""The bytes of `asof.wire`, a column of values at a time: numpy and Arrow form them, Python sees none of the values.

Everything here takes an Arrow array and gives one of the same length. The types are those of 64-bit offsets: what is
written at once may be more than 2 GiB.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asof import wire

EXACT = 1 << 53
"""Microseconds up to which a whole number of them is a float; beyond it, seconds are rounded as Python rounds them."""

_TAGS: dict[wire.ValueKind, bytes] = {
    "int32": b"\x18",
    "int64": b"\x20",
    "double": b"\x29",
    "float": b"\x35",
    "bool": b"\x38",
    "text": b"\x12",
    "bytes": b"\x0a",
    "timestamp": b"\x40",
}
_WIDTHS = {"double": "<f8", "float": "<f4"}


def encoded(column: pa.Array, kind: wire.ValueKind) -> pa.LargeBinaryArray:
    """The stored form of scalars; empty for null.

    Args:
        column: in the Arrow type of the kind; timestamps in microseconds, less than `EXACT` of them from 1970.
        kind: of all of them.
    """
    tag, null = _TAGS[kind], _nulls(column)
    if kind in ("text", "bytes"):
        content = pc.fill_null(column.cast(pa.large_binary()), b"")
        return joined(_varints(tag, np.diff(_offsets(content)).astype(np.uint64), null), content)
    if kind in _WIDTHS:
        return _fixed(tag, _numbers(column, _WIDTHS[kind]), null)
    numbers = _seconds(column) if kind == "timestamp" else _numbers(column, "<i8")
    return _varints(tag, numbers.view(np.uint64), null)


def keys(join_keys: Sequence[str], columns: Sequence[pa.Array], kinds: Sequence[wire.KeyKind]) -> pa.LargeBinaryArray:
    """What a store knows keys by, as `wire.key_encoder` gives it.

    Args:
        join_keys: names as stored, in sorted order; at least one.
        columns: of each join key, without nulls.
        kinds: of each join key.
    """
    parts: list[pa.LargeBinaryArray | bytes] = [wire.key_head(join_keys)]
    for column, kind in zip(columns, kinds, strict=True):
        code, size = wire.KEY_TYPES[kind]
        if kind == "text":
            content = column.cast(pa.large_binary())
            parts += [struct.pack("<I", code), lengths(content, "<u4"), content]
        else:
            numbers = _seconds(column) if kind == "timestamp" else _numbers(column, f"<i{size}")
            parts.append(_fixed(struct.pack("<II", code, size), numbers, None))
    return joined(*parts)


def moments(events: np.ndarray) -> pa.LargeBinaryArray:
    """Serialised protobuf Timestamps of microseconds since 1970."""
    seconds, micros = np.divmod(events, 1_000_000)
    # Protobuf leaves a zero out.
    return joined(
        _varints(b"\x08", seconds.view(np.uint64), seconds == 0),
        _varints(b"\x10", (micros * 1000).view(np.uint64), micros == 0),
    )


def texts(column: pa.Array, kind: wire.ValueKind) -> pa.LargeStringArray:
    """What Python's `str` says of each value; null of null."""
    if kind == "bool":
        return pc.if_else(column, "True", "False").cast(pa.large_string())
    if kind not in _WIDTHS:
        return column.cast(pa.large_string())
    column = column.cast(pa.float64())
    numbers = _numbers(column, "<f8")
    # Arrow writes the same digits as Python, but whole numbers without a fraction, and exponents from other sizes on.
    size, whole = np.abs(numbers), np.trunc(numbers) == numbers
    alike = (size >= 1e-4) & (size < 1e9) | (numbers == 0)
    said = pc.binary_join_element_wise(
        column.cast(pa.large_string()), _as_text(np.where(whole, ".0", "")), pa.scalar("", pa.large_string())
    )
    odd = np.flatnonzero(~alike & (column.is_valid().to_numpy(zero_copy_only=False)))
    if not len(odd):
        return said
    mask = np.zeros(len(column), bool)
    mask[odd] = True
    return pc.replace_with_mask(said, mask, _as_text([str(each) for each in numbers[odd].tolist()]))


def _as_text(values: Sequence[str] | np.ndarray) -> pa.LargeStringArray:
    return pa.array(values, pa.large_string())


def joined(*parts: pa.LargeBinaryArray | bytes) -> pa.LargeBinaryArray:
    """Of each row the parts one after the other; a part is an array, or the same bytes for every row."""
    scalars = [pa.scalar(part, pa.large_binary()) if isinstance(part, bytes) else part for part in parts]
    return pc.binary_join_element_wise(*scalars, pa.scalar(b"", pa.large_binary()))


def lengths(column: pa.LargeBinaryArray, form: str) -> pa.LargeBinaryArray:
    """The length of each element as a number in a numpy form such as `<u4`."""
    return _fixed(b"", sizes(column).astype(form), None)


def sizes(column: pa.LargeBinaryArray) -> np.ndarray:
    """The length of each element in bytes."""
    return np.diff(_offsets(column))


def content(column: pa.LargeBinaryArray) -> np.ndarray:
    """The bytes of the elements, one after the other."""
    offsets, data = _offsets(column), column.buffers()[2]
    return np.frombuffer(data or b"", np.uint8)[int(offsets[0]) : int(offsets[-1])]


def numbers(values: np.ndarray) -> pa.LargeBinaryArray:
    """Numbers in the form they have in memory."""
    return _fixed(b"", values, None)


def slices(column: pa.LargeBinaryArray, rows: int) -> list[bytes]:
    """The elements run together, `rows` of them at a time."""
    offsets, data = _offsets(column), column.buffers()[2]
    bounds = [*offsets[:-1:rows].tolist(), int(offsets[-1])]
    return [data[first:last].to_pybytes() for first, last in itertools.pairwise(bounds)]


def _nulls(column: pa.Array) -> np.ndarray | None:
    return column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None


def _numbers(column: pa.Array, form: str) -> np.ndarray:
    zero = False if pa.types.is_boolean(column.type) else 0
    filled = pc.fill_null(column, pa.scalar(zero, column.type)) if column.null_count else column
    return np.ascontiguousarray(filled.to_numpy(zero_copy_only=False), form)


def _seconds(column: pa.Array) -> np.ndarray:
    """Whole seconds, cut off towards 1970 as Feast cuts them off."""
    return (_numbers(column.cast(pa.int64()), "<i8") / 1e6).astype(np.int64)


def _offsets(column: pa.LargeBinaryArray) -> np.ndarray:
    return np.frombuffer(column.buffers()[1], np.int64, len(column) + 1, 8 * column.offset)


def _fixed(head: bytes, values: np.ndarray, null: np.ndarray | None) -> pa.LargeBinaryArray:
    """Numbers of one width behind the same bytes; nothing where null."""
    width = len(head) + values.itemsize
    cells = np.empty((len(values), width), np.uint8)
    cells[:, : len(head)] = np.frombuffer(head, np.uint8)
    cells[:, len(head) :] = values.view(np.uint8).reshape(len(values), values.itemsize)
    if null is not None:
        return _array(cells[~null], np.where(null, 0, width))
    return _array(cells, np.full(len(values), width))


def _varints(tag: bytes, values: np.ndarray, null: np.ndarray | None) -> pa.LargeBinaryArray:
    """Variable-length integers behind a tag of one byte; nothing where null."""
    groups = max(1, -(-int(values.max(initial=0)).bit_length() // 7))
    cells = np.empty((len(values), 1 + groups), np.uint8)
    cells[:, 0] = tag[0]
    size = np.full(len(values), 2)
    for group in range(groups):
        rest = values >> np.uint64(7 * group)
        more = rest > 0x7F
        size += more
        cells[:, 1 + group] = rest & np.uint64(0x7F) | more.astype(np.uint64) << np.uint64(7)
    if null is not None:
        size[null] = 0
    if groups == 1 and null is None:
        return _array(cells, size)
    return _array(cells[np.arange(1 + groups) < size[:, None]], size)


def _array(cells: np.ndarray, size: np.ndarray) -> pa.LargeBinaryArray:
    """An array of elements of these sizes out of their bytes, which lie one after the other."""
    offsets = np.zeros(len(size) + 1, np.int64)
    np.cumsum(size, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(cells))]
    return pa.Array.from_buffers(pa.large_binary(), len(size), buffers)
