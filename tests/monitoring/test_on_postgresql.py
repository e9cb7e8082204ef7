"""The production state store: what monitoring writes to SQLite it writes to PostgreSQL, and reads back the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import Engine

from contracts.state import open_state
from monitoring.alerts import acknowledge, list_alerts, resolve
from monitoring.decision import decide, record
from monitoring.monitor import monitor
from monitoring.results import last_run, read_figures
from tests.conftest import PostgresServer
from tests.monitoring.conftest import DAY, START, Cases, World

pytestmark = pytest.mark.slow
LATER = START + 20 * DAY


@pytest.fixture
def postgresql(postgres_server: PostgresServer) -> Iterator[Engine]:
    engine = open_state(postgres_server.new_database())
    yield engine
    engine.dispose()


def test_results_decision_and_alerts_are_the_same_on_both(world: World, postgresql: Engine) -> None:
    cases = Cases.make(START, 2, 300, seed=2, slope=-1)
    rows = cases.rows()
    rows[0] = replace(rows[0], texts=["gone"])
    world.log(cases, rows=rows)
    found = {}
    for engine in (world.engine, postgresql):
        for _ in range(2):
            report = monitor(
                world.task,
                world.locations,
                engine,
                as_of=LATER,
                bundle=world.bundle,
                version=1,
                store=world.store,  # type: ignore[arg-type]
            )
        decision = decide(world.task, report, last_training=START, now=LATER)
        recorded = [record(engine, decision, LATER) for _ in range(2)]
        assert (len(recorded[0].alerts), recorded[1].alerts) == (1, ())
        assert (recorded[0].request is not None, recorded[1].request) == (True, None)
        (alert,) = list_alerts(engine)
        acknowledge(engine, alert["id"], note="known", now=LATER)
        resolve(engine, alert["id"], now=LATER)
        assert record(engine, decision, LATER).alerts == ()
        found[engine.name] = [
            read_figures(engine, "churn"),
            last_run(engine, "churn"),
            list_alerts(engine, open_only=False),
        ]
    assert found["postgresql"] == found["sqlite"]
