"""What happens to a release at the end of every hour of a run: the drill once, then one judged move at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from contracts.locations import Locations
from contracts.spine import SpineReader, read_spine
from loop.loadtest import hold
from loop.releases import advance, baked
from loop.traffic import Caller
from serving.drill import rollback_drill
from serving.load_tests import latest_load_test
from serving.rollout import Rollouts
from serving.rollout_checks import load_test
from serving.rollout_state import Deployment

if TYPE_CHECKING:
    from feast import FeatureStore

AGAIN = timedelta(hours=6)
"""A stage that was inconclusive is judged again after this long; judging reads the log and recomputes its vectors."""
DRILL_ROWS = 5
"""Requests of an hour that a drill is held with."""
DRILL_PATIENCE = 24
"""Hours with requests after which the drill is held with however few of them an hour has."""
_MOST_LOAD_TESTS = 10
"""Hours in which a version is tested again whose p99 was beyond the budget."""


class Climb:
    """Takes one task's releases up the ladder as evidence allows, seen from the caller's side."""

    def __init__(
        self,
        rollouts: Rollouts,
        locations: Locations,
        store: FeatureStore,
        caller: Caller,
        say: Callable[[str], None],
        read: SpineReader = read_spine,
    ) -> None:
        self._rollouts, self._locations, self._store, self._caller, self._say = rollouts, locations, store, caller, say
        self._read = read
        self._judged: datetime | None = None
        self._hours = 0
        self._load_tests: Counter[int] = Counter()
        self.drill_passed: bool | None = None

    def after_hour(self, now: datetime, asked: list[dict[str, Any]]) -> None:
        """Hold the rollback drill as soon as there is traffic to watch it by; then judge a stage that has baked.

        Args:
            now: the end of the hour.
            asked: the hour's requests.
        """
        deployment = self._rollouts.current()
        if deployment is None or deployment.challenger is None or deployment.stage == "paused":
            return
        self._hours += bool(asked)
        if self.drill_passed is None and asked and (len(asked) >= DRILL_ROWS or self._hours >= DRILL_PATIENCE):
            self._drill(now, asked[-DRILL_ROWS:])
            return
        if deployment.stage == "canary" and asked and self._wants_load_test(deployment):
            self._load_tests[deployment.challenger] += 1
            self._load_test(deployment, now, asked)
        judged = self._judged is not None and self._judged > deployment.since and now - self._judged < AGAIN
        if judged or not baked(self._rollouts.task, deployment, now):
            return
        self._judged = now
        move = advance(self._rollouts, self._locations, now=now, store=self._store, read=self._read)
        self._say(f"{now:%F %H:%M} version {move.version}: {move.from_stage} -> {move.to_stage}, {move.reason}")
        if move.moved:
            self._caller.wait_for(move.deployment.generation)

    def _wants_load_test(self, deployment: Deployment) -> bool:
        """Whether no load test of this version has kept the budget yet; a busy machine is given some more chances."""
        task = self._rollouts.task
        if self._load_tests[deployment.challenger or 0] >= _MOST_LOAD_TESTS:
            return False
        with self._rollouts.engine.begin() as connection:
            found = latest_load_test(connection, task.name, deployment.challenger or 0)
        return load_test(task, found).verdict != "pass"

    def _load_test(self, deployment: Deployment, now: datetime, asked: list[dict[str, Any]]) -> None:
        """The hour's questions, without their cases, over and over."""
        task = self._rollouts.task
        rows = [{name: value for name, value in row.items() if name != task.spine.id} for row in asked]
        url = self._caller.url
        loaded = hold(self._rollouts.engine, task, self._locations, deployment, url, rows, at=now)
        p99, low, high = loaded.test.quantiles["p99"]
        self._say(
            f"{now:%F %H:%M} load test: p99 {p99:.1f} ms ({low:.1f} to {high:.1f}) at {loaded.test.rate:g}/s, "
            f"{loaded.test.failed} of {loaded.test.requests} failed"
        )

    def aliases(self) -> dict[str, int]:
        """The registry's aliases, which follow the rollout state."""
        from contracts.registry import open_registry

        self._rollouts.reconcile()
        return open_registry(self._locations).aliases(self._rollouts.task.name)

    def _drill(self, now: datetime, rows: list[dict[str, Any]]) -> None:
        """The drill's requests carry no case id: they are rehearsal, and no outcome is to be joined to them."""
        case = self._rollouts.task.spine.id
        rehearsal = [{name: value for name, value in row.items() if name != case} for row in rows]
        self.drill_passed = rollback_drill(
            self._rollouts, self._caller.wait_for, lambda: self._caller.ask(rehearsal), now
        )
        self._say(f"{now:%F %H:%M} rollback drill: {'passed' if self.drill_passed else 'failed'}")
