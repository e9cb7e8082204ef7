"""Shared state in SQL: what rollout, monitoring and retraining tell each other. SQLite or PostgreSQL."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path
from typing import Any

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
    text,
)
from sqlalchemy.engine import Dialect, make_url

from contracts.clock import as_utc

_CREATION_LOCK = 0x736B6577  # any number that no other program on the same database is likely to lock

metadata = MetaData()
"""Every stage adds its own tables here before `open_state` creates them."""


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
    """Connect and create missing tables.

    SQLite gets a write-ahead log; its writers wait for each other for up to 20 s.
    """
    if make_url(url).get_backend_name() == "sqlite":
        database = make_url(url).database
        if database and database != ":memory:":
            Path(database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, connect_args={"timeout": 20})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    else:
        engine = create_engine(url, pool_pre_ping=True)
    create_missing(engine)
    return engine


def create_missing(engine: Engine) -> None:
    """Create the tables of `metadata` that are not there yet; safe when several processes do it at once.

    For a stage whose tables may have been added after the state was opened.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # its "create if not exists" is not atomic; SQLite's transaction is
            connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _CREATION_LOCK})
        metadata.create_all(connection)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late to make read-then-write atomic
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("begin immediate")
