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

from feast import FeatureStore, OnDemandFeatureView

from asof import intervals
from asof.compute import complete_until, materialize_view
from asof.errors import AsofError
from asof.known import KnownKeys
from asof.offline_store import open_session
from asof.retention import retire
from asof.session import Session
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
        self._known: dict[str, KnownKeys] = {}
        """Of views whose sources are kept in memory."""

    def keep_sources(self) -> None:
        """Read every source into the session's memory once: no file may change until the last boundary."""
        if self._session is None:
            raise ValueError("Only a session of the caller's own can keep sources.")
        for source in {view.source for _, view in self._views.values()}:
            self._session.keep(source)
        self._known = {name: KnownKeys(view, self._session) for name, (_, view) in self._views.items()}

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
                name: materialize_view(
                    feature_view,
                    view,
                    complete_until(feature_view, start, also=self._complete),
                    end,
                    session,
                    store.config,
                    self._online_store,
                    known=self._known.get(name),
                )
                for name, (feature_view, view) in self._views.items()
            }
            retire(store.registry, store.config, session)
        intervals.record(store, [feature_view for feature_view, _ in self._views.values()], start, end)
        self._complete = end
        return written


def materialize(
    store: FeatureStore, start: datetime, end: datetime, views: Iterable[str] | None = None
) -> dict[str, int]:
    """Bring online values to what was known at `end`, once; see `Materializer.run`."""
    return Materializer(store, views).run(start, end)


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
