"""The production state store: what monitoring writes to SQLite it writes to PostgreSQL, and reads back the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import Engine, insert

from contracts.state import deployments, drills, open_state
from monitoring.alerts import acknowledge, list_alerts, resolve
from monitoring.console_state import Elsewhere, read_task
from monitoring.decision import decide, record
from monitoring.decision_record import keep_decision
from monitoring.monitor import monitor
from monitoring.results import last_run, read_figures
from tests.conftest import PostgresServer
from tests.monitoring.conftest import DAY, START, Cases, World

pytestmark = pytest.mark.slow
LATER = START + 20 * DAY
NOWHERE = Elsewhere(lambda _: [], lambda _: [], lambda *_: None)
SERVED = {
    "task": "churn",
    "generation": 3,
    "champion": 1,
    "champion_bundle": "b",
    "stage": "idle",
    "share": 0.0,
    "since": START,
}
DRILLED = {"task": "churn", "kind": "rollback", "passed": True, "at": START, "evidence": {"seconds": math.nan}}


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
        for _ in range(2):
            keep_decision(engine, decision, LATER)
        with engine.begin() as connection:
            connection.execute(insert(deployments).values(SERVED))
            connection.execute(insert(drills).values(DRILLED))
        shown = read_task(engine, world.task, NOWHERE)
        assert shown.failed == ""
        resolve(engine, alert["id"], now=LATER)
        assert record(engine, decision, LATER).alerts == ()
        found[engine.name] = [
            shown,
            read_figures(engine, "churn"),
            last_run(engine, "churn"),
            list_alerts(engine, open_only=False),
        ]
    assert found["postgresql"] == found["sqlite"]
    served, drift, decided = found["sqlite"][0].served, found["sqlite"][0].drift, found["sqlite"][0].decision
    assert served is not None
    assert decided is not None
    assert (served.champion, len(drift) > 0, decided["at"]) == (1, True, LATER)
