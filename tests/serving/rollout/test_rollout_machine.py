"""Any sequence of evidence, administrators and submissions, against what must hold in all of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import insert

from contracts.state import alerts, open_state
from serving.evidence import ErrorCount, SkewCount
from serving.rollout import Rollouts
from serving.rollout_moves import NothingToRollBack
from serving.rollout_state import Deployment

STEPS = (0.1, 0.5)


def machine(support: Any, bundle: Path) -> type[RuleBasedStateMachine]:
    class Releases(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            self.engine = open_state("sqlite://")
            self.rollouts = Rollouts(self.engine, support.make_task(canary_steps=STEPS))
            self.now: datetime = support.start
            self.generations = [0]
            self.drilled = False
            self.blocked = False
            self.fit: set[int] = {0}  # versions that have climbed every step, or are the baseline
            self.climb: list[tuple[str, float]] = []  # the stages the present challenger has passed, by our own account

        def teardown(self) -> None:
            if hasattr(self, "engine"):
                self.engine.dispose()

        def current(self) -> Deployment | None:
            return self.rollouts.current()

        def climbing(self) -> bool:
            current = self.current()
            return current is not None and current.challenger is not None

        @rule(version=st.integers(1, 4), later=st.floats(0, 5))
        def submit(self, version: int, later: float) -> None:
            self.now += timedelta(hours=later)
            before = self.current()
            try:
                after = self.rollouts.submit(version, bundle, self.now).deployment
            except ValueError:
                assert before is not None
                assert before.challenger is not None or before.champion == version
                return
            self.moved(after)
            self.climb = []
            assert (after.challenger, after.stage, after.share) == (version, "shadow", 0.0)

        @precondition(climbing)
        @rule(
            hours=st.sampled_from([0.5, 3, 60]),
            fault=st.sampled_from([None, None, None, None, "errors", "skew", "blind"]),
        )
        def advance(self, hours: float, fault: str | None) -> None:
            before = self.current()
            assert before is not None
            faults = {
                "errors": {"errors": ErrorCount(100, 90)},
                "skew": {"skew": SkewCount(10, 1)},
                "blind": {"skew": None},
            }
            self.now += timedelta(hours=hours)
            age = (self.now - before.since).total_seconds() / 3600
            evidence = support.good_evidence(before, hours=age, **faults.get(fault or "", {}))
            move = self.rollouts.advance(evidence, self.now)
            after = move.deployment
            if not move.moved:
                assert after == before
                return
            self.moved(after)
            assert before.stage != "paused"
            if move.to_stage == "rolled_back":
                assert fault in ("errors", "skew")
                assert (after.champion, after.challenger) == (before.champion, None)
                return
            if move.to_stage == "paused":
                assert self.now - before.since >= timedelta(days=2)
                self.paused_at = (before.stage, before.share)
                return
            assert fault is None
            assert not self.blocked
            self.climb.append((before.stage, before.share))
            if move.to_stage == "champion":
                assert self.climb == [("shadow", 0.0), *(("canary", step) for step in STEPS)]
                assert self.drilled
                assert after.champion == before.challenger
                self.fit.add(after.champion)

        @precondition(climbing)
        @rule()
        def pause_or_approve(self) -> None:
            before = self.current()
            assert before is not None
            if before.stage == "paused":
                after = self.rollouts.approve("fine", "ada", self.now).deployment
                assert (after.stage, after.share) == self.paused_at
            else:
                self.paused_at = (before.stage, before.share)
                after = self.rollouts.pause("wait", "ada", self.now).deployment
                assert after.stage == "paused"
            self.moved(after)

        @precondition(lambda self: self.current() is not None)
        @rule()
        def rollback(self) -> None:
            before = self.current()
            assert before is not None
            try:
                after = self.rollouts.rollback("bad", "ada", self.now).deployment
            except NothingToRollBack:
                assert before.challenger is None
                return
            self.moved(after)
            dropped = before.champion if before.challenger is None else before.challenger
            assert dropped not in (after.champion, after.challenger)

        @rule()
        def drill(self) -> None:
            support.drill_on_record(self.engine)
            self.drilled = True

        @rule()
        def alert_or_acknowledge(self) -> None:
            row = {"task": "churn", "kind": "drift", "opened_at": self.now, "evidence": {}, "message": "m"}
            with self.engine.begin() as connection:
                if self.blocked:
                    connection.execute(alerts.update().values(acknowledged_at=self.now))
                else:
                    connection.execute(insert(alerts).values(row))
            self.blocked = not self.blocked

        def moved(self, after: Deployment) -> None:
            self.generations.append(after.generation)

        @invariant()
        def the_champion_has_climbed_every_step(self) -> None:
            if hasattr(self, "rollouts") and (current := self.current()) is not None:
                assert current.champion in self.fit
                assert current.champion_bundle
                assert (current.challenger is None) == (current.stage == "idle")
                assert (current.share > 0) == (current.stage == "canary")

        @invariant()
        def the_history_reproduces_the_state(self) -> None:
            if hasattr(self, "rollouts"):
                history = self.rollouts.history()
                assert [event.generation for event in history] == list(range(1, len(self.generations)))
                assert self.generations == sorted(set(self.generations))
                assert (history[-1].deployment if history else None) == self.current()

    return Releases


@pytest.mark.slow
def test_whatever_happens_a_version_reigns_only_after_its_whole_climb(
    support: Any, bundle: Callable[[int], Path]
) -> None:
    run_state_machine_as_test(
        machine(support, bundle(1)),
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
