"""Writing to Feast's PostgreSQL online store in one transaction, newest value kept.

The rows are copied into a table that lives as long as the transaction, and from there upserted where the store holds
nothing newer; an empty table they are copied into as such. Readers see a view before or after, and never wait; a killed
process, or a lost connection, leaves it as it was.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.postgres_online_store.postgres import PostgreSQLOnlineStore, _table_id
from feast.infra.utils.postgres.connection_utils import _get_conn
from psycopg import Connection, Cursor, Error, errors, sql
from psycopg.copy import QueuedLibpqWriter

from asof.unwritten import not_written
from asof.wire_columns import joined, lengths, numbers, slices

if TYPE_CHECKING:
    from asof.stored import Rows

_HEADER, _TRAILER = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
"""What PostgreSQL's binary form of rows begins and ends with."""
_ROWS_AT_ONCE = 1_000
"""Of a view, handed over together."""
_FULL = 50
"""Percent of a page that first versions of rows may fill."""
_YEAR_2000 = 946_684_800_000_000
"""Where PostgreSQL counts microseconds from."""

_COLUMNS = ("entity_key", "feature_name", "value", "value_text", "event_ts")
_TYPES = ("bytea", "text", "bytea", "text", "timestamptz")


def writable(config: RepoConfig) -> bool:
    """Whether the store has no vector or document columns to keep up."""
    settings = config.online_store
    return not (settings.vector_enabled or settings.enable_openai_compatible_store)


def write(
    config: RepoConfig,
    store: PostgreSQLOnlineStore,
    view: FeatureView,
    names: Sequence[str],
    rows: Iterable[Rows],
) -> int:
    """Upsert rows of one view, all or nothing; see `asof.online.Writer`.

    Raises:
        StoreNotWritten: nobody answers, or the server refuses.
    """
    try:
        return _write(config, store, view, names, rows)
    except Error as error:
        where = f"{config.online_store.host}:{config.online_store.port}/{config.online_store.database}"
        raise not_written([view.name], "PostgreSQL", where, error) from error


def _write(
    config: RepoConfig,
    store: PostgreSQLOnlineStore,
    view: FeatureView,
    names: Sequence[str],
    rows: Iterable[Rows],
) -> int:
    name = _table_id(config.project, view, config.registry.enable_online_feature_view_versioning)
    table, columns = sql.Identifier(name), sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
    # A connection of its own: a thread that reads through Feast's must not see half a transaction.
    with contextlib.closing(_get_conn(config.online_store)) as connection, connection.cursor() as cursor:
        if not _roomy(connection, name):
            # The registry remembers making the table, so applying again does not bring back a database that was lost.
            store.update(config, [], [view], [], [], partial=True)
            _roomy(connection, name)
        if _is_empty(connection, table):
            _copy(cursor, table, rows, names, config)
            written = cursor.rowcount
        else:
            kinds = zip(_COLUMNS, _TYPES, strict=True)
            cursor.execute(
                f"create temporary table asof_rows ({', '.join(f'{column} {kind}' for column, kind in kinds)}) "
                "on commit drop"
            )
            _copy(cursor, sql.Identifier("asof_rows"), rows, names, config)
            # In one order, so that two writers of the same keys wait for each other rather than lock each other out.
            cursor.execute(
                sql.SQL(
                    "insert into {table} ({columns}) select {columns} from asof_rows order by entity_key, feature_name "
                    "on conflict (entity_key, feature_name) do update set value = excluded.value, "
                    "value_text = excluded.value_text, event_ts = excluded.event_ts, created_ts = null "
                    "where {table}.event_ts is null or excluded.event_ts >= {table}.event_ts"
                ).format(table=table, columns=columns)
            )
            written = cursor.rowcount
        connection.commit()
    return written // max(len(names), 1)


def _roomy(connection: Connection, name: str) -> bool:
    """Leave room in each page of a table for a second version of its rows, so that a new value touches no index.

    Not where its owner has said how full a page may be. Neither readers nor writers wait for it; it does not wait for
    who cleans the table up, the next write will find it done.

    Returns:
        Whether there is such a table.
    """
    with contextlib.suppress(errors.LockNotAvailable), connection.transaction():
        found = connection.execute(
            "select coalesce(array_to_string(reloptions, ' '), '') not like '%%fillfactor%%' "
            "and pg_has_role(relowner, 'usage') from pg_class where oid = to_regclass(quote_ident(%s))",
            [name],
        ).fetchone()
        if found is None:
            return False
        if found[0]:
            connection.execute("set local lock_timeout = '100ms'")
            connection.execute(sql.SQL("alter table {} set (fillfactor = {})").format(sql.Identifier(name), _FULL))
    return True


def _is_empty(connection: Connection, table: sql.Identifier) -> bool:
    """Whether a table holds nothing; then nobody else writes to it until the transaction ends.

    False too while somebody else is at work on it: nothing is waited for.
    """
    question = sql.SQL("select not exists (select from {})").format(table)
    empty = connection.execute(question).fetchone() == (True,)
    with contextlib.suppress(errors.LockNotAvailable), connection.transaction():
        if empty:
            connection.execute(sql.SQL("lock table {} in share row exclusive mode nowait").format(table))
        return empty and connection.execute(question).fetchone() == (True,)  # another may have been first
    return False


def _copy(
    cursor: Cursor, table: sql.Identifier, rows: Iterable[Rows], names: Sequence[str], config: RepoConfig
) -> None:
    columns = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
    statement = sql.SQL("copy {table} ({columns}) from stdin (format binary)").format(table=table, columns=columns)
    # Another thread sends what is ready and waits for the server, which works while the next rows are put in its form.
    with cursor.copy(statement, writer=QueuedLibpqWriter(cursor)) as copy:
        copy.write(_HEADER)
        for part in rows:
            for each in _tuples(part, names, config):
                copy.write(each)
        copy.write(_TRAILER)


def _tuples(rows: Rows, names: Sequence[str], config: RepoConfig) -> list[bytes]:
    """The cells, key by key, in PostgreSQL's binary form: of each column its length, -1 for null, and its bytes."""
    entities = rows.entities(config.entity_key_serialization_version)
    head = joined(struct.pack(">h", len(_COLUMNS)), lengths(entities, ">i4"), entities)
    moments = joined(struct.pack(">i", 8), numbers((rows.events - _YEAR_2000).astype(">i8")))
    cells = []
    for name, column in zip(names, rows.features, strict=True):
        label, stored, texts = name.encode(), column.stored(), column.texts()
        said = pc.fill_null(texts.cast(pa.large_binary()), b"")
        size = pc.if_else(texts.is_valid(), lengths(said, ">i4"), b"\xff\xff\xff\xff")
        labelled = struct.pack(">i", len(label)) + label
        cells += [head, labelled, lengths(stored, ">i4"), stored, size, said, moments]
    return slices(joined(*cells), _ROWS_AT_ONCE)
