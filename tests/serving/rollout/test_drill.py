"""The rollback drill against a serving double that follows the state, well or badly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from contracts.state import drills
from serving.drill import DrillImpossible, rollback_drill
from serving.rollout import Rollouts

Bundle = Callable[[int], Path]


class Server:
    """Answers from the state it last looked at; `stuck` never looks again."""

    def __init__(self, rollouts: Rollouts, *, stuck: bool = False, silent: bool = False) -> None:
        self.rollouts, self.stuck, self.silent = rollouts, stuck, silent
        self.seen = rollouts.current()
        self.waited_for: list[int] = []

    def ready(self, generation: int) -> None:
        self.waited_for.append(generation)
        if not self.stuck:
            self.seen = self.rollouts.current()
            assert self.seen is not None
            assert self.seen.generation == generation

    def predict(self) -> list[dict[str, Any]]:
        seen = self.seen
        assert seen is not None
        if self.silent:
            return []
        canary = {"variant": "canary", "version": seen.challenger}
        champion = {"variant": "champion", "version": seen.champion}
        return [champion, canary if seen.share else champion]


def on_record(engine: Engine) -> list[Any]:
    with engine.begin() as connection:
        return list(connection.execute(select(drills).order_by(drills.c.id)))


def test_a_drill_in_shadow_passes_and_lets_the_version_in_again(
    rollouts: Rollouts, engine: Engine, bundle: Bundle, support: Any
) -> None:
    rollouts.submit(1, bundle(1), support.start)
    server = Server(rollouts)
    assert rollback_drill(rollouts, server.ready, server.predict, support.start)
    assert server.waited_for == [2, 3]
    current = rollouts.current()
    assert current is not None
    assert (current.challenger, current.challenger_bundle, current.stage) == (1, str(bundle(1)), "shadow")
    [row] = on_record(engine)
    assert (row.task, row.kind, row.passed, row.at) == ("churn", "rollback", True, support.start)
    assert row.evidence["generations"] == [1, 2, 3]
    assert (row.evidence["answers_checked"], row.evidence["failures"]) == (2, [])
    assert row.evidence["rolled_back_s"] >= 0
    assert row.evidence["restored_s"] >= 0
    assert [event.actor for event in rollouts.history()] == ["system", "drill", "drill"]


def test_a_drill_in_canary_costs_the_climbed_steps(
    rollouts: Rollouts, engine: Engine, bundle: Bundle, support: Any
) -> None:
    shadow = rollouts.submit(1, bundle(1), support.start).deployment
    canary = rollouts.advance(support.good_evidence(shadow), support.start.replace(hour=3)).deployment
    server = Server(rollouts)
    assert rollback_drill(rollouts, server.ready, server.predict, support.start.replace(hour=4))
    current = rollouts.current()
    assert current is not None
    assert (current.stage, current.share, current.since) == ("shadow", 0.0, support.start.replace(hour=4))
    assert on_record(engine)[0].evidence["share"] == canary.share


@pytest.mark.parametrize(
    ("fault", "told"),
    [({"stuck": True}, "did not come from champion 0"), ({"silent": True}, "no prediction was answered")],
)
def test_a_server_that_does_not_roll_back_fails_the_drill(
    rollouts: Rollouts, engine: Engine, bundle: Bundle, support: Any, fault: dict[str, bool], told: str
) -> None:
    shadow = rollouts.submit(1, bundle(1), support.start).deployment
    rollouts.advance(support.good_evidence(shadow), support.start.replace(hour=3))
    server = Server(rollouts, **fault)
    assert not rollback_drill(rollouts, server.ready, server.predict, support.start.replace(hour=4))
    [row] = on_record(engine)
    assert not row.passed
    assert told in row.evidence["failures"][0]
    current = rollouts.current()
    assert current is not None
    assert current.challenger is None  # it stays where it is safe


def test_a_server_that_never_gets_ready_fails_the_drill(
    rollouts: Rollouts, engine: Engine, bundle: Bundle, support: Any
) -> None:
    rollouts.submit(1, bundle(1), support.start)

    def never(generation: int) -> None:
        raise TimeoutError(f"generation {generation} was not served within 30 s")

    assert not rollback_drill(rollouts, never, Server(rollouts).predict, support.start)
    assert on_record(engine)[0].evidence["failures"] == ["TimeoutError: generation 2 was not served within 30 s"]


def test_a_drill_disturbed_by_another_administrator_does_not_pass(
    rollouts: Rollouts, engine: Engine, bundle: Bundle, support: Any, promote: Any
) -> None:
    at = promote(1, support.start)
    rollouts.submit(2, bundle(2), at)
    server = Server(rollouts)

    def predict() -> list[dict[str, Any]]:
        answers = server.predict()
        rollouts.rollback("meanwhile", "ben", at)
        return answers

    assert not rollback_drill(rollouts, server.ready, predict, at)
    assert "somebody moved generation" in on_record(engine)[-1].evidence["failures"][0]


def test_there_is_no_drill_without_a_challenger_under_way(rollouts: Rollouts, bundle: Bundle, support: Any) -> None:
    def unused() -> Any:
        raise AssertionError("the drill has begun")

    with pytest.raises(DrillImpossible, match="without any deployment"):
        rollback_drill(rollouts, unused, unused, support.start)
    rollouts.submit(1, bundle(1), support.start)
    rollouts.pause("x", "ada", support.start)
    with pytest.raises(DrillImpossible, match="is paused"):
        rollback_drill(rollouts, unused, unused, support.start)
