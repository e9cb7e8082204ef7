"""Writing answers to whatever online store the repository names: newest value kept, all of a view or none of it.

Three stores are written natively, where the store itself refuses to let an older event replace a newer one, and a
reader, or the next process after a killed one, sees a view as it was before the write or after it: SQLite
(`asof.sqlite`), PostgreSQL (`asof.postgres`), Redis (`asof.redis`). In a Redis Cluster a row is whole or absent, a view
is not. Nor is it in any other store, which is written through Feast's own interface: the times it holds are read first
and older values left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from asof import sqlite
from asof.clockwork import from_micros
from asof.engine import Answer
from asof.stored import Rows, rows_of

ROWS_AT_ONCE = 10_000
"""Rows held in a store's form at a time: bounds the memory of a write."""


class Writer(Protocol):
    """Writes the rows of one view; returns how many the store had nothing newer for."""

    def __call__(
        self, config: RepoConfig, store: Any, view: FeatureView, names: Sequence[str], rows: Iterable[Rows]
    ) -> int:
        """`rows` comes in parts, all of which belong to one write."""
        ...


@dataclass(frozen=True)
class Values:
    """What to write of one view."""

    view: FeatureView
    answer: Answer
    """Features of that view, a row per key."""
    keys: pa.Table
    """Rows as in the answer, columns as in the spine."""


def write_all(values: Sequence[Values], config: RepoConfig, store: OnlineStore) -> None:
    """Write the found rows of several views; SQLite takes all of them or none, other stores a view at a time."""
    values = [each for each in values if each.answer.found.any()]
    with contextlib.ExitStack() as stack:
        write_one = writer(store, config)
        if values and sqlite.writable(store, config):
            write_one = stack.enter_context(sqlite.together(config, store, [each.view for each in values]))
        for each in values:
            names = each.answer.features.column_names
            write_one(config, store, each.view, names, _parts(each.answer, each.keys, None))


def make_ready(values: Sequence[Values], config: RepoConfig, store: OnlineStore) -> None:
    """Open a store as the first write of these values would; nothing is written."""
    if sqlite.writable(store, config):
        with sqlite.together(config, store, [each.view for each in values]):
            return
    for each in values:
        for part in _parts(each.answer, each.keys, None):
            store.online_read(config, each.view, list(part.entity_keys()), each.answer.features.column_names[:1])


def write(
    answer: Answer,
    keys: pa.Table,
    feature_view: FeatureView,
    config: RepoConfig,
    store: OnlineStore,
    progress: Callable[[int], Any] | None = None,
) -> int:
    """Write the found rows of an answer.

    Args:
        answer: features of one view, a row per key.
        keys: the keys, rows as in the answer, columns as in the spine.
        feature_view: the Feast view they belong to.
        config: of the repository.
        store: of the repository.
        progress: called with the number of rows done.

    Returns:
        Rows written; those the store holds a newer value for are not.
    """
    if not answer.found.any():
        return 0
    names = answer.features.column_names
    write_one = writer(store, config)
    # In the order of a database's index, neighbours land on the same page.
    ordered = write_one.__module__ in ("asof.sqlite", "asof.postgres")
    order = config.entity_key_serialization_version if ordered else None
    return write_one(config, store, feature_view, names, _parts(answer, keys, progress, order))


def writer(store: OnlineStore, config: RepoConfig) -> Writer:
    """How to write to a store."""
    modules = {kind.__module__ for kind in type(store).__mro__}
    if sqlite.writable(store, config):
        return sqlite.write
    # Importing a store's module imports its driver: only where the repository has chosen it.
    if "feast.infra.online_stores.redis" in modules:
        from asof import redis

        return redis.write
    if "feast.infra.online_stores.postgres_online_store.postgres" in modules:
        from asof import postgres

        if postgres.writable(config):
            return postgres.write
    return _write_through_feast


def _write_through_feast(
    config: RepoConfig, store: OnlineStore, view: FeatureView, names: Sequence[str], rows: Iterable[Rows]
) -> int:
    written = 0
    for part in rows:
        keys = list(part.entity_keys())
        values = zip(*(column.protobuf() for column in part.features), strict=True)
        held = store.online_read(config, view, keys, list(names[:1]))
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]] = [
            (key, dict(zip(names, row, strict=True)), from_micros(event), None)
            for key, row, event, (newest, _) in zip(keys, values, part.events, held, strict=True)
            if newest is None or _utc(newest) <= from_micros(event)
        ]
        if data:
            store.online_write_batch(config, view, data, None)
        written += len(data)
    return written


def _parts(
    answer: Answer, keys: pa.Table, progress: Callable[[int], Any] | None, order: int | None = None
) -> Iterator[Rows]:
    """The found rows, some at a time; in the order of their keys as a store holds them in this version, if given."""
    found = np.flatnonzero(answer.found)
    if order is not None:
        keys_alone = rows_of(answer.view, answer.event[found], keys.take(found), answer.features.select([]))
        found = found[pc.sort_indices(keys_alone.entities(order)).to_numpy()]
    for first in range(0, len(found), ROWS_AT_ONCE):
        rows = found[first : first + ROWS_AT_ONCE]
        yield rows_of(answer.view, answer.event[rows], keys.take(rows), answer.features.take(rows))
        if progress:
            progress(len(rows))


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
