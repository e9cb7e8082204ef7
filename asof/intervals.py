"""Which time a view has been materialized for, in Feast's registry.

Feast appends an interval for each call and parses the whole view to do it. An hourly job makes 8,760 of them a year, so
intervals that touch become one, and a file registry is written once for all views.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from feast import FeatureStore, FeatureView
from feast.feature_view import FeatureViewState
from feast.infra.registry.registry import Registry


def record(store: FeatureStore, views: Sequence[FeatureView], start: datetime, end: datetime) -> None:
    """Say that `views` are materialized from `start` to `end`.

    Args:
        store: whose registry to write.
        views: as the registry names them.
        start: of the interval, in UTC.
        end: of the interval, in UTC.
    """
    registry = store.registry
    if not isinstance(registry, Registry):
        for view in views:
            registry.apply_materialization(view, store.project, start, end)
        return
    registry._prepare_registry_for_changes(store.project)
    proto = registry.cached_registry_proto
    names = {view.name for view in views}
    for entry in [*proto.feature_views, *proto.stream_feature_views]:
        if entry.spec.name in names and entry.spec.project == store.project:
            _extend(entry.meta, start, end)
            entry.meta.state = FeatureViewState.AVAILABLE_ONLINE.to_proto()
    registry.commit()


def _extend(meta: Any, start: datetime, end: datetime) -> None:
    """Add an interval, joined with every one it touches; the latest stays last, as Feast's readers expect."""
    apart = []
    for interval in meta.materialization_intervals:
        first = interval.start_time.ToDatetime(tzinfo=UTC)
        last = interval.end_time.ToDatetime(tzinfo=UTC)
        if last < start or first > end:
            apart.append((first, last))
        else:
            start, end = min(start, first), max(end, last)
    del meta.materialization_intervals[:]
    for first, last in sorted([*apart, (start, end)], key=lambda interval: interval[1]):
        added = meta.materialization_intervals.add()
        added.start_time.FromDatetime(first)
        added.end_time.FromDatetime(last)
