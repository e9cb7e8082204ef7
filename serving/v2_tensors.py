"""Tensors of the Open Inference Protocol: what their bytes and JSON data hold, as Python values and back.

One row of a request is one place of every tensor. A missing value is null in JSON data, NaN in a floating-point
tensor, and elsewhere a place marked in the tensor `NAME.null` (BOOL) beside the tensor `NAME`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.requests import BadRequest

NUMPY = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""Data types of one width and how their bytes are read; BYTES is the other one that is understood."""
_JSON: dict[str, tuple[type, ...]] = {
    name: (bool,) if name == "BOOL" else (int, float) if name.startswith("FP") else (int,) for name in NUMPY
}
_JSON["BYTES"] = (str,)
_MOST_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named column of N values."""

    name: str
    datatype: str
    values: list[Any]
    """Python values, text as str, None where there is none."""

    @property
    def shape(self) -> list[int]:
        """[N]."""
        return [len(self.values)]


def rows_of(name: str, datatype: Any, shape: Any) -> int:
    """How many rows a tensor of this description has. Raises BadRequest unless it is [N] or [N, 1] of a known type."""
    if not isinstance(datatype, str) or datatype not in _JSON:
        raise BadRequest(400, f"inputs.{name}.datatype", datatype, f"one of {', '.join(_JSON)}")
    sound = isinstance(shape, Sequence) and not isinstance(shape, str) and 0 < len(shape) <= _MOST_DIMENSIONS
    if not sound or not all(type(each) is int and each >= 0 for each in shape) or any(each != 1 for each in shape[1:]):
        raise BadRequest(400, f"inputs.{name}.shape", list(shape) if sound else shape, "[N] or [N, 1], N rows")
    count: int = shape[0]
    return count


def from_bytes(name: str, datatype: str, count: int, raw: bytes) -> Tensor:
    """A tensor of `count` values out of its binary form: little-endian, of texts each with its length before it."""
    if datatype == "BYTES":
        return Tensor(name, datatype, _texts(name, count, raw))
    kind = np.dtype(NUMPY[datatype])
    if len(raw) != count * kind.itemsize:
        raise BadRequest(
            400, f"inputs.{name}", f"{len(raw)} bytes", f"{count * kind.itemsize} bytes, {count} of {datatype}"
        )
    values = np.frombuffer(raw, kind).tolist()
    if datatype.startswith("FP"):
        values = [None if math.isnan(value) else value for value in values]
    return Tensor(name, datatype, values)


def from_json(name: str, datatype: str, count: int, data: Any) -> Tensor:
    """A tensor out of its JSON data, flat or nested as its shape is; null where a value is missing."""
    values = _flat(data)
    if values is None or len(values) != count:
        given = data if values is None else f"{len(values)} values"
        raise BadRequest(400, f"inputs.{name}.data", given, f"a list of {count} values")
    allowed = _JSON[datatype]
    for value in values:
        if value is not None and not (isinstance(value, allowed) and (type(value) is not bool or datatype == "BOOL")):
            raise BadRequest(400, f"inputs.{name}.data", value, f"values of {datatype}")
    return Tensor(name, datatype, values)


def to_bytes(tensor: Tensor) -> bytes:
    """A tensor's binary form."""
    if tensor.datatype != "BYTES":
        return np.array(tensor.values, NUMPY[tensor.datatype]).tobytes()
    encoded = [str(value).encode() for value in tensor.values]
    return b"".join(part for each in encoded for part in (struct.pack("<I", len(each)), each))


def _flat(data: Any) -> list[Any] | None:
    """The values of a list whose items may be lists of one; None when it is something else."""
    if not isinstance(data, list):
        return None
    flat: list[Any] = []
    for item in data:
        depth = 0
        while isinstance(item, list) and len(item) == 1 and depth < _MOST_DIMENSIONS:
            item, depth = item[0], depth + 1
        if isinstance(item, list | dict):
            return None
        flat.append(item)
    return flat


def _texts(name: str, count: int, raw: bytes) -> list[str]:
    texts: list[str] = []
    place = 0
    while place < len(raw):
        start = place + 4
        end = start + int.from_bytes(raw[place:start], "little")
        if end > len(raw) or start > len(raw):
            raise BadRequest(400, f"inputs.{name}", f"{len(raw)} bytes", "each text with its length before it, 4 bytes")
        try:
            texts.append(raw[start:end].decode())
        except UnicodeDecodeError as error:
            raise BadRequest(400, f"inputs.{name}", repr(raw[start:end]), "text in UTF-8") from error
        place = end
    if len(texts) != count:
        raise BadRequest(400, f"inputs.{name}", f"{len(texts)} texts", f"{count} of them, as its shape says")
    return texts
