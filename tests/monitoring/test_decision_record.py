"""What was decided can be read again, newest first."""

from __future__ import annotations

from datetime import timedelta

from monitoring.decision import decide
from monitoring.decision_record import keep_decision, read_decisions
from tests.monitoring.conftest import START
from tests.monitoring.test_decision import chunk, report

HOUR = timedelta(hours=1)


def test_decisions_are_read_newest_first_and_only_of_their_task(world):
    for hours in range(3):
        found = decide(world.task, report(), last_training=START, now=START + hours * HOUR)
        keep_decision(world.engine, found, START + hours * HOUR)
    read = read_decisions(world.engine, "churn", most=2)
    assert [each["at"] for each in read] == [START + 2 * HOUR, START + HOUR]
    assert read[0]["rule"] == "nothing"
    assert read[0]["reasons"][0] == "no skew, no decay, no drift, no schedule due"
    assert read_decisions(world.engine, "another", most=2) == []


def test_a_decision_taken_again_takes_the_place_of_the_first(world):
    for found in (report(), report(chunk(0, realized=0.5), chunk(1, realized=0.5))):
        decided = decide(world.task, found, last_training=START - 30 * timedelta(days=1), now=START)
        keep_decision(world.engine, decided, START)
    [kept] = read_decisions(world.engine, "churn", most=5)
    assert (kept["action"], kept["rule"]) == ("retrain", "decay")
