"""Serving's one door to Feast: a feature service compiled into a `FeaturePlan`.

    plan = compile_plan(open_store(repo_path), "late_arrival_v1")
    plan.vectors({"origin": ["JFK"], ...}, [instant])

What Feast looks up per request (views, join keys, types, transformations) is resolved here once; the answers stay those
of `FeatureStore.get_online_features`, under the rules of time that `serving.vectors` adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from feast import FeatureService, FeatureStore, FeatureView, OnDemandFeatureView
from feast.errors import FeastObjectNotFoundException
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.sqlite import SqliteOnlineStore, _table_id
from feast.infra.passthrough_provider import PassthroughProvider
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type
from feast.types import from_feast_to_pyarrow_type
from feast.utils import _get_online_request_context
from feast.value_type import ValueType

from asof.aggregate import canonical
from asof.fingerprint import service_fingerprint
from asof.kept import aggregations_of
from asof.repository import open_store
from asof.view import EVERY, InvalidView, grid_of
from contracts.bundle import FeatureSpec
from contracts.errors import SkewlessError
from serving.online_sqlite import SqliteReader
from serving.vectors import Columns, FeaturePlan, InputField, InputType, Key, OnlineReader, Row, Transform, ViewSpec

_INPUT_TYPES: dict[ValueType, InputType] = {
    ValueType.INT32: "integer",
    ValueType.INT64: "integer",
    ValueType.FLOAT: "number",
    ValueType.DOUBLE: "number",
    ValueType.STRING: "text",
    ValueType.BOOL: "boolean",
    ValueType.UNIX_TIMESTAMP: "timestamp",
}
_NUMBERS = {ValueType.INT32, ValueType.INT64, ValueType.FLOAT, ValueType.DOUBLE, ValueType.BOOL}
_KEY_FIELDS = {
    ValueType.INT32: "int32_val",
    ValueType.INT64: "int64_val",
    ValueType.STRING: "string_val",
    ValueType.UNIX_TIMESTAMP: "unix_timestamp_val",
}
_ARROW: dict[InputType, pa.DataType] = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "text": pa.string(),
    "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
_NO_ENTITY = "__dummy_id"
_COUNTS = {"count", "count_distinct"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class PlanError(SkewlessError, ValueError):
    """A feature service that cannot be served."""


def open_repository(path: Path) -> FeatureStore:
    """The Feast store of a repository, file-based ones with asof behind them."""
    return open_store(path)


def compile_plan(store: FeatureStore, service_name: str) -> FeaturePlan:
    """Resolve a service against the registry as it is now.

    Raises:
        PlanError: no such service, or it holds what cannot be served: a view that is switched off, a feature that is
            neither number nor text, a transformation that is neither Python nor pandas.
    """
    store.refresh_registry()
    try:
        service = store.get_feature_service(service_name)
        context = _get_online_request_context(store.registry, store.project, service, False)
    except FeastObjectNotFoundException as error:
        known = ", ".join(sorted(each.name for each in store.list_feature_services())) or "none"
        raise PlanError(
            f"Feature service {service_name!r} is not in the Feast registry: {error}",
            hint=f"services there: {known}; correct the task's feature_service, or define it and run `feast apply`.",
        ) from error
    except ValueError as error:
        raise PlanError(f"Feature service {service_name!r} cannot be served: {error}") from error
    _, on_demand, _, key_types, _, grouped, *_ = context
    kinds = {column: kind for column, kind in key_types.items() if column != _NO_ENTITY}
    views = [_view(view, sorted(names)) for view, names in grouped]
    read = {column for spec in views for column in spec.columns}
    inputs = [_input(name, kinds[name], "key") for name in sorted(read)]
    request = {name: kind for view in on_demand for name, kind in view.get_request_data_schema().items()}
    inputs += [_input(name, kind, "request") for name, kind in sorted(request.items()) if name not in read]
    fields = {field.name: field.dtype for view, names in grouped for field in view.features if field.name in names}
    types = {name: from_feast_to_pyarrow_type(dtype) for name, dtype in fields.items()}
    types |= {each.name: _ARROW[each.type] for each in inputs}
    return FeaturePlan(
        service=service_name,
        fingerprint=service_fingerprint(store, service_name),
        features=_features(service),
        inputs=inputs,
        views=views,
        transforms=[_transform(view, service, grouped, inputs, types) for view in on_demand],
        reader=online_reader(store, [view for view, _ in grouped], kinds),
    )


def _features(service: FeatureService) -> list[FeatureSpec]:
    specs = []
    for projection in service.feature_view_projections:
        for field in projection.features:
            kind = field.dtype.to_value_type()
            if kind not in _NUMBERS and kind is not ValueType.STRING:
                raise PlanError(
                    f"Feature {projection.name_to_use()}:{field.name} is {field.dtype}; a model input is a number, a "
                    "boolean or a string.",
                    hint="leave it out of the service; an on-demand view may still read it.",
                )
            specs.append(FeatureSpec(field.name, "number" if kind in _NUMBERS else "text"))
    return specs


def _input(name: str, kind: ValueType, role: Any) -> InputField:
    if kind not in _INPUT_TYPES or (role == "key" and kind not in _KEY_FIELDS):
        raise PlanError(f"{name!r} is {kind.name}, which a request cannot carry as a {role}.")
    return InputField(name, _INPUT_TYPES[kind], role, 32 if kind is ValueType.INT32 else 64)


def _view(view: Any, features: list[str]) -> ViewSpec:
    if isinstance(view, OnDemandFeatureView):
        raise PlanError(
            f"On-demand view {view.name!r} is written to the online store, which this program cannot serve.",
            hint="set write_to_online_store=False.",
        )
    stored = sorted(field.name for field in view.entity_columns if field.name != _NO_ENTITY)
    windows = {each.resolved_name(each.time_window): canonical(each.function) for each in aggregations_of(view)}
    return ViewSpec(
        name=view.projection.name_to_use(),
        table=view.name,
        join_keys=tuple(stored),
        columns=tuple(view.projection.join_key_map.get(name, name) for name in stored),
        features=tuple(features),
        ttl=(view.ttl or timedelta()) // _MICROSECOND,
        grid=_grid(view),
        empty=tuple(0 if windows.get(name) in _COUNTS else None for name in features) if windows else None,
    )


def _grid(view: FeatureView) -> int:
    try:
        return grid_of(view)
    except InvalidView as error:
        raise PlanError(f"View {view.name!r}: tag {EVERY} is {view.tags[EVERY]!r}; {error.fact}") from error


def _transform(
    view: OnDemandFeatureView,
    service: FeatureService,
    grouped: Sequence[tuple[FeatureView, list[str]]],
    inputs: Sequence[InputField],
    types: Mapping[str, pa.DataType],
) -> Transform:
    """An on-demand view fed as Feast feeds it: keys, request fields, and all that was read of the views it declares."""
    sources = {projection.name: projection for projection in view.source_feature_view_projections.values()}
    given = {name for source, names in grouped if source.projection.name in sources for name in names}
    given |= {each.name for each in inputs}
    full_names = [
        (field.name, f"{projection.name}__{field.name}")
        for projection in sources.values()
        for field in projection.features
        if field.name in given
    ]
    alias = view.projection.name_to_use()
    outputs = [
        field.name
        for projection in service.feature_view_projections
        if projection.name_to_use() == alias
        for field in projection.features
    ]
    return Transform(alias, tuple(sorted(given)), tuple(outputs), _runner(view, full_names, types))


def _runner(
    view: OnDemandFeatureView, full_names: Sequence[tuple[str, str]], types: Mapping[str, pa.DataType]
) -> Callable[[Columns, int], Mapping[str, Sequence[Any]]]:
    transformation = view.feature_transformation
    function: Any = getattr(transformation, "udf", None)
    if view.aggregations or function is None or view.mode not in ("python", "pandas"):
        raise PlanError(
            f"On-demand view {view.name!r} (mode {view.mode!r}) has no Python or pandas function to call.",
            hint="write it with mode='python' (fastest) or mode='pandas'.",
        )

    def with_full_names(given: Columns) -> Columns:
        return given | {full: given[short] for short, full in full_names}

    def run_python(given: Columns, count: int) -> Mapping[str, Sequence[Any]]:
        computed: Mapping[str, Sequence[Any]] = function(with_full_names(given))
        return computed

    def run_rows(given: Columns, count: int) -> Mapping[str, Sequence[Any]]:
        columns = with_full_names(given)
        rows = [function({name: column[i] for name, column in columns.items()}) for i in range(count)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def run_pandas(given: Columns, count: int) -> Mapping[str, Sequence[Any]]:
        # Declared types, as in training: a column of nulls is a float column there, not one of objects.
        frame = pa.table({name: pa.array(column, types[name]) for name, column in given.items()}).to_pandas()
        for short, full in full_names:
            frame[full] = frame[short]
        computed: pd.DataFrame = function(frame)
        table = pa.Table.from_pandas(computed, preserve_index=False)
        return {name: table[name].to_pylist() for name in table.column_names}

    return run_pandas if view.mode == "pandas" else run_rows if view.singleton else run_python


def online_reader(store: FeatureStore, views: Sequence[FeatureView], kinds: Mapping[str, ValueType]) -> OnlineReader:
    """The fastest reader there is for the repository's online store."""
    generic = StoreReader(store, views, kinds)
    config, provider = store.config, store._get_provider()
    plain = isinstance(provider, PassthroughProvider) and type(provider).online_read is PassthroughProvider.online_read
    if not plain or type(provider.online_store) is not SqliteOnlineStore or config.online_store.vector_enabled:
        return generic

    def serialize(spec: ViewSpec, key: Key) -> bytes:
        return serialize_entity_key(generic.entity_key(spec, key), config.entity_key_serialization_version)

    versioned = config.registry.enable_online_feature_view_versioning
    tables = {view.projection.name_to_use(): _table_id(config.project, view, versioned) for view in views}
    path = Path(provider.online_store._get_db_path(config))
    return SqliteReader(path, tables, serialize, lambda stored: feast_value_type_to_python_type(_parsed(stored)))


def _parsed(stored: bytes) -> Value:
    value = Value()
    value.ParseFromString(stored)
    return value


class StoreReader:
    """Any Feast online store, through its own `online_read`: one call a view."""

    def __init__(self, store: FeatureStore, views: Sequence[FeatureView], kinds: Mapping[str, ValueType]) -> None:
        self._config = store.config
        self._provider = store._get_provider()
        self._views = {view.projection.name_to_use(): view for view in views}
        self._fields = {column: _KEY_FIELDS[kind] for column, kind in kinds.items() if kind in _KEY_FIELDS}

    def read(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[list[Row | None]]:
        """Rows of each view for its distinct keys, in their order."""
        return [self._read(spec, keys) if keys else [] for spec, keys in asked]

    def _read(self, spec: ViewSpec, keys: Sequence[Key]) -> list[Row | None]:
        found = self._provider.online_read(
            self._config, self._views[spec.name], [self.entity_key(spec, key) for key in keys], list(spec.features)
        )
        rows: list[Row | None] = []
        for stamp, values in found:
            if stamp is None or values is None:
                rows.append(None)
                continue
            instant = (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)) - _EPOCH
            row = [feast_value_type_to_python_type(values[name]) if name in values else None for name in spec.features]
            rows.append((instant // _MICROSECOND, tuple(row)))
        return rows

    def entity_key(self, spec: ViewSpec, key: Key) -> EntityKey:
        """Feast's form of a key."""
        if not spec.join_keys:
            return EntityKey(join_keys=[_NO_ENTITY], entity_values=[Value(string_val="")])
        values = [self._value(column, value) for column, value in zip(spec.columns, key, strict=True)]
        return EntityKey(join_keys=list(spec.join_keys), entity_values=values)

    def _value(self, column: str, value: Any) -> Value:
        proto = Value()
        setattr(proto, self._fields[column], int(value.timestamp()) if isinstance(value, datetime) else value)
        return proto
