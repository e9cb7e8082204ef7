"""What the replicas counted takes a challenger down within a look, and leaves a sound one where it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from contracts.clock import VirtualClock
from serving.outcomes import Outcomes, counted, read_outcomes
from serving.rollout import Move, Rollouts
from serving.rollout_guard import Guard
from serving.rollout_state import Deployment


@pytest.fixture
def climbing(
    rollouts: Rollouts, engine: Engine, bundle: Callable[[int], Path], promote: Any, support: Any
) -> Deployment:
    """Version 2 answers a tenth of the keys, version 1 the rest."""
    at = promote(1, support.start)
    shadow = rollouts.submit(2, bundle(2), at).deployment
    return rollouts.advance(support.good_evidence(shadow), at + timedelta(hours=3)).deployment


@pytest.mark.parametrize(
    ("counts", "check"),
    [
        ({"champion": (90, 0, 0), "canary": (10, 10, 0)}, "errors"),
        ({"champion": (90, 0, 0), "shadow": (90, 60, 0)}, "errors"),  # seen on mirrored requests, by nobody else
        ({"champion": (400, 0, 4), "canary": (40, 0, 30)}, "latency"),
    ],
)
def test_a_breach_rolls_back_at_the_next_look(
    rollouts: Rollouts, engine: Engine, climbing: Deployment, support: Any, counts: Any, check: str
) -> None:
    assert (climbing.stage, climbing.champion, climbing.challenger) == ("canary", 1, 2)
    support.count(engine, climbing.generation, **counts)
    told: list[Move] = []
    guard = Guard([rollouts], VirtualClock(climbing.since + timedelta(minutes=1)), told.append)
    guard.look()
    guard.look()  # nothing climbs any more
    [move] = told
    assert (move.to_stage, move.version, move.verdict) == ("rolled_back", 2, "fail")
    assert move.reason.startswith(f"{check}: ")
    left = rollouts.current()
    assert left is not None
    assert (left.stage, left.champion, left.challenger, left.share) == ("idle", 1, None, 0.0)
    last = rollouts.history()[-1]
    assert (last.actor, last.verdict) == ("rollout", "fail")
    assert [each["name"] for each in last.evidence["checks"] if each["verdict"] == "fail"] == [check]


@pytest.mark.parametrize(
    "counts",
    [
        {},
        {"champion": (900, 3, 5), "canary": (100, 1, 2)},
        {"champion": (900, 500, 500), "canary": (100, 60, 40)},  # the store is down: for everybody
        {"canary": (1, 1, 0), "champion": (9, 0, 0)},
    ],
)
def test_without_a_breach_of_its_own_nothing_moves(
    rollouts: Rollouts, engine: Engine, climbing: Deployment, support: Any, counts: Any
) -> None:
    support.count(engine, climbing.generation, **counts)
    support.count(engine, climbing.generation - 1, canary=(50, 50, 0))  # of the step before
    Guard([rollouts], VirtualClock(climbing.since), lambda move: pytest.fail(move.reason)).look()
    assert rollouts.current() == climbing


def test_it_looks_by_itself_while_its_block_lasts(
    rollouts: Rollouts, engine: Engine, climbing: Deployment, support: Any
) -> None:
    moved = threading.Event()
    with Guard([rollouts], VirtualClock(climbing.since), lambda move: moved.set(), every=0.01):
        support.count(engine, climbing.generation, champion=(90, 0, 0), canary=(10, 10, 0))
        assert moved.wait(20)


def test_several_guards_make_one_move(rollouts: Rollouts, engine: Engine, climbing: Deployment, support: Any) -> None:
    support.count(engine, climbing.generation, champion=(90, 0, 0), canary=(10, 10, 0))
    told: list[Move] = []
    guards = [Guard([Rollouts(engine, rollouts.task)], VirtualClock(climbing.since), told.append) for _ in range(4)]
    threads = [threading.Thread(target=guard.look) for guard in guards]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(told) == 1
    assert [each.to_stage for each in rollouts.history()].count("rolled_back") == 1


def test_a_paused_version_is_not_judged(rollouts: Rollouts, engine: Engine, climbing: Deployment, support: Any) -> None:
    paused = rollouts.pause("look first", "op", climbing.since).deployment
    support.count(engine, paused.generation, canary=(50, 50, 0))
    assert rollouts.protect(climbing.since) is None


class TestOutcomes:
    def test_replicas_add_up_and_a_count_told_twice_counts_once(self, engine: Engine, rollouts: Rollouts) -> None:
        one, two = Outcomes(engine, every=3600), Outcomes(engine, every=3600)
        for each in (one, two, one):
            each.count("churn", 4, "canary", failed=each is two, slow=each is one)
            each.tell()
        one.count("churn", 4, "champion", failed=False)
        one.close()
        two.close()
        with engine.begin() as connection:
            found = read_outcomes(connection, "churn", 4)
            assert read_outcomes(connection, "churn", 5) == {}
        assert (found["canary"].requests, found["canary"].failed, found["canary"].slow) == (3, 1, 2)
        assert found["champion"].requests == 1

    def test_a_state_that_cannot_be_written_is_told_later(self, engine: Engine, rollouts: Rollouts) -> None:
        outcomes = Outcomes(engine, every=3600)

        def refuse(*_: Any) -> None:
            raise OSError("no such disk")

        outcomes.count("churn", 4, "canary", failed=True)
        event.listen(engine, "begin", refuse)
        outcomes.tell()
        event.remove(engine, "begin", refuse)
        outcomes.count("churn", 4, "canary", failed=True)
        outcomes.close()
        with engine.begin() as connection:
            assert read_outcomes(connection, "churn", 4)["canary"].requests == 2

    def test_no_count_is_no_evidence(self, support: Any, climbing: Deployment) -> None:
        evidence = support.good_evidence(climbing, errors=None)
        assert counted(evidence, {}) is evidence
