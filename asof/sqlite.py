"""Writing to Feast's SQLite online store in one transaction, newest value kept.

Feast writes a cell at a time and lets an older event overwrite a newer one. The same table is written here with one
statement per view, which SQLite itself refuses to apply over a newer cell: a push in another process cannot slip in
between, and a killed process leaves the last complete state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TypeGuard

from feast import FeatureView, RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import extract_text_and_num
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.sqlite import SqliteOnlineStore, _quote_id, _table_id
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value


def writable(store: OnlineStore, config: RepoConfig) -> TypeGuard[SqliteOnlineStore]:
    """Whether the store is the plain SQLite one (no vector or document columns to keep up)."""
    settings = config.online_store
    return isinstance(store, SqliteOnlineStore) and not (
        settings.vector_enabled or settings.enable_openai_compatible_store
    )


def write_cells(
    config: RepoConfig,
    store: SqliteOnlineStore,
    feature_view: FeatureView,
    names: Sequence[str],
    rows: Iterable[tuple[EntityKey, Sequence[Value], datetime]],
) -> int:
    """Upsert rows of one view, all or nothing.

    Args:
        config: of the repository.
        store: a store `writable` accepts.
        feature_view: the view.
        names: its features.
        rows: key, values in the order of `names`, event time.

    Returns:
        Rows written; those with a newer value in the store are not.
    """
    name = _table_id(config.project, feature_view, config.registry.enable_online_feature_view_versioning)
    table = _quote_id(name)
    statement = (
        f"insert into {table} (entity_key, feature_name, value, value_text, event_ts, created_ts) "
        "values (?, ?, ?, ?, ?, null) on conflict (entity_key, feature_name) do update set "
        "value = excluded.value, value_text = excluded.value_text, event_ts = excluded.event_ts, created_ts = null "
        f"where excluded.event_ts >= {table}.event_ts"
    )
    cells = []
    for key, values, event in rows:
        entity = serialize_entity_key(key, entity_key_serialization_version=config.entity_key_serialization_version)
        stamp = _stamp(event)
        for name, value in zip(names, values, strict=True):
            cells.append((entity, name, value.SerializeToString(), extract_text_and_num(value, False)[0], stamp))
    connection = store._get_conn(config)
    if connection.execute("select 1 from sqlite_master where name = ?", [name]).fetchone() is None:
        # The registry remembers making the table, so applying again does not bring back a database that was lost.
        store.update(config, [], [feature_view], [], [], partial=True)
    with connection:
        before = connection.total_changes
        connection.executemany(statement, cells)
        return (connection.total_changes - before) // max(len(names), 1)


def _stamp(event: datetime) -> int:
    """Whole seconds, as Feast's own adapter stores and reads them back: through the machine's local clock."""
    return int(event.replace(tzinfo=None).timestamp())
