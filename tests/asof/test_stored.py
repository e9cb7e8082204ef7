"""What is written by hand is what Feast's own objects serialise to, for every type, nulls included."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import extract_text_and_num
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asof import stored, wire_columns
from asof.stored import Column, Rows

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
moments = st.integers(-(10**16), 10**17).map(lambda micros: EPOCH + timedelta(microseconds=micros))
TYPES: list[tuple[Any, pa.DataType, st.SearchStrategy[Any]]] = [
    (Int32, pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    (Int64, pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    # Feast takes NaN, and bytes of no length, for null; they are kept, as training has them.
    (Float32, pa.float32(), st.floats(width=32, allow_nan=False)),
    # Whole numbers, and those about the sizes from which they are written with an exponent, besides any.
    (
        Float64,
        pa.float64(),
        st.floats(allow_nan=False) | st.integers(-(10**17), 10**17).map(float) | st.floats(1e-6, 1e-3),
    ),
    (Bool, pa.bool_(), st.booleans()),
    (String, pa.string(), st.text(max_size=300)),
    (Bytes, pa.binary(), st.binary(min_size=1, max_size=300)),
    (UnixTimestamp, pa.timestamp("us", "UTC"), moments),
    (Array(Float64), pa.list_(pa.float64()), st.lists(st.floats(), min_size=1)),
    (Array(String), pa.list_(pa.string()), st.lists(st.text(), min_size=1)),
]
columns = st.sampled_from(TYPES).flatmap(
    lambda kind: st.tuples(st.just(kind[0]), st.just(kind[1]), st.lists(st.none() | kind[2], min_size=1, max_size=5))
)


A_COLUMN_AT_A_TIME = pytest.mark.parametrize("many", [0, 1_000], ids=["columns", "values"])


def by_feast(dtype: Any, values: list[Any]) -> list[Value]:
    """A value at a time: in a column Feast reads the type of the first."""
    kind = dtype.to_value_type()
    return [Value() if value is None else python_values_to_proto_values([value], kind)[0] for value in values]


# Hypothesis builds its table of characters at the first text, within a draw.
@A_COLUMN_AT_A_TIME
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(columns)
def test_a_value_is_stored_as_feast_stores_it(many: int, case: tuple[Any, pa.DataType, list[Any]]) -> None:
    dtype, arrow, values = case
    column = Column(pa.chunked_array([pa.array(values, arrow)]), dtype)
    expected = by_feast(dtype, values)
    with mock.patch.object(stored, "MANY", many):
        assert column.stored().to_pylist() == [value.SerializeToString() for value in expected]
        assert column.texts().to_pylist() == [extract_text_and_num(value, False)[0] for value in expected]
        assert [value.SerializeToString() for value in column.protobuf()] == column.stored().to_pylist()


@A_COLUMN_AT_A_TIME
@pytest.mark.parametrize(("dtype", "arrow"), [(Float32, pa.float32()), (Float64, pa.float64())])
def test_a_number_that_is_none_is_kept(many: int, dtype: Any, arrow: pa.DataType) -> None:
    column = Column(pa.chunked_array([pa.array([math.nan, None], arrow)]), dtype)
    name = "float_val" if dtype == Float32 else "double_val"
    with mock.patch.object(stored, "MANY", many):
        assert column.stored().to_pylist() == [Value(**{name: math.nan}).SerializeToString(), b""]
        assert column.texts().to_pylist() == ["nan", None]


keys = st.sampled_from([kind for kind in TYPES if kind[0] in (Int32, Int64, String, Bytes, UnixTimestamp)]).flatmap(
    lambda kind: st.tuples(st.just(kind[0]), st.just(kind[1]), st.tuples(kind[2], kind[2]))
)


@A_COLUMN_AT_A_TIME
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.text(min_size=1), keys), max_size=3, unique_by=lambda key: key[0]))
def test_a_key_is_stored_as_feast_stores_it(many: int, key: list[tuple[str, tuple[Any, pa.DataType, Any]]]) -> None:
    names = tuple(name for name, _ in key)
    parts = tuple(Column(pa.chunked_array([pa.array(values, arrow)]), dtype) for _, (dtype, arrow, values) in key)
    rows = Rows(np.zeros(2, np.int64), names, parts, ())
    columns = [by_feast(dtype, values) for _, (dtype, _, values) in key] or [[Value(string_val="")] * 2]
    expected = [
        EntityKey(join_keys=names or ["__dummy_id"], entity_values=values) for values in zip(*columns, strict=True)
    ]
    with mock.patch.object(stored, "MANY", many):
        assert rows.entities(3).to_pylist() == [serialize_entity_key(each, 3) for each in expected]
        assert list(rows.entity_keys()) == expected


@given(st.lists(st.integers(-(10**16), 10**17), min_size=1))
def test_a_time_is_stored_as_protobuf_stores_it(events: list[int]) -> None:
    expected = []
    for event in events:
        stamp = Timestamp()
        stamp.FromMicroseconds(event)
        expected.append(stamp.SerializeToString())
    assert wire_columns.moments(np.array(events)).to_pylist() == expected


def test_a_key_that_no_store_can_hold_is_refused_as_feast_refuses_it() -> None:
    for arrow, dtype, value in ((pa.float64(), Float64, 1.0), (pa.int64(), Int64, None)):
        rows = Rows(np.zeros(1, np.int64), ("k",), (Column(pa.chunked_array([pa.array([value], arrow)]), dtype),), ())
        with pytest.raises(ValueError, match="not supported"):
            rows.entities(3)
