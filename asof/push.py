"""Pushing: rows happen now, and the online values of their keys become what `as_of` says over the source and them.

    push(views, frame, pusher, online=True, offline=False)

A push is checked and computed before anything is written. Then the rows are made durable, in the source (offline) or
among the pushed rows (online only), and last the values are written. A process killed between the two leaves rows that
count and values of before; pushing the same events again, under an event id, puts that right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from operator import is_not
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureStore, FeatureView, RepoConfig

from asof.clockwork import to_micros
from asof.definition import View
from asof.engine import Answer, Spine, as_of
from asof.files import parquet_files
from asof.intake import newest_event, rows_of_source, stored_name
from asof.landing import append
from asof.latest import sql_type
from asof.online import Values, make_ready, write_all
from asof.pushed import Batch, landed_at, pushed_rows
from asof.quoting import identifier
from asof.recent import RecentRows, State, schema_of
from asof.retention import lend_pushed, longest_reach, registered_views, views_over
from asof.session import Session
from asof.source import Source
from asof.view import compile_view


class Pusher:
    """Pushes to the views of one store; keeps what it has read of their sources.

    Args:
        store: a repository on asof.
        open_session: with the repository's settings.
    """

    def __init__(self, store: FeatureStore, open_session: Callable[[RepoConfig], Session]) -> None:
        self._store = store
        self._open_session = open_session
        self._pushed = pushed_rows(store.config)
        self._recent: dict[str, RecentRows] = {}
        self._compiled: dict[str, tuple[FeatureView, View]] = {}
        self._registered: list[FeatureView] = []
        self._expiry: dict[str, int | None] = {}

    def push(
        self,
        feature_views: Sequence[FeatureView],
        frame: Any,
        *,
        online: bool,
        offline: bool,
        clock: Callable[[], datetime],
    ) -> None:
        """Push rows to views; a frame without rows reads what the next push will need, and writes nothing.

        Args:
            feature_views: plain, batch or stream views over files.
            frame: pandas, Polars or Arrow, columns named as in the source or as in the views.
            online: bring the online values of the rows' keys to what is known now.
            offline: append the rows to the views' sources, where training sees them.
            clock: asked once no other push is under way, so that a later answer is of a later moment.

        Raises:
            BadPush: a column is missing or of another type; nothing was written.
            AsofError: what a view or its source has wrong; nothing was written.
        """
        views = [self._compile(view) for view in feature_views]
        with self._pushed.alone(), self._open_session(self._store.config) as session:
            now = to_micros(clock())
            if not len(frame):
                self._warm_up(feature_views, views, now, session)
                return
            sources: dict[str, list[View]] = {}
            for view in views:
                sources.setdefault(view.source.path, []).append(view)
            rows, states = {}, {}
            for path, readers in sources.items():
                states[path] = self._state(readers[0].source)
                schema = schema_of(readers[0].source, states[path].files)
                rows[path] = rows_of_source(frame, readers, schema, now, whole=offline)
            values = []
            for feature_view, view in zip(feature_views, views, strict=True):
                path = view.source.path
                if online:
                    values.append(Values(feature_view, *self._answer(view, rows[path], states[path], now, session)))
            for path, readers in sources.items():
                if offline:
                    append(readers[0].source, rows[path])
                else:
                    landed = landed_at(states[path].files)
                    newest = max(now, newest_event(readers[0], rows[path]))
                    number = self._pushed.add(path, rows[path], landed=landed, expires=self._expires(path, newest))
                    for view in readers:
                        if view.name in self._recent:
                            self._recent[view.name].remember(rows[path], number, now, session)
            write_all(values, self._store.config, self._store._get_provider().online_store)

    def _warm_up(self, feature_views: Sequence[FeatureView], views: list[View], now: int, session: Session) -> None:
        """Read what the first push would have to, and compute and write everything it would but its rows."""
        values = []
        for feature_view, view in zip(feature_views, views, strict=True):
            state = self._state(view.source)
            schema = schema_of(view.source, state.files)
            recent = self._recent_of(view, schema.names) if schema is not None else None
            row = recent.any_row() if recent is not None and recent.refresh(now, state, session) else None
            if row is not None:
                values.append(Values(feature_view, *self._answer(view, row, state, now, session)))
        make_ready(values, self._store.config, self._store._get_provider().online_store)

    def _compile(self, feature_view: FeatureView) -> View:
        """Once for each state of the registry: Feast gives the same objects until it reads the registry again."""
        known, view = self._compiled.get(feature_view.name, (None, None))
        if view is None or known is not feature_view:
            view = compile_view(feature_view, self._store.config)
            self._compiled[feature_view.name] = feature_view, view
        return view

    def _state(self, source: Source) -> State:
        files = parquet_files(Path(source.path)) if source.dataset is None else ()
        return State(files, partial(self._pushed.of, source.path), self._pushed.any_of(source.path))

    def _answer(self, view: View, rows: pa.Table, state: State, now: int, session: Session) -> tuple[Answer, pa.Table]:
        """The values of the rows' keys at `now`, and the keys."""
        keys = _touched(view, rows, session)
        spine = Spine(keys, np.full(keys.num_rows, now, np.int64), np.ones(keys.num_rows, bool))
        self._lend(view, rows, state, now, session)
        (answer,) = as_of([view], spine, session, expire=False)
        return answer, keys

    def _lend(self, view: View, rows: pa.Table, state: State, now: int, session: Session) -> None:
        source = view.source
        recent = self._recent_of(view, rows.column_names)
        if recent is not None:
            if not recent.refresh(now, state, session):
                session.lend(source, rows, instead=True)
                return
            if not recent.knows_again(rows):
                recent.lend(rows, session)
                return
        lend_pushed(view, [*state.since(0), Batch(0, 0, rows)], state.files, session)

    def _recent_of(self, view: View, columns: list[str]) -> RecentRows | None:
        """The rows kept for a view; None where everything must be read: a transformation may look at any row."""
        if view.source.transform is not None or view.source.dataset is not None:
            return None
        recent = self._recent.get(view.name)
        if recent is None or recent.view != view:
            recent = self._recent[view.name] = RecentRows(view)
        # A column that is only in the names of partition folders is not among pushed rows.
        return recent if set(recent.columns) <= set(columns) else None

    def _expires(self, path: str, moment: int) -> int | None:
        """When no view over a source asks for a row of a moment any more; None if one always may."""
        registry, config = self._store.registry, self._store.config
        registered = registered_views(registry, config.project)
        if len(registered) != len(self._registered) or any(map(is_not, registered, self._registered)):
            self._registered, self._expiry = registered, {}
        if path not in self._expiry:
            self._expiry[path] = longest_reach([view for _, view in views_over(registry, config, path)])
        reach = self._expiry[path]
        return None if reach is None else moment + reach


def _touched(view: View, rows: pa.Table, session: Session) -> pa.Table:
    """The different keys of pushed rows, after the view's transformation; columns as in a spine."""
    if not view.keys:
        return pa.table({"": pa.nulls(1)})
    stored = [stored_name(view, key.name) for key in view.keys]
    if view.source.transform is None and all(
        name in rows.column_names and rows.schema.field(name).type == key.dtype
        for name, key in zip(stored, view.keys, strict=True)
    ):
        named = rows.select(stored).rename_columns([key.column for key in view.keys])
        return named.group_by(named.column_names, use_threads=False).aggregate([]).drop_null()
    alone = replace(view.source, path=f"{view.source.path} (pushed)")
    session.lend(alone, rows, instead=True)
    scan = session.scan(alone)
    columns = [
        f"cast({scan.require(key.name, 'join key')} as {sql_type(key.dtype)}) as {identifier(key.column)}"
        for key in view.keys
    ]
    return session.arrow(f"select distinct {', '.join(columns)} from {scan.relation} s").drop_null()
