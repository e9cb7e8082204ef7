"""`skewless skew` on a real log: its exit status, its words, its JSON, and what it leaves for a rollout to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from contracts.state import open_state
from loop.cli import main
from monitoring.skew_record import read_audits
from serving.rollout_state import open_alerts
from tests.monitoring.test_skew_through_feast import NUMBERS, City

pytestmark = pytest.mark.slow


@pytest.fixture
def city(tmp_path: Path) -> City:
    return City(tmp_path)


def skew(city: City, *arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(
        main, ["-C", str(city.root), "skew", "full_dock", *arguments], catch_exceptions=False
    )


def open_now(city: City) -> list[int]:
    with open_state(city.locations.state_url).connect() as connection:
        return open_alerts(connection, "full_dock")


def test_the_exit_status_is_the_answer_and_the_record_says_what_was_audited(city: City) -> None:
    nothing = skew(city)
    assert nothing.exit_code == 2
    assert "no logged value to compare" in nothing.output
    engine = open_state(city.locations.state_url)
    assert read_audits(engine, "full_dock") == []

    city.live(3)
    clean = skew(city)
    assert clean.exit_code == 0
    assert "216" in clean.output
    assert open_now(city) == []

    def change(place: int, numbers: np.ndarray) -> np.ndarray | None:
        numbers[NUMBERS.index("docks")] += 1
        return numbers if place in (3, 30) else None

    city.tamper(change)
    told = skew(city)
    assert told.exit_code == 1
    for word in ("docks", "mismatches", "unexplained", "station=", "rows of the log: 36 of 36"):
        assert word in " ".join(told.output.split()), told.output
    assert len(open_now(city)) == 1, "an open alert blocks promotion"

    report = _json(skew(city, "--json"), status=1)
    (docks,) = (feature for feature in report["features"] if feature["mismatches"])
    assert (docks["name"], docks["different"], docks["largest"]) == ("docks", 2, 1.0)
    assert len(open_now(city)) == 1, "one alert, however often it is found"

    first = docks["examples"][0]["event_timestamp"]
    before = _json(skew(city, "--until", first, "--json"), status=0)
    assert before["mismatches"] == 0
    after = _json(skew(city, "--since", first, "--json"), status=1)
    assert (after["mismatches"], before["rows"] + after["rows"]) == (2, 36)

    shares = [_json(skew(city, "--share", share, "--json"), status=None) for share in ("0.5", "0.5")]
    assert shares[0] == shares[1]
    assert shares[0]["share"] == 0.5
    assert 0 < shares[0]["rows"] < 36
    assert shares[0]["rows"] % 6 == 0, "every row of a key, or none"
    audits = read_audits(engine, "full_dock")
    assert [audit["share"] for audit in audits] == [1.0] * 5 + [0.5] * 2
    assert [audit["mismatches"] for audit in audits[:5]] == [0, 2, 2, 0, 2]
    assert audits[4]["since"].isoformat() == first
    engine.dispose()


def _json(result: Result, *, status: int | None) -> dict[str, Any]:
    assert status is None or result.exit_code == status, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found
