"""Feast's compute engine on DuckDB: `batch_engine.type: asof.compute.AsofComputeEngine`.

Materialization is a point-in-time question whose spine is "every live key, at the boundary". It goes through `as_of`
like training does, so what is served is what was trained on.

- Plain view: the keys of which something became known since the store was last complete, and has not outlived its TTL;
  the value keeps its own event time, so that a reader can judge its TTL.
- Windowed view: every key with an event in a window that ended then or ends now, so that a key whose window emptied
  gets its empty value; the value's time is the boundary.
- A view with an `asof.every` grid is evaluated at the last grid point at or before the end.

Every materialization leaves the store complete at its end, wherever it starts: where the registry shows a gap before
the start, or nothing at all, the gap is made up for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.common.materialization_job import (
    MaterializationJob,
    MaterializationJobStatus,
    MaterializationTask,
)
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel

from asof import latest, online
from asof.clockwork import to_micros
from asof.definition import View
from asof.engine import Spine, as_of
from asof.files import parquet_files
from asof.intake import oldest_event
from asof.known import KnownKeys
from asof.offline_store import open_session
from asof.pushed import pushed_rows
from asof.quoting import identifier
from asof.retention import lend_pushed, retire
from asof.session import Session
from asof.timeline import FOREVER
from asof.view import compile_view

_log = logging.getLogger(__name__)

BEGINNING = datetime.min.replace(tzinfo=UTC)
"""Before every event."""


class AsofComputeEngineConfig(FeastConfigBaseModel):
    """The `batch_engine` section of `feature_store.yaml`."""

    type: Literal["asof.compute.AsofComputeEngine"] = "asof.compute.AsofComputeEngine"


class AsofMaterializationJob(MaterializationJob):
    """A finished materialization of one view."""

    def __init__(self, task: MaterializationTask, error: Exception | None, rows: int) -> None:
        self.task = task
        self.rows = rows
        self._error = error

    def status(self) -> MaterializationJobStatus:
        """How it ended."""
        return MaterializationJobStatus.ERROR if self._error else MaterializationJobStatus.SUCCEEDED

    def error(self) -> BaseException | None:
        """What stopped it."""
        return self._error

    def should_be_retried(self) -> bool:
        """Never: the same rows give the same error."""
        return False

    def job_id(self) -> str:
        """View and interval."""
        return f"{self.task.feature_view.name}-{self.task.start_time:%FT%TZ}-{self.task.end_time:%FT%TZ}"

    def url(self) -> str | None:
        """There is no page to look at."""
        return None


class AsofComputeEngine(ComputeEngine):
    """Materializes through `as_of`; see the module."""

    @property
    def supports_batch(self) -> bool:
        """All views of one call share a connection and its scans."""
        return True

    def update(self, *args: Any, **kwargs: Any) -> None:
        """There is nothing to deploy."""

    def teardown_infra(self, *args: Any, **kwargs: Any) -> None:
        """Rows pushed to the online store alone go with it."""
        pushed_rows(self.repo_config).remove()

    def materialize(
        self,
        registry: BaseRegistry,
        tasks: MaterializationTask | list[MaterializationTask],
        **kwargs: Any,
    ) -> list[MaterializationJob]:
        """Materialize each task; one that fails does not stop the others."""
        tasks = [tasks] if isinstance(tasks, MaterializationTask) else tasks
        with open_session(self.repo_config) as session:
            jobs = [self._one(task, session) for task in tasks]
            retire(registry, self.repo_config, session)
            return jobs

    def _one(self, task: MaterializationTask, session: Session) -> MaterializationJob:
        try:
            rows = materialize_view(
                task.feature_view,
                compile_view(task.feature_view, self.repo_config),
                complete_until(task.feature_view, task.start_time),
                task.end_time,
                session,
                self.repo_config,
                self.online_store,
                task.tqdm_builder,
            )
        except Exception as error:  # Feast wants it in the job, and raises it after the other views are done
            return AsofMaterializationJob(task, error, 0)
        return AsofMaterializationJob(task, None, rows)


def complete_until(feature_view: FeatureView, start: datetime, *, also: datetime | None = None) -> datetime:
    """When the online values of a view were last complete, at or before `start`.

    Args:
        feature_view: as the registry has it, with the intervals it was materialized for.
        start: where the caller means to begin.
        also: a moment the caller knows they were complete at.
    """
    ends = [last for first, last in feature_view.materialization_intervals if first <= start]
    return max((min(end, start) for end in [*ends, *([also] if also else [])]), default=BEGINNING)


def materialize_view(
    feature_view: FeatureView,
    view: View,
    start: datetime,
    end: datetime,
    session: Session,
    config: RepoConfig,
    store: OnlineStore,
    bar: Callable[[int], Any] | None = None,
    known: KnownKeys | None = None,
) -> int:
    """Bring the online values of one view to what was known at `end`.

    Args:
        feature_view: any view `compile_view` accepts.
        view: what it compiles to.
        start: when its values were last complete; `BEGINNING` if never.
        end: the boundary.
        session: reads the source.
        config: of the repository.
        store: of the repository.
        bar: builds a progress bar from a number of rows.
        known: of a source that is kept in the session; the source itself is asked which keys are live when None.

    Returns:
        Keys written.
    """
    before, boundary = _on_grid(view, to_micros(start)), _on_grid(view, to_micros(end))
    oldest = _with_pushed(view, config, session)
    if not view.is_windowed and oldest is not None:
        before = min(before, oldest - 1)
    keys, since = _live_keys(view, before, boundary, session, known)
    if not keys.num_rows:
        return 0
    at = np.full(keys.num_rows, boundary, np.int64)
    spine = Spine(keys, at, np.ones(keys.num_rows, bool))
    (answer,) = as_of([view], spine, session, expire=False, since=since)
    progress = bar(keys.num_rows) if bar else None
    written = online.write(answer, keys, feature_view, config, store, progress.update if progress else None)
    if progress:
        progress.close()
    _log.info("materialized %s at %s: %d keys", view.name, end, written)
    return written


def _with_pushed(view: View, config: RepoConfig, session: Session) -> int | None:
    """Let rows pushed online only count; the oldest event among them (microseconds), None when there are none.

    A push that was killed has left rows and no values, whatever they say of when they became known.
    """
    pushed = pushed_rows(config)
    if not pushed.exists:
        return None
    with pushed.alone():  # a push that came before the boundary is complete, and the files are those of one moment
        batches = pushed.of(view.source.path)
        files = parquet_files(Path(view.source.path)) if view.source.dataset is None else ()
        lend_pushed(view, batches, files, session)
        session.scan(view.source)
    return min((oldest_event(view, batch.rows) for batch in batches), default=None)


def _on_grid(view: View, moment: int) -> int:
    return moment - moment % view.every if view.every else moment


def _live_keys(
    view: View, before: int, boundary: int, session: Session, known: KnownKeys | None
) -> tuple[pa.Table, int | None]:
    """Keys to write (columns as in the spine), and a time before which no event matters to them (None: all may)."""
    since = None
    if view.is_windowed and view.reach < FOREVER:
        since = before - view.reach
    if not view.is_windowed and view.ttl:
        since = boundary - view.ttl
    if known is not None:
        # No row is known before it happened.
        after = before if not view.is_windowed else -FOREVER if since is None else since - 1
        present, count, first = known.live(after, boundary, since)
    else:
        present, count, first = _asked(view, before, boundary, since, session)
    return _sized(present, count), None if view.is_windowed or not count else first


def _asked(view: View, before: int, boundary: int, since: int | None, session: Session) -> tuple[pa.Table, int, int]:
    """As `KnownKeys.live`, by a question to the source."""
    keyless = replace(view, keys=())
    scan = session.scan(view.source)
    rows = latest.rows_of(keyless, scan, "", [key.name for key in view.keys], since=since, until=boundary)
    chosen = [
        f"cast(c{i} as {latest.sql_type(key.dtype)}) as {identifier(key.column)}" for i, key in enumerate(view.keys)
    ]
    names = [identifier(key.column) for key in view.keys]
    new = "" if view.is_windowed else f" where known > {before}"
    group = f" group by {', '.join(names)}" if names else ""
    having = " having min(event) is not null"
    found = session.arrow(
        f"select {', '.join([*chosen, 'min(event) as first_event'])} from ({rows}){new}{group}{having}"
    )
    present = found.drop_columns(["first_event"]).drop_null() if names else found.select([])
    return present, found.num_rows, min(found["first_event"].to_pylist(), default=boundary)


def _sized(keys: pa.Table, rows: int) -> pa.Table:
    """A table of one row even when a view without entities has no key columns."""
    return keys if keys.num_columns else pa.table({"": pa.nulls(rows)})
