"""Shared state keeps instants in UTC, and its transactions do not overlap: on SQLite and on PostgreSQL."""

from __future__ import annotations

import math
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, insert, inspect, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError

from contracts import state
from tests.conftest import PostgresServer

INSTANT = datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))


@pytest.fixture
def engine(state_engine: Engine) -> Engine:
    return state_engine


@pytest.fixture
def url(state_url: str) -> str:
    return state_url


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


def test_opening_makes_what_is_missing_and_keeps_what_is_there(engine: Engine, url: str) -> None:
    with engine.begin() as connection:
        connection.execute(insert(state.deployments).values(deployment()))
    again = state.open_state(url)
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
        if engine.name == "sqlite":
            raw = connection.execute(text("select since from deployments")).scalar_one()
            assert raw == "2024-05-01 10:00:00.123456"  # so that text order is time order
    assert (found, found.tzinfo) == (INSTANT, UTC)


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


def test_a_committed_move_is_on_disk(tmp_path: Path) -> None:
    with state.open_state(f"sqlite:///{tmp_path / 'state.db'}").begin() as connection:
        assert connection.execute(text("pragma journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("pragma synchronous")).scalar_one() == 2  # full


def test_what_is_no_finite_number_is_kept_as_null(engine: Engine) -> None:
    evidence = {"skew": [1.5, math.nan, (math.inf,)], "none": None, "text": "a\u0000b\u00e9"}
    row = {"task": "churn", "kind": "drift", "opened_at": INSTANT, "message": "m", "evidence": evidence}
    with engine.begin() as connection:
        connection.execute(insert(state.alerts).values(row))
        found = connection.execute(select(state.alerts.c.evidence)).scalar_one()
    assert found == evidence | {"skew": [1.5, None, [None]]}


def test_a_reader_waits_for_nobody(engine: Engine, url: str) -> None:
    reading = state.open_for_reading(url)
    with engine.begin() as writing:
        writing.execute(insert(state.deployments).values(deployment()))
        for _ in range(3):
            with reading.connect() as connection:
                assert connection.execute(select(state.deployments)).all() == []
    with reading.connect() as connection:
        assert connection.execute(select(state.deployments.c.task)).scalar_one() == "churn"
    reading.dispose()


def test_tables_of_another_version_are_told_before_anything_else_fails(engine: Engine, url: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("alter table alerts drop column note"))
        connection.execute(text("alter table alerts add column noted varchar not null default ''"))
    state._made.clear()  # another process
    with pytest.raises(state.StateOutdated, match=r"Table alerts in .* differs in note, noted\.") as caught:
        state.open_state(url)
    assert "skewless retrain" in caught.value.hint


class TestServer:
    def test_a_server_has_one_engine_a_process(self, postgres_server: PostgresServer) -> None:
        url = postgres_server.new_database()
        engine = state.open_state(url)
        assert state.open_state(url) is engine
        engine.dispose()

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("postgresql://us:s3cret@127.0.0.1:1/state", "Connection refused"),
            ("postgresql://us:s3cret@nowhere.invalid/state", "resolve host"),
        ],
    )
    def test_a_server_that_is_not_there_is_one_error_without_the_password(self, url: str, said: str) -> None:
        with pytest.raises(state.StateUnavailable, match=said) as caught:
            state.open_state(url)
        assert "s3cret" not in str(caught.value)
        assert "PGPASSWORD" in caught.value.hint

    @pytest.mark.slow
    def test_who_may_not_come_in_or_create_tables_is_told(self, postgres_server: PostgresServer) -> None:
        url = make_url(postgres_server.new_database())
        name = f"guest_{url.database}"
        with pytest.raises(state.StateUnavailable, match="does not exist"):
            state.open_state(url.set(database="nothing").render_as_string(hide_password=False))
        with pytest.raises(state.StateUnavailable, match=f'role "{name}" does not exist'):
            state.open_state(url.set(username=name).render_as_string(hide_password=False))
        postgres_server.execute(f"create role {name} login")
        with pytest.raises(state.StateUnavailable, match="permission denied for schema public"):
            state.open_state(url.set(username=name).render_as_string(hide_password=False))

    @pytest.mark.slow
    def test_connections_that_the_server_ended_are_made_again(self, postgres_server: PostgresServer) -> None:
        url = postgres_server.new_database()
        engine, reading = state.open_state(url), state.open_for_reading(url)
        for each in (engine, reading):
            with each.connect() as connection:
                assert connection.execute(select(state.deployments)).all() == []
        postgres_server.execute(
            f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{make_url(url).database}'"
        )
        for each in (engine, reading):
            with each.connect() as connection:
                assert connection.execute(select(state.deployments)).all() == []
            each.dispose()

    @pytest.mark.slow
    def test_who_stops_within_a_transaction_does_not_keep_everybody_waiting(
        self, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(state, "_PAUSE", "'200ms'")
        engine = state.open_state(postgres_server.new_database())
        stopped = engine.connect()
        stopped.execute(select(state.deployments))
        began = time.monotonic()
        with engine.begin() as connection:
            connection.execute(insert(state.deployments).values(deployment()))
        assert 0.1 < time.monotonic() - began < 10
        with pytest.raises(DBAPIError, match="idle-in-transaction"):
            stopped.execute(select(state.deployments))
        stopped.close()
        engine.dispose()
