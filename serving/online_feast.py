"""Serving's door to Feast's online stores: own readers for SQLite, Redis and PostgreSQL, Feast's for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from feast import FeatureStore, FeatureView
from feast.infra.online_stores.helpers import _mmh3, compute_table_id, compute_versioned_name
from feast.infra.online_stores.sqlite import SqliteOnlineStore
from feast.infra.passthrough_provider import PassthroughProvider
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type
from feast.value_type import ValueType

from asof.wire import KeyKind, decoder, key_encoder
from serving.online import TIMEOUT_SECONDS, Key, OnlineReader, Row, StoreUnavailable, ViewSpec
from serving.online_sqlite import SqliteReader

NO_ENTITY = "__dummy_id"
KEY_FIELDS = {
    ValueType.INT32: "int32_val",
    ValueType.INT64: "int64_val",
    ValueType.STRING: "string_val",
    ValueType.UNIX_TIMESTAMP: "unix_timestamp_val",
}
"""Types a join key can have in a request, and where Feast keeps them."""

_KEY_KINDS: dict[ValueType, KeyKind] = {
    ValueType.INT32: "int32",
    ValueType.INT64: "int64",
    ValueType.STRING: "text",
    ValueType.UNIX_TIMESTAMP: "timestamp",
}
_REDIS, _POSTGRES = "feast.infra.online_stores.redis", "feast.infra.online_stores.postgres_online_store.postgres"
_REDIS_KINDS: dict[str, Any] = {"redis": "server", "redis_sentinel": "sentinels", "redis_cluster": "cluster"}
_STORE_THREADS = 8
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def online_reader(
    store: FeatureStore,
    views: Sequence[tuple[FeatureView, ViewSpec]],
    kinds: Mapping[str, ValueType],
    timeout: float = TIMEOUT_SECONDS,
) -> OnlineReader:
    """The fastest reader there is for the repository's online store.

    Args:
        store: of the repository.
        views: what is to be read, as Feast and as the plan knows it.
        kinds: request column to the type of the join key it gives.
        timeout: seconds a read may take.
    """
    config, provider = store.config, store._get_provider()
    native: Callable[..., OnlineReader] | None = None
    if isinstance(provider, PassthroughProvider) and type(provider).online_read is PassthroughProvider.online_read:
        kind = type(provider.online_store)
        native = _NATIVE.get((kind.__module__, kind.__name__))
    if native is None or config.entity_key_serialization_version != 3:
        return StoreReader(store, {spec.name: view for view, spec in views}, kinds, timeout)
    encoders = {
        spec.name: key_encoder(spec.join_keys, [_KEY_KINDS[kinds[column]] for column in spec.columns])
        for _, spec in views
    }
    return native(store, views, kinds, encoders, decoder(_parsed), timeout)


def _sqlite(store: FeatureStore, views: Any, kinds: Any, encoders: Any, decode: Any, timeout: float) -> OnlineReader:
    path = Path(SqliteOnlineStore._get_db_path(store.config))
    return SqliteReader(path, _tables(store, views), encoders, decode, timeout)


def _redis(store: FeatureStore, views: Any, kinds: Any, encoders: Any, decode: Any, timeout: float) -> OnlineReader:
    from feast.infra.online_stores.redis import RedisClient, RedisOnlineStore

    from serving.online_redis import RedisReader
    from serving.redis_servers import RedisAddress

    config, settings = store.config, store.config.online_store
    if settings.client != RedisClient.redis:
        return StoreReader(store, {spec.name: view for view, spec in views}, kinds, timeout)
    found, parameters = RedisOnlineStore._parse_connection_string(settings.connection_string)
    nodes = tuple((node["host"], int(node["port"])) for node in found)
    address = RedisAddress(nodes, parameters, _REDIS_KINDS[settings.redis_type.value], settings.sentinel_master)
    hashes = {}
    for view, spec in views:
        name = compute_versioned_name(view, config.registry.enable_online_feature_view_versioning)
        hashes[spec.name] = [*(_mmh3(f"{name}:{feature}") for feature in spec.features), f"_ts:{name}".encode()]
    return RedisReader(address, config.project, hashes, encoders, decode, timeout)


def _postgres(store: FeatureStore, views: Any, kinds: Any, encoders: Any, decode: Any, timeout: float) -> OnlineReader:
    from feast.infra.utils.postgres.connection_utils import _get_conn_kwargs

    from serving.online_postgres import PostgresReader

    settings = store.config.online_store
    connection = {
        "host": settings.host,
        "port": int(settings.port),
        "dbname": settings.database,
        "user": settings.user,
        "password": settings.password,
        "keepalives_idle": settings.keepalives_idle,
        **_get_conn_kwargs(settings),
    }
    return PostgresReader(connection, _tables(store, views), encoders, decode, timeout)


_NATIVE: dict[tuple[str, str], Callable[..., OnlineReader]] = {
    (SqliteOnlineStore.__module__, SqliteOnlineStore.__name__): _sqlite,
    (_REDIS, "RedisOnlineStore"): _redis,
    (_POSTGRES, "PostgreSQLOnlineStore"): _postgres,
}


def _tables(store: FeatureStore, views: Sequence[tuple[FeatureView, ViewSpec]]) -> dict[str, str]:
    versioned = store.config.registry.enable_online_feature_view_versioning
    return {spec.name: compute_table_id(store.config.project, view, versioned) for view, spec in views}


def _parsed(stored: bytes) -> Any:
    value = Value()
    value.ParseFromString(stored)
    return _as_training_reads(value)


def _as_training_reads(value: Value) -> Any:
    """Feast's Python value; of JSON the text, which is what its source holds and a training reads."""
    return value.json_val if value.WhichOneof("val") == "json_val" else feast_value_type_to_python_type(value)


class StoreReader:
    """Any Feast online store, through its own `online_read`: one call a view.

    Args:
        store: of the repository.
        views: name to view.
        kinds: request column to the type of the join key it gives.
        timeout: seconds a read may take. Such a store may not end it itself: its thread is then left to it, and there
            are no more of these than a few.
    """

    waits = True

    def __init__(
        self,
        store: FeatureStore,
        views: Mapping[str, FeatureView],
        kinds: Mapping[str, ValueType],
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._timeout = timeout
        self._threads = ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="online-store")
        self._config = store.config
        self._provider = store._get_provider()
        self._views = views
        self._fields = {column: KEY_FIELDS[kind] for column, kind in kinds.items() if kind in KEY_FIELDS}

    def read(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[list[Row | None]]:
        """Rows of each view for its distinct keys, in their order.

        Raises:
            StoreUnavailable: there is no answer in time.
        """
        reading = self._threads.submit(lambda: [self._read(spec, keys) if keys else [] for spec, keys in asked])
        try:
            return reading.result(self._timeout)
        except TimeoutError as error:
            reading.cancel()
            kind = type(self._provider).__name__
            raise StoreUnavailable(
                f"The online store, read through Feast's {kind}, gave no answer within {self._timeout:g} s.",
                hint="see what it waits for; degradation.read_timeout of the task says how long it may.",
            ) from error

    def _read(self, spec: ViewSpec, keys: Sequence[Key]) -> list[Row | None]:
        found = self._provider.online_read(
            self._config, self._views[spec.name], [self.entity_key(spec, key) for key in keys], list(spec.features)
        )
        rows: list[Row | None] = []
        for stamp, values in found:
            if stamp is None or values is None:
                rows.append(None)
                continue
            instant = ((stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND
            row = [_as_training_reads(values[name]) if name in values else None for name in spec.features]
            # Feast's Redis store answers a key it never saw with nulls of the year 1970.
            rows.append((instant, tuple(row)) if instant or any(value is not None for value in row) else None)
        return rows

    def entity_key(self, spec: ViewSpec, key: Key) -> EntityKey:
        """Feast's form of a key."""
        if not spec.join_keys:
            return EntityKey(join_keys=[NO_ENTITY], entity_values=[Value(string_val="")])
        values = [self._value(column, value) for column, value in zip(spec.columns, key, strict=True)]
        return EntityKey(join_keys=list(spec.join_keys), entity_values=values)

    def _value(self, column: str, value: Any) -> Value:
        proto = Value()
        setattr(proto, self._fields[column], int(value.timestamp()) if isinstance(value, datetime) else value)
        return proto
