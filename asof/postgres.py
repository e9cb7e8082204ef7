"""Writing to Feast's PostgreSQL online store in one transaction, newest value kept.

The rows are copied into a table that lives as long as the transaction, and from there upserted where the store holds
nothing newer. Readers see a view before or after; a killed process, or a lost connection, leaves it as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from feast import FeatureView, RepoConfig
from feast.infra.online_stores.postgres_online_store.postgres import PostgreSQLOnlineStore, _table_id
from feast.infra.utils.postgres.connection_utils import _get_conn
from psycopg import sql

from asof.clockwork import from_micros

if TYPE_CHECKING:
    from asof.stored import Rows

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
            copy.set_types(_TYPES)
            for part in rows:
                entities = part.entities(config.entity_key_serialization_version)
                moments = [from_micros(event) for event in part.events]
                for name, column in zip(names, part.features, strict=True):
                    cells = zip(entities, column.stored(), column.texts(), moments, strict=True)
                    for entity, value, text, moment in cells:
                        copy.write_row((entity, name, value, text, moment))
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
