"""A replica whose state is on a server that goes away: it serves what it served, says so, and follows again after."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import insert, update
from sqlalchemy.engine import make_url

from contracts.state import deployments, open_for_reading, open_state
from serving.models import _LOOKS_TO_REST, Watcher
from tests.conftest import PostgresServer

DEPLOYED = {
    "task": "churn",
    "generation": 1,
    "champion": 1,
    "champion_bundle": "b",
    "stage": "idle",
    "share": 0.0,
    "since": datetime(2024, 3, 1, tzinfo=UTC),
}


class Loading:
    """Stands in for `Models`: nothing to load."""

    def prepare(self, deployment: Any) -> Any:
        return deployment


@pytest.mark.slow
def test_a_server_that_goes_away_takes_no_version_with_it(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database()
    name, swapped = make_url(url).database, []
    engine = open_state(url)
    with engine.begin() as connection:
        connection.execute(insert(deployments).values(DEPLOYED))
    models: Any = {"churn": Loading()}
    watcher = Watcher(open_for_reading(url), models, lambda _, live: swapped.append(live.generation))
    watcher.look()
    assert (swapped, watcher.errors) == ([1], {})

    postgres_server.execute(f"alter database {name} allow_connections false")
    postgres_server.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")
    watcher.look()
    assert "not currently accepting connections" in watcher.errors["churn"]
    assert swapped == [1]

    postgres_server.execute(f"alter database {name} allow_connections true")
    with engine.begin() as connection:
        connection.execute(update(deployments).values(generation=2))
    for _ in range(_LOOKS_TO_REST + 1):
        watcher.look()
    assert (swapped, watcher.errors) == ([1, 2], {})
    watcher.stop()
    engine.dispose()
