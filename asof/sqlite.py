"""Writing to Feast's SQLite online store in one transaction, newest value kept.

Feast writes a cell at a time and lets an older event overwrite a newer one. The same table is written here with one
statement a key, whose cells SQLite itself refuses to put over newer ones: a push in another process cannot slip in
between, and a killed process leaves the last complete state. Feast's `event_ts` holds whole seconds; the microseconds
go to `created_ts`, which Feast's reads of features never look at, so that order holds within a second too.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.sqlite import SqliteOnlineStore, _quote_id, _table_id

from asof.clockwork import from_micros

if TYPE_CHECKING:
    from asof.online import Writer
    from asof.stored import Rows

_PATIENCE = 60.0
"""Seconds to wait for another writer."""
_FEATURES_AT_ONCE = 1_000
"""A statement takes 32,766 parameters, two of which are a feature's."""


def writable(store: OnlineStore, config: RepoConfig) -> TypeGuard[SqliteOnlineStore]:
    """Whether the store is the plain SQLite one (no vector or document columns to keep up)."""
    settings = config.online_store
    return isinstance(store, SqliteOnlineStore) and not (
        settings.vector_enabled or settings.enable_openai_compatible_store
    )


def write(
    config: RepoConfig, store: SqliteOnlineStore, view: FeatureView, names: Sequence[str], rows: Iterable[Rows]
) -> int:
    """Upsert rows of one view, all or nothing; see `asof.online.Writer`."""
    with together(config, store, [view]) as write_one:
        return write_one(config, store, view, names, rows)


@contextlib.contextmanager
def together(config: RepoConfig, store: SqliteOnlineStore, views: Sequence[FeatureView]) -> Iterator[Writer]:
    """What writes rows of any of the views, all of them or nothing: one transaction, one wait for the disk."""
    # Stays open, and has read: closing the last connection to the write-ahead log folds it back, at every write.
    store._get_conn(config).execute("select count(*) from sqlite_master").fetchall()
    with contextlib.closing(_connect(store._get_db_path(config))) as connection:
        there = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
        lost = [view for view in views if _table(config, view) not in there]
        if lost:
            # The registry remembers making the table, so applying again does not bring back a database that was lost.
            store.update(config, [], lost, [], [], partial=True)
        connection.execute("begin immediate")
        yield functools.partial(_write, connection)
        connection.execute("commit")


def _write(
    connection: sqlite3.Connection,
    config: RepoConfig,
    store: SqliteOnlineStore,
    view: FeatureView,
    names: Sequence[str],
    rows: Iterable[Rows],
) -> int:
    table = _quote_id(_table(config, view))
    chunks = [slice(first, first + _FEATURES_AT_ONCE) for first in range(0, len(names), _FEATURES_AT_ONCE)]
    statements = [_upsert(table, names[chunk]) for chunk in chunks]
    before = connection.total_changes
    for part in rows:
        entities = part.entities(config.entity_key_serialization_version).to_pylist()
        seconds, micros = np.divmod(part.events, 1_000_000)
        times = [_stamps(seconds).tolist(), micros.tolist()]
        # In the order of the index, neighbours land on the same page.
        order = sorted(range(len(part)), key=entities.__getitem__)
        for statement, chunk in zip(statements, chunks, strict=True):
            columns: list[Sequence[object]] = [entities, *times]
            for feature in part.features[chunk]:
                columns += [feature.stored().to_pylist(), feature.texts().to_pylist()]
            cells = list(zip(*columns, strict=True))
            connection.executemany(statement, [cells[row] for row in order])
    return (connection.total_changes - before) // max(len(names), 1)


def _table(config: RepoConfig, view: FeatureView) -> str:
    return _table_id(config.project, view, config.registry.enable_online_feature_view_versioning)


def _upsert(table: str, names: Sequence[str]) -> str:
    """A statement that writes one row: a cell per feature, from the key, its time and each feature's value."""
    literals = ["'" + name.replace("'", "''") + "'" for name in names]
    places = range(4, 4 + 2 * len(names), 2)
    cells = ", ".join(f"(?1, {name}, ?{n}, ?{n + 1}, ?2, ?3)" for name, n in zip(literals, places, strict=True))
    return (
        f"insert into {table} (entity_key, feature_name, value, value_text, event_ts, created_ts) values {cells} "
        "on conflict (entity_key, feature_name) do update set "
        "value = excluded.value, value_text = excluded.value_text, "
        "event_ts = excluded.event_ts, created_ts = excluded.created_ts "
        "where (excluded.event_ts, excluded.created_ts) "
        # What Feast itself wrote there is a time of its own, or nothing.
        f">= ({table}.event_ts, coalesce(min({table}.created_ts, 999999), 0))"
    )


def _connect(path: str) -> sqlite3.Connection:
    """A connection of its own: a thread that reads through Feast's must not see half a transaction."""
    connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
    with contextlib.suppress(sqlite3.OperationalError):
        connection.execute("pragma journal_mode = wal")  # readers never wait for a write
    connection.execute("pragma cache_size = -65536")  # KiB; its default of 2 MiB spills a write and reads it again
    return connection


def _stamps(seconds: np.ndarray) -> np.ndarray:
    """Whole seconds as `_stamp` gives them; it is asked about hours, at whose ends the clock stands the same way."""
    hours, place = np.unique(seconds // 3600, return_inverse=True)
    shifts = [[_stamp(second) - second for second in (hour * 3600, hour * 3600 + 3599)] for hour in hours.tolist()]
    first, last = np.array(shifts, np.int64).T
    stamps = seconds + first[place]
    for row in np.flatnonzero((first != last)[place]):  # the clock is changed within this hour
        stamps[row] = _stamp(int(seconds[row]))
    return stamps


@functools.lru_cache(maxsize=1 << 12)
def _stamp(seconds: int) -> int:
    """Whole seconds, as Feast's own adapter stores and reads them back: through the machine's local clock."""
    return int(from_micros(seconds * 1_000_000).replace(tzinfo=None).timestamp())
