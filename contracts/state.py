"""Shared state in SQL: what rollout, monitoring and retraining tell each other. SQLite or PostgreSQL."""

from __future__ import annotations

import json
import math
from collections.abc import MutableMapping
from datetime import UTC
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    create_engine,
    event,
    inspect,
)
from sqlalchemy.engine import Connection, Dialect, make_url
from sqlalchemy.exc import DBAPIError

from contracts.clock import as_utc
from contracts.errors import SkewlessError

_LOCK = 0x736B6577  # any number that no other program on the same database is likely to lock
_PAUSE = "'15s'"  # shorter than anybody waits
_PATIENCE: dict[str, str | int] = {
    "connect_timeout": 10,
    "tcp_user_timeout": 20_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""libpq's, in seconds and for one in milliseconds: a server that is gone is noticed, by its own word or without it."""

metadata = MetaData()
"""Every stage adds its own tables here before `open_state` creates them."""

_made: MutableMapping[Engine, set[str]] = WeakKeyDictionary()
"""Tables known to be there. Of servers only: a file may be taken away under an open engine."""


class StateUnavailable(SkewlessError, ConnectionError):
    """The state's database server cannot be reached or used."""


class StateOutdated(SkewlessError, RuntimeError):
    """The state was made by another version of this program, whose tables were other ones."""


class Instant(TypeDecorator[Any]):
    """A UTC instant; stored without a zone where the database has none, always read back aware."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Refuse naive datetimes, store the rest in UTC."""
        if value is None:
            return None
        return as_utc(value).replace(tzinfo=None) if dialect.name == "sqlite" else as_utc(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Give SQLite's naive values their zone back."""
        return None if value is None else (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


deployments = Table(
    "deployments",
    metadata,
    Column("task", String, primary_key=True),
    Column("generation", Integer, nullable=False),  # grows by one with every change: the compare-and-swap token
    Column("champion", Integer, nullable=False),  # model version; 0 is the naive baseline
    Column("champion_bundle", String, nullable=False),  # for version 0: the bundle whose fallback it answers with
    Column("challenger", Integer),
    Column("challenger_bundle", String),
    Column("stage", String, nullable=False),  # idle | shadow | canary | paused
    Column("share", Float, nullable=False),  # share of entity keys the challenger answers
    Column("since", Instant, nullable=False),
)
"""What serves now: one row a task, written by the rollout controller, read by every replica."""

alerts = Table(
    "alerts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task", String, nullable=False, index=True),
    Column("kind", String, nullable=False),  # skew | drift | decay | data_quality | freshness | estimator
    Column("opened_at", Instant, nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("message", String, nullable=False),
    Column("acknowledged_at", Instant),
    Column("note", String),
    Column("resolved_at", Instant),
)
"""Findings a person must see; an unacknowledged one blocks promotion."""

retrain_requests = Table(
    "retrain_requests",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task", String, nullable=False, index=True),
    Column("reason", String, nullable=False),  # decay | schedule | manual
    Column("evidence", JSON, nullable=False),
    Column("requested_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Column("outcome", String),  # registered | rejected | failed
    Column("version", Integer),
)
"""Retrainings asked for and what became of them."""

drills = Table(
    "drills",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task", String, nullable=False, index=True),
    Column("kind", String, nullable=False),  # rollback | drift
    Column("passed", Boolean, nullable=False),
    Column("at", Instant, nullable=False),
    Column("evidence", JSON, nullable=False),
)
"""Rehearsals on record; a promotion needs a passed rollback drill, the first one a passed drift drill too."""


def open_state(url: str) -> Engine:
    """Connect and create missing tables. In every transaction one is alone, on both databases, whoever else writes.

    SQLite gets a write-ahead log; its writers wait for each other for up to 20 s. So do PostgreSQL's, at a lock that
    every transaction takes as it begins: what is read in it is still true when something is written. A process has one
    engine for a server.

    Raises:
        StateUnavailable: the server cannot be reached, lets nobody in, or the user may not create tables.
        StateOutdated: a table is there and has other columns.
    """
    if make_url(url).get_backend_name() == "sqlite":
        database = make_url(url).database
        if database and database != ":memory:":
            Path(database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, connect_args={"timeout": 20}, json_serializer=_plain_json)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
        create_missing(engine)
        return engine
    try:
        engine = _server(url)
        create_missing(engine)
    except (DBAPIError, ImportError) as error:
        said = error.orig if isinstance(error, DBAPIError) else error
        raise StateUnavailable(
            f"The state in {make_url(url).render_as_string()} cannot be used: {' '.join(str(said).split())}",
            hint="see that the server runs and the database is there, that PGPASSWORD or PGPASSFILE has the password, "
            "that the user may create tables, and that `skewless[production]` is installed.",
        ) from error
    return engine


def open_for_reading(url: str) -> Engine:
    """An engine that waits for nobody and keeps nobody waiting: what is written meanwhile is seen the next time.

    For whoever asks often. The state has been opened before.
    """
    if make_url(url).get_backend_name() == "sqlite":
        return create_engine(url, connect_args={"timeout": 20})
    return _connect(url)


def create_missing(engine: Engine) -> None:
    """Create the tables of `metadata` that are not there yet; safe when several processes do it at once.

    For a stage whose tables may have been added after the state was opened.

    Raises:
        StateOutdated: a table is there and has other columns.
    """
    known = _made.get(engine, set())
    tables = [table for table in metadata.sorted_tables if table.name not in known]
    if not tables:
        return
    with engine.begin() as connection:
        metadata.create_all(connection, tables)
        _check_columns(connection, tables)
    if engine.dialect.name != "sqlite":
        _made.setdefault(engine, set()).update(table.name for table in tables)


def _check_columns(connection: Connection, tables: list[Table]) -> None:
    found = inspect(connection).get_multi_columns(filter_names=[table.name for table in tables])
    there = {name: {column["name"] for column in columns} for (_, name), columns in found.items()}
    for table in tables:
        other = there[table.name] ^ set(table.columns.keys())
        if other:
            where, columns = connection.engine.url.render_as_string(), ", ".join(sorted(other))
            raise StateOutdated(
                f"Table {table.name} in {where} is of another version of skewless: it differs in {columns}.",
                hint="move the file away, or name an empty database; versions stay in the registry, and "
                "`skewless retrain TASK` deploys anew.",
            )


@cache
def _server(url: str) -> Engine:
    engine = _connect(url)
    event.listen(engine, "begin", _take_turns)
    return engine


def _connect(url: str) -> Engine:
    patience = {name: value for name, value in _PATIENCE.items() if name not in make_url(url).query}
    return create_engine(url, connect_args=patience, pool_pre_ping=True, json_serializer=_plain_json)


def _take_turns(connection: Connection) -> None:
    # Whoever stops answering within a transaction is put out of it, or nobody would have their turn again.
    connection.exec_driver_sql(
        f"set local lock_timeout = '20s'; set local idle_in_transaction_session_timeout = {_PAUSE}; "
        f"select pg_advisory_xact_lock({_LOCK})"
    )


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late to make read-then-write atomic
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("begin immediate")


def _plain_json(value: Any) -> str:
    """JSON in which what is no finite number is null: PostgreSQL takes no other."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
