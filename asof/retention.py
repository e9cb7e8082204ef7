"""Which rows that were pushed online only still count: not those the source has by now, nor those no view reaches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from feast import FeatureView, FileSource, RepoConfig
from feast.infra.registry.base_registry import BaseRegistry

from asof.clockwork import to_micros
from asof.definition import View
from asof.files import parquet_files
from asof.intake import stored_name
from asof.pushed import Batch, pushed_rows, still_missing
from asof.session import Session
from asof.timeline import FOREVER
from asof.view import compile_view

_NEVER = -(1 << 62)


def lend_pushed(view: View, batches: list[Batch], files: tuple[Path, ...], session: Session) -> None:
    """Let rows that were pushed online only, and that the source does not have yet, count in a session.

    Args:
        view: whose source it is.
        batches: rows; a batch of number 0 is being pushed now, and counts whatever the source has.
        files: of the source.
        session: has not scanned the source yet.
    """
    created = view.source.created and stored_name(view, view.source.created)
    if not view.source.event_id:
        earlier = [batch for batch in batches if batch.number]
        batches = [
            *still_missing(earlier, files, [], created, session),
            *(batch for batch in batches if not batch.number),
        ]
    if batches:
        session.lend(view.source, pa.concat_tables([batch.rows for batch in batches], promote_options="default"))


def registered_views(registry: BaseRegistry, project: str) -> list[FeatureView]:
    """The plain, batch and stream views of a project; the same objects until Feast reads the registry again."""
    return [
        *registry.list_feature_views(project, allow_cache=True),
        *registry.list_stream_feature_views(project, allow_cache=True),
    ]


def views_over(registry: BaseRegistry, config: RepoConfig, path: str) -> list[tuple[FeatureView, View]]:
    """The views that read a source."""
    views = registered_views(registry, config.project)
    over_files = [view for view in views if isinstance(view.batch_source, FileSource)]
    compiled = [(view, compile_view(view, config)) for view in over_files]
    return [(feature_view, view) for feature_view, view in compiled if view.source.path == path]


def longest_reach(views: Sequence[View]) -> int | None:
    """Microseconds that any of the views looks back; None when one looks back for ever."""
    longest = 0
    for view in views:
        reach = view.reach if view.is_windowed else (view.ttl or FOREVER)
        if reach >= FOREVER:
            return None
        longest = max(longest, reach + view.every)
    return longest


def retire(registry: BaseRegistry, config: RepoConfig, session: Session) -> None:
    """Drop pushed rows that count no more: landed in their source, or out of reach of all its views.

    A view's key may have to be emptied at its next materialization, so a row stays until every view that is
    materialized at all was complete at a moment that does not reach it.
    """
    pushed = pushed_rows(config)
    for path in pushed.sources():
        views = views_over(registry, config, path)
        if not views:
            continue
        _, view = views[0]
        with pushed.alone():
            batches = pushed.of(path)
            files = parquet_files(Path(path)) if view.source.dataset is None else ()
            names = [stored_name(view, name) for name in view.source.event_id]
            known = all(name in batch.rows.column_names for batch in batches for name in names)
            created = view.source.created and stored_name(view, view.source.created)
            left = {b.number for b in still_missing(batches, files, names if known else [], created, session)}
            complete = [
                max(end for _, end in v.materialization_intervals) for v, _ in views if v.materialization_intervals
            ]
            pushed.forget(
                path,
                [batch.number for batch in batches if batch.number not in left],
                expired=to_micros(min(complete)) if complete else _NEVER,
            )
