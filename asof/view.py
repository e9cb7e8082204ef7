"""From a Feast view to what the engine computes. The only reader of Feast's definitions.

view = compile_view(feature_view, config, features=["mean_delay_3h"])
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from feast import BatchFeatureView, FeatureView, FileSource, RepoConfig, StreamFeatureView
from feast.aggregation import Aggregation
from feast.data_format import DeltaFormat, ParquetFormat
from feast.feature_view import DUMMY_ENTITY_ID
from feast.field import Field
from feast.types import from_feast_to_pyarrow_type

from asof.aggregate import canonical, series_length
from asof.dataset import DeltaTable, ObjectStore, is_remote
from asof.definition import Feature, Key, View, Window
from asof.errors import AsofError
from asof.kept import aggregations_of
from asof.source import Source
from asof.timeline import FOREVER
from asof.transform import Transform

EVERY = "asof.every"
"""Tag of a view that is evaluated on a grid: "30s", "15m", "1h", "1d"."""

EVENT_ID = "asof.event_id"
"""Tag of a view, or of its source: the columns, separated by commas, that are the same when an event is told twice."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class UnsupportedView(AsofError, NotImplementedError):
    """The view uses something asof does not compute."""


class InvalidView(AsofError, ValueError):
    """The view contradicts itself."""


def compile_view(feature_view: FeatureView, config: RepoConfig, features: Iterable[str] | None = None) -> View:
    """Translate a Feast view.

    Args:
        feature_view: plain, batch or stream view; its projection's join-key map and its tags are honoured.
        config: of the repository, for its path.
        features: names to compute; all declared ones when None.

    Raises:
        UnsupportedView: a source that is not files, a view over views, an unknown file format.
        InvalidView: a feature no aggregation yields, a window without timestamps, a bad grid tag.
        UnknownAggregation: a function windows do not know.
    """
    # Feast registers a stream view's join keys among its features, and keeps no order: names give one.
    keys = {field.name for field in feature_view.entity_columns}
    fields = sorted(feature_view.features, key=lambda field: field.name)
    declared = {field.name: _feature(field) for field in fields if field.name not in keys}
    wanted = list(declared) if features is None else list(features)
    windows = _windows(feature_view, declared)
    missing = [name for name in wanted if name not in declared]
    if missing:
        raise InvalidView(
            f"View {feature_view.name!r} has no feature {missing[0]!r}; it has {', '.join(declared)}.",
            hint="Ask for one of these.",
        )
    return View(
        name=feature_view.name,
        keys=_keys(feature_view),
        features=tuple(declared[name] for name in wanted),
        declared=tuple(declared.values()),
        windows=tuple(windows[name] for name in wanted) if windows else (),
        source=_source(feature_view, config),
        ttl=_micros(feature_view.ttl),
        every=grid_of(feature_view),
        series=tuple(sorted({each.column for each in windows.values() if series_length(each.function)})),
    )


def _feature(field: Field) -> Feature:
    try:
        dtype = from_feast_to_pyarrow_type(field.dtype)
    except ValueError:  # bytes and other types Feast itself has no Arrow type for
        dtype = None
    return Feature(field.name, field, dtype)


def _keys(feature_view: FeatureView) -> tuple[Key, ...]:
    renamed = feature_view.projection.join_key_map
    keys = []
    for field in feature_view.entity_columns:
        if field.name == DUMMY_ENTITY_ID:
            continue
        dtype = _feature(field).dtype or pa.string()
        keys.append(Key(field.name, renamed.get(field.name, field.name), dtype, field.dtype))
    return tuple(keys)


def _windows(feature_view: FeatureView, declared: dict[str, Feature]) -> dict[str, Window]:
    aggregations = aggregations_of(feature_view)
    if not aggregations:
        return {}
    windows = {}
    for aggregation in aggregations:
        name = aggregation.resolved_name(aggregation.time_window)
        if name not in declared:
            continue
        windows[name] = _window(feature_view.name, declared[name], aggregation)
    orphans = [name for name in declared if name not in windows]
    if orphans:
        yielded = ", ".join(a.resolved_name(a.time_window) for a in aggregations)
        raise InvalidView(
            f"View {feature_view.name!r}: no aggregation yields feature {orphans[0]!r}; they yield {yielded}.",
            hint="Name the aggregation after the feature, or drop the feature from the schema.",
        )
    return windows


def _window(view: str, feature: Feature, aggregation: Aggregation) -> Window:
    length, slide = _micros(aggregation.time_window), _micros(aggregation.slide_interval)
    column = "" if aggregation.column == "*" else aggregation.column
    where = f"View {view!r}, feature {feature.name!r}"
    function = canonical(aggregation.function, f"{where}, column {column!r}")
    if not column and function != "count":
        raise InvalidView(
            f"{where}: {function} needs a column, found {aggregation.column!r}.",
            hint="Name the column; only count may do without, and then counts rows.",
        )
    if length < 0 or slide < 0:
        raise InvalidView(
            f"{where}: time_window is {aggregation.time_window}, slide_interval {aggregation.slide_interval}; "
            "neither may be negative.",
            hint="Give a positive time_window, or none for all of history.",
        )
    if length and slide > length:
        raise InvalidView(
            f"{where}: slide_interval {aggregation.slide_interval} is longer than time_window "
            f"{aggregation.time_window}; events between two windows would count in none.",
            hint="Shorten the slide or lengthen the window.",
        )
    # Feast fills in the window's own length when no slide is given: that means "no slide".
    return Window(feature, function, column, length or FOREVER, 0 if slide == length else slide)


def _source(feature_view: FeatureView, config: RepoConfig) -> Source:
    batch = feature_view.batch_source
    if getattr(feature_view, "source_views", None) or batch is None:
        raise UnsupportedView(f"View {feature_view.name!r} has no source of rows (it is built from other views).")
    source = file_source(batch, feature_view.name, config, _transform(feature_view))
    # A stream view may say which column its windows go by; everything else goes by the source's.
    own = getattr(feature_view, "timestamp_field", "") if isinstance(feature_view, StreamFeatureView) else ""
    timestamp = own or source.timestamp
    if not timestamp:
        raise InvalidView(
            f"View {feature_view.name!r}: its source {batch.name!r} has no timestamp_field.",
            hint="Name the column with the event time.",
        )
    return Source(**{**source.__dict__, "timestamp": timestamp, "event_id": _event_id(feature_view)})


def _event_id(feature_view: FeatureView) -> tuple[str, ...]:
    for tagged in (feature_view, feature_view.stream_source, feature_view.batch_source):
        tag = (tagged.tags or {}).get(EVENT_ID) if tagged is not None else None
        if tag is not None:
            names = tuple(name.strip() for name in tag.split(","))
            if not all(names):
                raise InvalidView(
                    f"View {feature_view.name!r}: tag {EVENT_ID} must name columns, found {tag!r}.",
                    hint="For example event_id, or order_id,line.",
                )
            return names
    return ()


def file_source(batch: Any, view: str, config: RepoConfig, transform: Transform | None = None) -> Source:
    """Translate a Feast `FileSource`; relative paths resolve against the repository.

    Raises:
        UnsupportedView: the source is not files, or of another format.
        PackageMissing: it is a Delta table, and `deltalake` is not installed.
    """
    if not isinstance(batch, FileSource):
        raise UnsupportedView(
            f"View {view!r}: asof reads files, its source {batch.name!r} is a {type(batch).__name__}.",
            hint="Use a FileSource, or the offline store that belongs to this source.",
        )
    path = FileSource.get_uri_for_file_path(config.repo_path, batch.path)
    if not is_remote(path):
        path = str(Path(path).resolve())
    dataset: ObjectStore | DeltaTable | None = None
    if isinstance(batch.file_format, DeltaFormat):
        dataset = DeltaTable(path, batch.s3_endpoint_override or "")
    elif batch.file_format is not None and not isinstance(batch.file_format, ParquetFormat):
        raise UnsupportedView(
            f"View {view!r}: asof reads Parquet and Delta, {batch.path} is {type(batch.file_format).__name__}.",
            hint="Write the source as Parquet.",
        )
    elif is_remote(path):
        dataset = ObjectStore(path, batch.s3_endpoint_override or "")
    return Source(
        view=view,
        path=path,
        timestamp=batch.timestamp_field or "",
        created=batch.created_timestamp_column or None,
        renamed=tuple(batch.field_mapping.items()),
        dataset=dataset,
        transform=transform,
    )


def _transform(feature_view: FeatureView) -> Transform | None:
    transformation = getattr(feature_view, "feature_transformation", None)
    if not isinstance(feature_view, BatchFeatureView | StreamFeatureView) or transformation is None:
        return None
    mode = getattr(transformation.mode, "value", transformation.mode)
    if mode not in ("sql", "python", "pandas"):
        raise UnsupportedView(
            f"View {feature_view.name!r}: transformation mode {mode!r} does not run on one machine.",
            hint="Use sql, pandas or python.",
        )
    return Transform(transformation.udf, is_sql=mode == "sql")


def grid_of(feature_view: FeatureView) -> int:
    """Microseconds between the instants a view is evaluated at, by its tag `asof.every`; 0 without one.

    Raises:
        InvalidView: the tag is not a number and a unit.
    """
    tag = (feature_view.tags or {}).get(EVERY)
    if tag is None:
        return 0
    match = re.fullmatch(r"(\d+)([smhd])", tag)
    if match is None or int(match[1]) == 0:
        raise InvalidView(
            f"View {feature_view.name!r}: tag {EVERY} must be a number and s, m, h or d, found {tag!r}.",
            hint="For example 15m.",
        )
    return int(match[1]) * _UNITS[match[2]] * 1_000_000


def _micros(length: timedelta | None) -> int:
    return 0 if length is None else length // timedelta(microseconds=1)
