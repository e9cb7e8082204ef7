"""Rows on their way to an online store, in the forms in which stores keep them.

Scalars and keys go straight to Feast's bytes (`asof.wire`); what is rarer goes through Feast's own objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import extract_text_and_num
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.types import FeastType
from feast.value_type import ValueType

from asof import wire
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


class Column:
    """One feature, or one join key, of some rows.

    Args:
        column: in the Arrow type of `dtype`.
        dtype: the declared Feast type.
    """

    def __init__(self, column: pa.ChunkedArray, dtype: FeastType) -> None:
        self.kind = dtype.to_value_type()
        self.values: list[Any] = column.to_pylist()

    def protobuf(self) -> Sequence[Value]:
        """As Feast's objects; a null is a value that says nothing."""
        if self.kind == ValueType.UNIX_TIMESTAMP:
            return [_NOTHING if v is None else Value(unix_timestamp_val=int(v.timestamp())) for v in self.values]
        if self.kind in _FIELDS:
            name = _FIELDS[self.kind]
            return [_NOTHING if value is None else Value(**{name: value}) for value in self.values]
        return python_values_to_proto_values(self.values, self.kind)

    def stored(self) -> list[bytes]:
        """As every store holds a value."""
        if self.kind in _VALUE_KINDS:
            return wire.encoded(self.values, _VALUE_KINDS[self.kind])
        return [value.SerializeToString() for value in self.protobuf()]

    def texts(self) -> list[str | None]:
        """What Feast's SQL stores hold beside a value, for a search by text."""
        if self.kind in _WITHOUT_TEXT:
            return [None] * len(self.values)
        if self.kind in _VALUE_KINDS:
            return [None if value is None else str(value) for value in self.values]
        return [extract_text_and_num(value, False)[0] for value in self.protobuf()]


@dataclass(frozen=True)
class Rows:
    """Some rows of one view."""

    events: list[int]
    """Their times, microseconds."""
    names: tuple[str, ...]
    """Of the join keys; none for a view without entities."""
    keys: tuple[Column, ...]
    """One per join key."""
    features: tuple[Column, ...]
    """One per feature, in the order of their names."""

    def __len__(self) -> int:
        return len(self.events)

    def entities(self, version: int) -> list[bytes]:
        """What a store knows the keys by, in Feast's serialisation version `version`."""
        if version != 3 or any(column.kind not in _KEY_KINDS or None in column.values for column in self.keys):
            return [serialize_entity_key(key, version) for key in self.entity_keys()]
        columns = dict(sorted(zip(self.names, self.keys, strict=True)))
        encode = wire.key_encoder(list(columns), [_KEY_KINDS[column.kind] for column in columns.values()])
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


def rows_of(view: View, events: Sequence[int], keys: pa.Table, features: pa.Table) -> Rows:
    """Rows of a view, from tables of the same height.

    Args:
        view: which they belong to.
        events: microseconds.
        keys: columns as in the spine.
        features: columns by name.
    """
    types = {feature.name: feature.field.dtype for feature in view.features}
    return Rows(
        list(events),
        tuple(key.name for key in view.keys),
        tuple(Column(keys[key.column], key.feast_type) for key in view.keys),
        tuple(Column(features[name], types[name]) for name in features.column_names),
    )
