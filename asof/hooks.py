"""Feast's ways in, led through `asof.push` where a repository is on asof; everything else is left to Feast.

Importing `asof.offline_store`, which Feast does for a repository that names it, is what makes it so: somebody who
writes `store.push(...)` has it without another line. Only here is the clock asked.

One step of a retrieval before any store sees it is Feast's own and is replaced for speed alone: `make_df_tzaware`.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from feast import FeatureStore, FeatureView, FileSource, RepoConfig, utils
from feast.data_source import PushMode

from asof.push import Pusher
from asof.session import Session

_open_session: Callable[[RepoConfig], Session]
_pushers: weakref.WeakKeyDictionary[FeatureStore, Pusher] = weakref.WeakKeyDictionary()
_feast = {
    name: getattr(FeatureStore, name)
    for name in (
        "push",
        "push_async",
        "write_to_online_store",
        "write_to_online_store_async",
        "write_to_offline_store",
    )
}


def hook(open_session: Callable[[RepoConfig], Session]) -> None:
    """Lead the pushes of this process through asof, and its entity frames past a needless search.

    Args:
        open_session: with a repository's settings.
    """
    global _open_session
    _open_session = open_session
    for name, way in _OURS.items():
        setattr(FeatureStore, name, functools.wraps(_feast[name])(way))
    utils.make_df_tzaware = in_utc


def in_utc(t: pd.DataFrame) -> pd.DataFrame:
    """What Feast's `make_df_tzaware` gives: a copy with its times in UTC, naive ones taken as such.

    Feast has pandas look for times that are there twice, as if they were text to be parsed: a fifth of a retrieval.
    The argument's name is Feast's.
    """
    copied = t.copy()
    for name in copied.columns:
        if pd.api.types.is_datetime64_any_dtype(copied[name]):
            copied[name] = pd.to_datetime(copied[name], utc=True, cache=False)
    return copied


def pusher_of(store: FeatureStore) -> Pusher:
    """The one pusher of a store."""
    if store not in _pushers:
        _pushers[store] = Pusher(store, _open_session)
    return _pushers[store]


def _push(
    store: FeatureStore,
    push_source_name: str,
    df: Any,
    allow_registry_cache: bool = True,
    to: PushMode = PushMode.ONLINE,
    transform_on_write: bool = True,
) -> None:
    """Feast's `push`: the rows of a push source, to all its views at once."""
    views: set[Any] = store._fvs_for_push_source_or_raise(push_source_name, allow_registry_cache)
    online, offline = to != PushMode.OFFLINE, to != PushMode.ONLINE
    ours = sorted((view for view in views if _is_ours(store, view)), key=lambda view: view.name)
    for view in views - set(ours):
        if online:
            _feast["write_to_online_store"](store, view.name, df, None, allow_registry_cache, transform_on_write)
        if offline:
            _feast["write_to_offline_store"](store, view.name, df, allow_registry_cache)
    if ours:
        pusher_of(store).push(ours, df, online=online, offline=offline, clock=_now)
    if online and len(df):
        _precompute(store, (view.name for view in views), df)


async def _push_async(
    store: FeatureStore,
    push_source_name: str,
    df: Any,
    allow_registry_cache: bool = True,
    to: PushMode = PushMode.ONLINE,
    **more: Any,
) -> None:
    """As `push`, without holding up the caller's event loop."""
    if _on_asof(store):
        await asyncio.to_thread(_push, store, push_source_name, df, allow_registry_cache, to)
    else:
        await _feast["push_async"](store, push_source_name, df, allow_registry_cache, to, **more)


def _write_to_online_store(
    store: FeatureStore,
    feature_view_name: str,
    df: Any = None,
    inputs: Any = None,
    allow_registry_cache: bool = True,
    transform_on_write: bool = True,
) -> None:
    """Feast's `write_to_online_store`: rows of a view's source, to that view online."""
    view = _view(store, feature_view_name, allow_registry_cache)
    if view is None:
        _feast["write_to_online_store"](store, feature_view_name, df, inputs, allow_registry_cache, transform_on_write)
        return
    frame = store._validate_and_convert_input_data(df, inputs)
    pusher_of(store).push([view], frame, online=True, offline=False, clock=_now)


async def _write_to_online_store_async(
    store: FeatureStore, feature_view_name: str, df: Any = None, inputs: Any = None, allow_registry_cache: bool = True
) -> None:
    """As `write_to_online_store`, without holding up the caller's event loop."""
    if _view(store, feature_view_name, allow_registry_cache) is None:
        await _feast["write_to_online_store_async"](store, feature_view_name, df, inputs, allow_registry_cache)
    else:
        await asyncio.to_thread(_write_to_online_store, store, feature_view_name, df, inputs, allow_registry_cache)


def _write_to_offline_store(
    store: FeatureStore,
    feature_view_name: str,
    df: Any,
    allow_registry_cache: bool = True,
    reorder_columns: bool = True,
) -> None:
    """Feast's `write_to_offline_store`: rows of a view's source, appended to it."""
    view = _view(store, feature_view_name, allow_registry_cache)
    if view is None:
        _feast["write_to_offline_store"](store, feature_view_name, df, allow_registry_cache, reorder_columns)
    else:
        pusher_of(store).push([view], df, online=False, offline=True, clock=_now)


_OURS: dict[str, Callable[..., Any]] = {
    "push": _push,
    "push_async": _push_async,
    "write_to_online_store": _write_to_online_store,
    "write_to_online_store_async": _write_to_online_store_async,
    "write_to_offline_store": _write_to_offline_store,
}


def _now() -> datetime:
    return datetime.now(UTC)


def _on_asof(store: FeatureStore) -> bool:
    """Whether the repository names our offline store and engine: with one of them alone, paths could disagree."""
    kinds = type(store.config.offline_store).__module__, type(store.config.batch_engine).__module__
    return (
        kinds == ("asof.offline_store", "asof.compute") and getattr(store.config.online_store, "type", "") != "remote"
    )


def _view(store: FeatureStore, name: str, allow_cache: bool) -> FeatureView | None:
    """The view, if pushing to it is ours to do."""
    if not _on_asof(store):
        return None
    view: Any = store.registry.get_any_feature_view(name, store.project, allow_cache=allow_cache)
    return view if _is_ours(store, view) else None


def _is_ours(store: FeatureStore, view: Any) -> bool:
    return (
        _on_asof(store)
        and isinstance(view, FeatureView)
        and not getattr(view, "source_views", None)
        and isinstance(view.batch_source, FileSource)
    )


def _precompute(store: FeatureStore, views: Iterable[str], df: Any) -> None:
    """What Feast does after a push for services that keep whole vectors, where there are any."""
    names = set(views)
    for service in store.registry.list_feature_services(store.project, allow_cache=True):
        affected = names & {projection.name for projection in service.feature_view_projections}
        if service.precompute_online and affected:
            store._precompute_for_push(sorted(affected)[0], df)
