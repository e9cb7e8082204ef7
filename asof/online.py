"""Writing answers to whatever online store the repository names, newest value kept.

A store may let an older event overwrite a newer one, so the times it holds are read in bulk first and older values
are left out. SQLite, the embedded default, is written by `asof.sqlite` instead: faster, and guarded by the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.types import FeastType
from feast.value_type import ValueType

from asof import sqlite
from asof.clockwork import from_micros
from asof.definition import View
from asof.engine import Answer

ROWS_PER_WRITE = 10_000

_SCALARS: dict[ValueType, str] = {
    ValueType.STRING: "string_val",
    ValueType.INT32: "int32_val",
    ValueType.INT64: "int64_val",
    ValueType.DOUBLE: "double_val",
    ValueType.FLOAT: "float_val",
    ValueType.BOOL: "bool_val",
    ValueType.BYTES: "bytes_val",
}
_NOTHING = Value()


def write(
    answer: Answer,
    keys: pa.Table,
    feature_view: FeatureView,
    config: RepoConfig,
    store: OnlineStore,
    progress: Callable[[int], Any] | None = None,
) -> int:
    """Write the found rows of an answer.

    Args:
        answer: features of one view, a row per key.
        keys: the keys, rows as in the answer, columns as in the spine.
        feature_view: the Feast view they belong to.
        config: of the repository.
        store: of the repository.
        progress: called with the number of rows done.

    Returns:
        Rows written; those the store holds a newer value for are not.
    """
    rows = np.flatnonzero(answer.found)
    entity_keys = list(_entity_keys(answer.view, keys.take(rows)))
    names = answer.features.column_names
    table = answer.features.take(rows)
    types = {feature.name: feature.field.dtype for feature in answer.view.features}
    columns = [values_of(table[name], types[name]) for name in names]
    events = [from_micros(micros) for micros in answer.event[rows].tolist()]
    if sqlite.writable(store, config):
        written = sqlite.write_cells(
            config, store, feature_view, names, zip(entity_keys, zip(*columns, strict=True), events, strict=True)
        )
        if progress:
            progress(len(rows))
        return written
    written = 0
    for first in range(0, len(rows), ROWS_PER_WRITE):
        part = slice(first, first + ROWS_PER_WRITE)
        stored = store.online_read(config, feature_view, entity_keys[part], names[:1])
        cells = zip(*(column[part] for column in columns), strict=True)
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]] = [
            (key, dict(zip(names, values, strict=True)), event, None)
            for key, values, event, (newest, _) in zip(entity_keys[part], cells, events[part], stored, strict=True)
            if newest is None or _utc(newest) <= event
        ]
        if data:
            store.online_write_batch(config, feature_view, data, None)
        written += len(data)
        if progress:
            progress(len(stored))
    return written


def _entity_keys(view: View, keys: pa.Table) -> Iterator[EntityKey]:
    if not view.keys:
        dummy = EntityKey(join_keys=[DUMMY_ENTITY_ID], entity_values=[Value(string_val=DUMMY_ENTITY_VAL)])
        yield from [dummy] * keys.num_rows
        return
    names = [key.name for key in view.keys]
    columns = [values_of(keys[key.column], key.feast_type) for key in view.keys]
    for values in zip(*columns, strict=True):
        yield EntityKey(join_keys=names, entity_values=values)


def values_of(column: pa.ChunkedArray, dtype: FeastType) -> Sequence[Value]:
    """Feast's online form of a column; a null is a value that says nothing.

    Args:
        column: in the Arrow type of `dtype`.
        dtype: the declared Feast type.
    """
    kind = dtype.to_value_type()
    values = column.to_pylist()
    if kind == ValueType.UNIX_TIMESTAMP:
        return [_NOTHING if v is None else Value(unix_timestamp_val=int(v.timestamp())) for v in values]
    if kind in _SCALARS:
        name = _SCALARS[kind]
        return [_NOTHING if value is None else Value(**{name: value}) for value in values]
    return python_values_to_proto_values(values, kind)


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
