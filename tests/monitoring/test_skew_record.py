"""An audit is on record with the share it looked at; a mismatch opens one alert, and only one."""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta

import pytest
from sqlalchemy import Engine

from monitoring.alerts import list_alerts
from monitoring.skew_record import read_audits, record_audit
from monitoring.skew_report import FeatureSkew, SkewReport
from tests.conftest import PostgresServer
from tests.monitoring.conftest import START, World

NOW = START + timedelta(days=3)


def report(different: int) -> SkewReport:
    skew = FeatureSkew("visits", checked=90, different=different, largest=float("inf") if different else 0.0)
    skew.causes.update({"unexplained": different} if different else {})
    skew.not_judged.update({"settling": 2})
    return SkewReport(100, (skew,), (), Counter({"degraded": 4}), 0.25, START, START + timedelta(days=1))


def check(engine: Engine) -> None:
    assert record_audit(engine, "churn", report(0), now=NOW) is None
    assert list_alerts(engine) == []
    number = record_audit(engine, "churn", report(3), now=NOW, since=START, until=NOW)
    assert record_audit(engine, "churn", report(5), now=NOW + timedelta(hours=1)) is None  # one is open
    (alert,) = list_alerts(engine)
    assert (alert["id"], alert["kind"], alert["opened_at"]) == (number, "skew", NOW)
    assert (alert["evidence"]["share"], alert["evidence"]["mismatches"]) == (0.25, 3)
    clean, bad, worse = read_audits(engine, "churn")
    assert (clean["mismatches"], clean["since"], clean["until"]) == (0, None, None)
    assert (bad["share"], bad["rows"], bad["checked"], bad["mismatches"]) == (0.25, 100, 90, 3)
    assert (bad["since"], bad["until"], bad["at"]) == (START, NOW, NOW)
    assert worse["report"] == json.loads(json.dumps(report(5).to_dict(), allow_nan=False))
    assert read_audits(engine, "another") == []


def test_on_sqlite(world: World) -> None:
    check(world.engine)


@pytest.mark.slow
def test_on_postgresql(postgres_server: PostgresServer) -> None:
    from contracts.state import open_state

    engine = open_state(postgres_server.new_database())
    check(engine)
    engine.dispose()
