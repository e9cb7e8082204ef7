"""Materialize a repository's views in process, in one call.

    materialize(store, start, end)                 # every online view
    materialize(store, start, end, views=["x"])    # these

Same engine as `feast materialize`; one connection for all views, one write of the registry at the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from feast import FeatureStore, OnDemandFeatureView

from asof.compute import materialize_view
from asof.errors import AsofError
from asof.offline_store import open_session


class BackwardInterval(AsofError, ValueError):
    """The interval ends before it starts."""


def materialize(
    store: FeatureStore, start: datetime, end: datetime, views: Iterable[str] | None = None
) -> dict[str, int]:
    """Bring online values to what was known at `end`.

    Args:
        store: from `asof.repository.open_store`.
        start: end of the last materialization, or the beginning of the data.
        end: the boundary.
        views: names; every view that is served online when None.

    Returns:
        Keys written, by view.

    Raises:
        BackwardInterval: start after end.
        AsofError: what a view or its source has wrong; views done before it stay done.
    """
    start, end = _utc(start), _utc(end)
    if start > end:
        raise BackwardInterval(f"Cannot materialize from {start} to {end}.", hint="Swap the dates.")
    chosen = [
        view
        for view in store._get_feature_views_to_materialize(None if views is None else list(views))
        if not isinstance(view, OnDemandFeatureView)
    ]
    online_store = store._get_provider().online_store
    written = {}
    with open_session(store.config) as session:
        for view in chosen:
            written[view.name] = materialize_view(view, start, end, session, store.config, online_store)
    for place, view in enumerate(chosen, 1):
        store.registry.apply_materialization(view, store.project, start, end, commit=place == len(chosen))
    return written


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
