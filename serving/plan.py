"""Serving's door to Feast's definitions: a feature service compiled into a `FeaturePlan`.

    plan = compile_plan(open_store(repo_path), "late_arrival_v1")
    plan.vectors({"origin": ["JFK"], ...}, [instant])

What Feast looks up per request (views, join keys, types, transformations) is resolved here once; the answers stay those
of `FeatureStore.get_online_features`, under the rules of time that `serving.vectors` adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from feast import FeatureService, FeatureStore, FeatureView, OnDemandFeatureView
from feast.errors import FeastObjectNotFoundException
from feast.types import FeastType, Map, from_feast_to_pyarrow_type
from feast.utils import _get_online_request_context
from feast.value_type import ValueType

from asof.aggregate import canonical
from asof.fingerprint import service_fingerprint
from asof.kept import aggregations_of
from asof.repository import open_store
from asof.view import EVERY, InvalidView, grid_of
from contracts.errors import SkewlessError
from serving.inputs import Columns, InputField, InputType
from serving.online import TIMEOUT_SECONDS, ViewSpec
from serving.online_feast import KEY_FIELDS, NO_ENTITY, online_reader
from serving.vectors import Feature, FeaturePlan, Transform

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
_ARROW: dict[InputType, pa.DataType] = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "text": pa.string(),
    "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
_COUNTS = {"count", "count_distinct"}
_MICROSECOND = timedelta(microseconds=1)


class PlanError(SkewlessError, ValueError):
    """A feature service that cannot be served."""


def open_repository(path: Path) -> FeatureStore:
    """The Feast store of a repository, file-based ones with asof behind them."""
    return open_store(path)


def compile_plan(
    store: FeatureStore, service_name: str, *, full_feature_names: bool = False, timeout: float = TIMEOUT_SECONDS
) -> FeaturePlan:
    """Resolve a service against the registry as it is now.

    Args:
        store: from `open_repository`.
        service_name: of the feature service.
        full_feature_names: name features `view__feature`, as a service needs that has one name in two views.
        timeout: seconds the online store has for an answer.

    Raises:
        PlanError: no such service, or it holds what cannot be served: a view that is switched off, a key that no
            request can carry, a transformation that is neither Python nor pandas.
    """
    store.refresh_registry()
    try:
        service = store.get_feature_service(service_name)
        context = _get_online_request_context(store.registry, store.project, service, full_feature_names)
    except FeastObjectNotFoundException as error:
        known = ", ".join(sorted(each.name for each in store.list_feature_services())) or "none"
        raise PlanError(
            f"Feature service {service_name!r} is not in the Feast registry: {error}",
            hint=f"services there: {known}; correct the task's feature_service, or define it and run `feast apply`.",
        ) from error
    except ValueError as error:
        raise PlanError(f"Feature service {service_name!r} cannot be served: {error}") from error
    _, on_demand, _, key_types, _, grouped, *_ = context
    kinds = {column: kind for column, kind in key_types.items() if column != NO_ENTITY}
    views = [_view(view, sorted(names)) for view, names in grouped]
    read = {column for spec in views for column in spec.columns}
    inputs = [_input(name, kinds[name], "key") for name in sorted(read)]
    request = {name: kind for view in on_demand for name, kind in view.get_request_data_schema().items()}
    inputs += [_input(name, kind, "request") for name, kind in sorted(request.items()) if name not in read]
    types = {
        f"{spec.name}__{field.name}": _arrow_type(field.dtype)
        for (view, _), spec in zip(grouped, views, strict=True)
        for field in view.features
        if field.name in spec.features
    }
    types |= {each.name: _ARROW[each.type] for each in inputs}
    return FeaturePlan(
        service=service_name,
        fingerprint=service_fingerprint(store, service_name),
        features=_features(service, full_feature_names),
        inputs=inputs,
        views=views,
        transforms=[_transform(view, service, inputs, views, types) for view in on_demand],
        reader=online_reader(
            store, [(view, spec) for (view, _), spec in zip(grouped, views, strict=True)], kinds, timeout
        ),
    )


def _features(service: FeatureService, full_names: bool) -> list[Feature]:
    features = []
    for projection in service.feature_view_projections:
        for field in projection.features:
            kind, source = field.dtype.to_value_type(), f"{projection.name_to_use()}__{field.name}"
            taken: Any = "number" if kind in _NUMBERS else "text" if kind is ValueType.STRING else "other"
            features.append(Feature(source if full_names else field.name, source, taken, str(field.dtype)))
    return features


def _arrow_type(declared: FeastType) -> pa.DataType | None:
    """None, which lets the values say, where Feast knows no Arrow type, among others for bytes; and for maps, which a
    source holds as structures."""
    if declared == Map:
        return None
    try:
        return from_feast_to_pyarrow_type(declared)
    except ValueError:
        return None


def _input(name: str, kind: ValueType, role: Any) -> InputField:
    if kind not in _INPUT_TYPES or (role == "key" and kind not in KEY_FIELDS):
        raise PlanError(f"{name!r} is {kind.name}, which a request cannot carry as a {role}.")
    return InputField(name, _INPUT_TYPES[kind], role, 32 if kind is ValueType.INT32 else 64)


def _view(view: Any, features: list[str]) -> ViewSpec:
    if isinstance(view, OnDemandFeatureView):
        raise PlanError(
            f"On-demand view {view.name!r} is written to the online store, which this program cannot serve.",
            hint="set write_to_online_store=False.",
        )
    stored = sorted(field.name for field in view.entity_columns if field.name != NO_ENTITY)
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
    inputs: Sequence[InputField],
    views: Sequence[ViewSpec],
    types: Mapping[str, pa.DataType | None],
) -> Transform:
    """An on-demand view fed as Feast feeds it: keys, request fields, and all that was read of the views it declares.

    A stored feature goes by its own name and by `view__feature`.
    """
    given = {each.name: each.name for each in inputs}
    for projection in view.source_feature_view_projections.values():
        for spec in views:
            if spec.name == projection.name:
                sources = {name: f"{spec.name}__{name}" for name in spec.features}
                given |= sources | {source: source for source in sources.values()}
    alias = view.projection.name_to_use()
    outputs = [
        field.name
        for projection in service.feature_view_projections
        if projection.name_to_use() == alias
        for field in projection.features
    ]
    return Transform(alias, given, tuple(outputs), _runner(view, given, types))


def _runner(
    view: OnDemandFeatureView, given: Mapping[str, str], types: Mapping[str, pa.DataType | None]
) -> Callable[[Columns, int], Mapping[str, Sequence[Any]]]:
    transformation = view.feature_transformation
    function: Any = getattr(transformation, "udf", None)
    if view.aggregations or function is None or view.mode not in ("python", "pandas"):
        raise PlanError(
            f"On-demand view {view.name!r} (mode {view.mode!r}) has no Python or pandas function to call.",
            hint="write it with mode='python' (fastest) or mode='pandas'.",
        )

    def run_python(columns: Columns, count: int) -> Mapping[str, Sequence[Any]]:
        computed: Mapping[str, Sequence[Any]] = function(columns)
        return computed

    def run_rows(columns: Columns, count: int) -> Mapping[str, Sequence[Any]]:
        rows = [function({name: column[i] for name, column in columns.items()}) for i in range(count)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def run_pandas(columns: Columns, count: int) -> Mapping[str, Sequence[Any]]:
        # Declared types, as in training: a column of nulls is a float column there, not one of objects.
        frame = pa.table({name: pa.array(column, types[given[name]]) for name, column in columns.items()}).to_pandas()
        computed: pd.DataFrame = function(frame)
        table = pa.Table.from_pandas(computed, preserve_index=False)
        return {name: table[name].to_pylist() for name in table.column_names}

    return run_pandas if view.mode == "pandas" else run_rows if view.singleton else run_python
