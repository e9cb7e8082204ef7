"""Writing to Feast's PostgreSQL online store in one transaction, newest value kept.

The rows are copied into a table that lives as long as the transaction, and from there upserted where the store holds
nothing newer. Readers see a view before or after; a killed process, or a lost connection, leaves it as it was.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.postgres_online_store.postgres import PostgreSQLOnlineStore, _table_id
from feast.infra.utils.postgres.connection_utils import _get_conn
from psycopg import sql

from asof.wire_columns import joined, lengths, numbers, slices

if TYPE_CHECKING:
    from asof.stored import Rows

_HEADER, _TRAILER = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
"""What PostgreSQL's binary form of rows begins and ends with."""
_ROWS_AT_ONCE = 10_000
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
    """Upsert rows of one view, all or nothing; see `asof.online.Writer`."""
    name = _table_id(config.project, view, config.registry.enable_online_feature_view_versioning)
    table, columns = sql.Identifier(name), sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
    # A connection of its own: a thread that reads through Feast's must not see half a transaction.
    with contextlib.closing(_get_conn(config.online_store)) as connection, connection.cursor() as cursor:
        there = cursor.execute("select to_regclass(quote_ident(%s))", [name]).fetchone()
        if there is None or there[0] is None:
            # The registry remembers making the table, so applying again does not bring back a database that was lost.
            store.update(config, [], [view], [], [], partial=True)
        kinds = zip(_COLUMNS, _TYPES, strict=True)
        cursor.execute(
            f"create temporary table asof_rows ({', '.join(f'{column} {kind}' for column, kind in kinds)}) "
            "on commit drop"
        )
        with cursor.copy(f"copy asof_rows ({', '.join(_COLUMNS)}) from stdin (format binary)") as copy:
            copy.write(_HEADER)
            for part in rows:
                for each in _tuples(part, names, config):
                    copy.write(each)
            copy.write(_TRAILER)
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


def _tuples(rows: Rows, names: Sequence[str], config: RepoConfig) -> Iterator[bytes]:
    """The cells of each feature in PostgreSQL's binary form: of each column its length, -1 for null, and its bytes."""
    entities = rows.entities(config.entity_key_serialization_version)
    moments = struct.pack(">i", 8), numbers((rows.events - _YEAR_2000).astype(">i8"))
    head = struct.pack(">h", len(_COLUMNS)), lengths(entities, ">i4"), entities
    for name, column in zip(names, rows.features, strict=True):
        label, stored, texts = name.encode(), column.stored(), column.texts()
        said = pc.fill_null(texts.cast(pa.large_binary()), b"")
        size = pc.if_else(texts.is_valid(), lengths(said, ">i4"), b"\xff\xff\xff\xff")
        cells = (lengths(stored, ">i4"), stored, size, said)
        yield from slices(joined(*head, struct.pack(">i", len(label)), label, *cells, *moments), _ROWS_AT_ONCE)
