"""Shared state keeps instants in UTC, and its transactions do not overlap."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, insert, inspect, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError, StatementError

from contracts import state

INSTANT = datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return state.open_state(f"sqlite:///{tmp_path / 'deep' / 'state.db'}")


def deployment(**changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "task": "churn",
        "generation": 1,
        "champion": 0,
        "champion_bundle": "b",
        "stage": "idle",
        "share": 0.0,
        "since": INSTANT,
    }
    return row | changes


def test_opening_makes_what_is_missing_and_keeps_what_is_there(engine: Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        connection.execute(insert(state.deployments).values(deployment()))
    again = state.open_state(f"sqlite:///{tmp_path / 'deep' / 'state.db'}")
    tables = set(inspect(again).get_table_names())
    assert {"deployments", "alerts", "retrain_requests", "drills"} <= tables
    with again.begin() as connection:
        assert connection.execute(select(state.deployments.c.champion)).scalars().all() == [0]


def test_state_may_live_in_memory() -> None:
    with state.open_state("sqlite://").begin() as connection:
        assert connection.execute(select(state.alerts)).all() == []


def test_instants_come_back_aware_in_utc_to_the_microsecond(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(insert(state.deployments).values(deployment()))
        found = connection.execute(select(state.deployments.c.since)).scalar_one()
        raw = connection.execute(text("select since from deployments")).scalar_one()
    assert (found, found.tzinfo) == (INSTANT, UTC)
    assert raw == "2024-05-01 10:00:00.123456"  # so that text order is time order


def test_an_instant_without_a_zone_is_refused(engine: Engine) -> None:
    naive = INSTANT.replace(tzinfo=None)
    with pytest.raises(StatementError, match="no time zone"), engine.begin() as connection:
        connection.execute(insert(state.deployments).values(deployment(since=naive)))


def test_instants_compare_as_instants(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(insert(state.deployments).values(deployment()))
        at = state.deployments.c.since
        assert connection.execute(select(at).where(at <= INSTANT.astimezone(UTC))).all()
        assert not connection.execute(select(at).where(at < INSTANT)).all()


def test_a_missing_instant_stays_missing_and_postgresql_keeps_the_zone() -> None:
    kind, dialect = state.Instant(), postgresql.dialect()
    assert kind.process_bind_param(None, dialect) is None
    assert kind.process_result_value(None, dialect) is None
    assert kind.process_bind_param(INSTANT, dialect) == INSTANT
    assert kind.process_result_value(INSTANT, dialect).tzinfo is UTC


def test_a_table_added_after_opening_can_be_created(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    late = MetaData()
    Table("late", late, Column("id", Integer, primary_key=True))
    monkeypatch.setattr(state, "metadata", late)
    for _ in range(2):
        state.create_missing(engine)
    assert "late" in inspect(engine).get_table_names()


def test_reading_then_writing_is_one_step_for_everybody(engine: Engine) -> None:
    """Eight threads add one, each after reading: without the lock taken at begin, additions would be lost."""
    with engine.begin() as connection:
        connection.execute(insert(state.deployments).values(deployment()))

    def add() -> None:
        for _ in range(5):
            with engine.begin() as connection:
                now = connection.execute(select(state.deployments.c.generation)).scalar_one()
                connection.execute(update(state.deployments).values(generation=now + 1))

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with engine.begin() as connection:
        assert connection.execute(select(state.deployments.c.generation)).scalar_one() == 41


def test_a_failed_transaction_leaves_nothing(engine: Engine) -> None:
    def write_twice(connection: Connection) -> None:
        for _ in range(2):
            connection.execute(insert(state.deployments).values(deployment()))

    with pytest.raises(IntegrityError), engine.begin() as connection:
        write_twice(connection)
    with engine.begin() as connection:
        assert connection.execute(select(state.deployments)).all() == []


def test_a_committed_move_is_on_disk(engine: Engine) -> None:
    with engine.begin() as connection:
        assert connection.execute(text("pragma journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("pragma synchronous")).scalar_one() == 2  # full
