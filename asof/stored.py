"""Rows on their way to an online store, in the forms in which stores keep them.

Scalars and keys go straight to Feast's bytes: a column at a time (`asof.wire_columns`), or, of the few rows that a push
writes, a value at a time (`asof.wire`). What is rarer goes through Feast's own objects.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import extract_text_and_num
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.types import FeastType
from feast.value_type import ValueType

from asof import wire, wire_columns
from asof.definition import View

_FIELDS: dict[ValueType, str] = {
    ValueType.STRING: "string_val",
    ValueType.INT32: "int32_val",
    ValueType.INT64: "int64_val",
    ValueType.DOUBLE: "double_val",
    ValueType.FLOAT: "float_val",
    ValueType.BOOL: "bool_val",
    ValueType.BYTES: "bytes_val",
}
_VALUE_KINDS: dict[ValueType, wire.ValueKind] = {
    ValueType.STRING: "text",
    ValueType.INT32: "int32",
    ValueType.INT64: "int64",
    ValueType.DOUBLE: "double",
    ValueType.FLOAT: "float",
    ValueType.BOOL: "bool",
    ValueType.BYTES: "bytes",
    ValueType.UNIX_TIMESTAMP: "timestamp",
}
_KEY_KINDS: dict[ValueType, wire.KeyKind] = {
    ValueType.STRING: "text",
    ValueType.INT32: "int32",
    ValueType.INT64: "int64",
    ValueType.UNIX_TIMESTAMP: "timestamp",
}
_WITHOUT_TEXT = {ValueType.BYTES, ValueType.UNIX_TIMESTAMP}
_NOTHING = Value()

MANY = 100
"""Rows from which the columns are encoded as such: before, what that costs at least is more than it saves."""


class Column:
    """One feature, or one join key, of some rows.

    Args:
        column: in the Arrow type of `dtype`.
        dtype: the declared Feast type.
    """

    def __init__(self, column: pa.ChunkedArray, dtype: FeastType) -> None:
        self.kind = dtype.to_value_type()
        self._column = column

    @functools.cached_property
    def values(self) -> list[Any]:
        """As Python's objects."""
        values: list[Any] = self._column.to_pylist()
        return values

    @functools.cached_property
    def array(self) -> pa.Array | None:
        """As it may be encoded as a column; None if it is better encoded a value at a time, or must be."""
        if len(self._column) < MANY:
            return None
        array = self._column.combine_chunks()
        if self.kind == ValueType.UNIX_TIMESTAMP:
            furthest = pc.max(pc.abs(array.cast(pa.int64()))).as_py()
            if furthest is not None and furthest >= wire_columns.EXACT:
                return None
        return array

    @property
    def nulls(self) -> int:
        """How many there are."""
        return self._column.null_count

    def protobuf(self) -> Sequence[Value]:
        """As Feast's objects; a null is a value that says nothing."""
        if self.kind == ValueType.UNIX_TIMESTAMP:
            return [_NOTHING if v is None else Value(unix_timestamp_val=int(v.timestamp())) for v in self.values]
        if self.kind in _FIELDS:
            name = _FIELDS[self.kind]
            return [_NOTHING if value is None else Value(**{name: value}) for value in self.values]
        return python_values_to_proto_values(self.values, self.kind)

    def stored(self) -> pa.LargeBinaryArray:
        """As every store holds a value."""
        if self.kind in _VALUE_KINDS and self.array is not None:
            return wire_columns.encoded(self.array, _VALUE_KINDS[self.kind])
        return pa.array(self._stored(), pa.large_binary())

    def texts(self) -> pa.LargeStringArray:
        """What Feast's SQL stores hold beside a value, for a search by text."""
        if self.kind in _VALUE_KINDS and self.array is not None and self.kind not in _WITHOUT_TEXT:
            return wire_columns.texts(self.array, _VALUE_KINDS[self.kind])
        return pa.array(self._texts(), pa.large_string())

    def listed(self) -> tuple[list[bytes], list[str | None]]:
        """`stored` and `texts` as Python's objects."""
        if self.array is None:
            return self._stored(), self._texts()
        return self.stored().to_pylist(), self.texts().to_pylist()

    def _stored(self) -> list[bytes]:
        if self.kind not in _VALUE_KINDS:
            return [value.SerializeToString() for value in self.protobuf()]
        return wire.encoded(self.values, _VALUE_KINDS[self.kind])

    def _texts(self) -> list[str | None]:
        if self.kind in _WITHOUT_TEXT:
            return [None] * len(self._column)
        if self.kind not in _VALUE_KINDS:
            return [extract_text_and_num(value, False)[0] for value in self.protobuf()]
        return [None if value is None else str(value) for value in self.values]


@dataclass(frozen=True)
class Rows:
    """Some rows of one view."""

    events: np.ndarray
    """Their times, microseconds (int64)."""
    names: tuple[str, ...]
    """Of the join keys; none for a view without entities."""
    keys: tuple[Column, ...]
    """One per join key."""
    features: tuple[Column, ...]
    """One per feature, in the order of their names."""

    def __len__(self) -> int:
        return len(self.events)

    def entities(self, version: int) -> pa.LargeBinaryArray:
        """What a store knows the keys by, in Feast's serialisation version `version`."""
        return pa.array(self._entities(version), pa.large_binary())

    def _entities(self, version: int) -> pa.LargeBinaryArray | list[bytes]:
        if version != 3 or any(column.kind not in _KEY_KINDS or column.nulls for column in self.keys):
            return [serialize_entity_key(key, version) for key in self.entity_keys()]
        columns = dict(sorted(zip(self.names, self.keys, strict=True)))
        kinds = [_KEY_KINDS[column.kind] for column in columns.values()]
        arrays = [column.array for column in columns.values()]
        if arrays and all(array is not None for array in arrays):
            return wire_columns.keys(list(columns), arrays, kinds)
        encode = wire.key_encoder(list(columns), kinds)
        if not columns:
            return [encode(())] * len(self)
        return [encode(key) for key in zip(*(column.values for column in columns.values()), strict=True)]

    def entity_keys(self) -> Iterator[EntityKey]:
        """The keys as Feast's objects."""
        if not self.names:
            dummy = EntityKey(join_keys=[DUMMY_ENTITY_ID], entity_values=[Value(string_val=DUMMY_ENTITY_VAL)])
            yield from [dummy] * len(self)
            return
        for values in zip(*(column.protobuf() for column in self.keys), strict=True):
            yield EntityKey(join_keys=self.names, entity_values=values)


def rows_of(view: View, events: np.ndarray, keys: pa.Table, features: pa.Table) -> Rows:
    """Rows of a view, from tables of the same height.

    Args:
        view: which they belong to.
        events: microseconds.
        keys: columns as in the spine.
        features: columns by name.
    """
    types = {feature.name: feature.field.dtype for feature in view.features}
    return Rows(
        events,
        tuple(key.name for key in view.keys),
        tuple(Column(keys[key.column], key.feast_type) for key in view.keys),
        tuple(Column(features[name], types[name]) for name in features.column_names),
    )
