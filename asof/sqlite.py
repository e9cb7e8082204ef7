"""Writing to Feast's SQLite online store in one transaction, newest value kept.

Feast writes a cell at a time and lets an older event overwrite a newer one. The same table is written here with one
statement for thousands of keys, or for one of a few, whose cells SQLite itself refuses to put over newer ones: a push
in another process cannot slip in between, and a killed process leaves the last complete state. Feast's `event_ts` holds
whole seconds; the microseconds go to `created_ts`, which Feast's reads of features never look at, so that order holds
within a second too.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sqlite3
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.sqlite import SqliteOnlineStore, _quote_id, _table_id

from asof.clockwork import from_micros
from asof.framed import Frame
from asof.stored import MANY
from asof.unwritten import not_written

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
    """What writes rows of any of the views, all of them or nothing: one transaction, one wait for the disk.

    Raises:
        StoreNotWritten: it is locked, full, read-only, or no database.
    """
    path = store._get_db_path(config)
    try:
        # Stays open, and has read: closing the last connection to the write-ahead log folds it back, at every write.
        store._get_conn(config).execute("select count(*) from sqlite_master").fetchall()
        with contextlib.closing(_connect(path)) as connection:
            there = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
            lost = [view for view in views if _table(config, view) not in there]
            if lost:
                # The registry remembers making the table, so applying again does not bring back a lost database.
                store.update(config, [], lost, [], [], partial=True)
            connection.execute("begin immediate")
            yield functools.partial(_write, connection)
            connection.execute("commit")
    except sqlite3.Error as error:
        raise not_written([view.name for view in views], "SQLite", path, error) from error


def _write(
    connection: sqlite3.Connection,
    config: RepoConfig,
    store: SqliteOnlineStore,
    view: FeatureView,
    names: Sequence[str],
    rows: Iterable[Rows],
) -> int:
    table = _quote_id(_table(config, view))
    before = connection.total_changes
    version = config.entity_key_serialization_version
    with contextlib.closing(_one_ahead(_statements(table, names, rows, version))) as statements:
        for statement in statements:
            statement.run(connection)
    return (connection.total_changes - before) // max(len(names), 1)


@dataclass(frozen=True)
class _Statement:
    """Writes some features of some rows."""

    text: str
    cells: list[tuple[object, ...]] = field(default_factory=list)
    """Parameters of each row, where it is to be run for one at a time."""
    frames: dict[str, object] | None = None
    """Parameters of all rows at once."""

    def run(self, connection: sqlite3.Connection) -> None:
        if self.frames is None:
            connection.executemany(self.text, self.cells)
        else:
            connection.execute(self.text, self.frames)


def _one_ahead(statements: Iterator[_Statement]) -> Generator[_Statement]:
    """The statements, each made while the one before it runs; SQLite holds no lock of Python's for one of many rows."""
    with ThreadPoolExecutor(1) as other:
        statement = next(statements, None)
        while statement is not None:
            coming = other.submit(next, statements, None) if statement.frames is not None else None
            yield statement
            statement = coming.result() if coming else next(statements, None)


def _statements(table: str, names: Sequence[str], rows: Iterable[Rows], version: int) -> Iterator[_Statement]:
    for part in rows:
        entities = part.entities(version)
        seconds, micros = np.divmod(part.events, 1_000_000)
        times = pa.array(_stamps(seconds)), pa.array(micros)
        for first in range(0, len(names), _FEATURES_AT_ONCE):
            chunk = slice(first, first + _FEATURES_AT_ONCE)
            statement = None
            if len(part) >= MANY:
                features = [(feature.stored(), feature.texts()) for feature in part.features[chunk]]
                statement = _of_frames(table, names[chunk], entities, times, features)
            if statement is None:
                values = itertools.chain(*(feature.listed() for feature in part.features[chunk]))
                cells = list(zip(*(column.to_pylist() for column in (entities, *times)), *values, strict=True))
                statement = _Statement(_of_one_row(table, names[chunk]), cells)
            yield statement


def _table(config: RepoConfig, view: FeatureView) -> str:
    return _table_id(config.project, view, config.registry.enable_online_feature_view_versioning)


def _of_one_row(table: str, names: Sequence[str]) -> str:
    """A statement that writes one row: a cell per feature, from the key, its time and each feature's value."""
    places = range(4, 4 + 2 * len(names), 2)
    cells = ", ".join(f"(?1, {name}, ?{n}, ?{n + 1}, ?2, ?3)" for name, n in zip(_texts(names), places, strict=True))
    return _upsert(table, f"values {cells}")


def _of_frames(
    table: str,
    names: Sequence[str],
    entities: pa.LargeBinaryArray,
    times: tuple[pa.Int64Array, pa.Int64Array],
    features: Sequence[tuple[pa.LargeBinaryArray, pa.LargeStringArray]],
) -> _Statement | None:
    """A statement that writes all rows; None where values differ too much in size."""
    columns = {
        "key": [entities],
        "second": [times[0].cast(pa.large_string())],
        "micro": [times[1].cast(pa.large_string())],
        "stored": [stored for stored, _ in features],
        "said": [texts for _, texts in features],
    }
    frames = {name: Frame.of([part.cast(pa.large_binary()) for part in parts]) for name, parts in columns.items()}
    parameters: dict[str, object] = {"last": len(entities) - 1}
    sql = {}
    for name, frame in frames.items():
        if frame is None:
            return None
        parameters[name] = frame.content
        sql[name] = frame.sql(f":{name}", "first + column1" if name in ("stored", "said") else "number")
    head = (
        "with recursive numbers(number) as (values (0) union all select number + 1 from numbers where number < :last), "
        f"asof_rows(first, key, second, micro) as materialized (select number * {len(names)}, {sql['key']}, "
        f"cast({sql['second']} as integer), cast({sql['micro']} as integer) from numbers) "
    )
    labels = ", ".join(f"({place}, {name})" for place, name in enumerate(_texts(names)))
    source = (
        f"select key, column2, {sql['stored']}, cast({sql['said']} as text), second, micro "
        f"from asof_rows cross join (values {labels}) where true"
    )
    return _Statement(head + _upsert(table, source), frames=parameters)


def _texts(names: Sequence[str]) -> list[str]:
    return ["'" + name.replace("'", "''") + "'" for name in names]


def _upsert(table: str, source: str) -> str:
    """A statement that writes the cells that a query gives, where the store holds nothing newer."""
    return (
        f"insert into {table} (entity_key, feature_name, value, value_text, event_ts, created_ts) {source} "
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
    connection.execute("pragma temp_store = memory")
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
