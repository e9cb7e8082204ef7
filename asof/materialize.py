"""Materialize a repository's views in process.

    materialize(store, start, end)                 # every online view
    materialize(store, start, end, views=["x"])    # these

    materializer = Materializer(store)             # for many boundaries in a row: definitions are read once
    materializer.run(start, end)

Same engine as `feast materialize`; one connection for all views, one write of the registry per call.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from datetime import UTC, datetime

import numpy as np
from feast import FeatureStore, FeatureView, OnDemandFeatureView
from numpy.typing import NDArray

from asof import intervals
from asof.compute import complete_until, is_still, known_times, materialize_view
from asof.definition import View
from asof.errors import AsofError
from asof.offline_store import open_session
from asof.retention import retire
from asof.source import Session, Source
from asof.view import compile_view


class BackwardInterval(AsofError, ValueError):
    """The interval ends before it starts."""


class Materializer:
    """Brings the online values of a store's views from boundary to boundary.

    Args:
        store: from `asof.repository.open_store`.
        views: names; every view that is served online when None. Read once: apply the repository again, and a new
            materializer is needed.
        session: reads the sources, at every boundary; what it keeps in memory is not read again. One of its own for
            each boundary when None.

    Raises:
        AsofError: what a view has wrong.
    """

    def __init__(
        self, store: FeatureStore, views: Iterable[str] | None = None, *, session: Session | None = None
    ) -> None:
        self._store = store
        self._session = session
        self._views = {
            view.name: (view, compile_view(view, store.config))
            for view in store._get_feature_views_to_materialize(None if views is None else list(views))
            if not isinstance(view, OnDemandFeatureView)
        }
        self._online_store = store._get_provider().online_store
        self._complete: datetime | None = None
        self._known: dict[Source, NDArray[np.int64]] = {}
        """Of sources kept in memory, when each row became known."""

    def keep_sources(self) -> None:
        """Read every source into the session's memory once: no file may change until the last boundary."""
        if self._session is None:
            raise ValueError("Only a session of the caller's own can keep sources.")
        for view in {view.source: view for _, view in self._views.values()}.values():
            self._session.keep(view.source)
            self._known[view.source] = known_times(view, self._session)

    def run(self, start: datetime, end: datetime) -> dict[str, int]:
        """Bring online values to what was known at `end`.

        Args:
            start: end of the last materialization, or the beginning of the data.
            end: the boundary.

        Returns:
            Keys written, by view.

        Raises:
            BackwardInterval: start after end.
            AsofError: what a view's source has wrong; views done before it stay done.
        """
        start, end = _utc(start), _utc(end)
        if start > end:
            raise BackwardInterval(f"Cannot materialize from {start} to {end}.", hint="Swap the dates.")
        store = self._store
        with nullcontext(self._session) if self._session else open_session(store.config) as session:
            written = {
                name: self._one(
                    feature_view, view, complete_until(feature_view, start, also=self._complete), end, session
                )
                for name, (feature_view, view) in self._views.items()
            }
            retire(store.registry, store.config, session)
        intervals.record(store, [feature_view for feature_view, _ in self._views.values()], start, end)
        self._complete = end
        return written

    def _one(self, feature_view: FeatureView, view: View, start: datetime, end: datetime, session: Session) -> int:
        if view.source in self._known and is_still(view, self._known[view.source], start, end):
            return 0
        return materialize_view(feature_view, view, start, end, session, self._store.config, self._online_store)


def materialize(
    store: FeatureStore, start: datetime, end: datetime, views: Iterable[str] | None = None
) -> dict[str, int]:
    """Bring online values to what was known at `end`, once; see `Materializer.run`."""
    return Materializer(store, views).run(start, end)


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
