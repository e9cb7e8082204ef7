"""The rollout controller: registered, shadow, each canary step, champion; or rolled back; or paused for a person.

There is one way up and no argument that shortens it: `submit` enters shadow, `advance` climbs one step when every check
of the step passes. Each move is one transaction with its evidence and a compare-and-swap on the deployment's
generation. The registry's aliases follow the state after the commit; they never decide.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from contracts import state
from contracts.duration import show_duration
from contracts.errors import SkewlessError
from contracts.task import Task
from serving import rollout_checks as checks
from serving import rollout_moves as moves
from serving.evidence import Evidence, nothing_yet
from serving.load_tests import latest_load_test
from serving.outcomes import counted, read_outcomes
from serving.rollout_checks import Check
from serving.rollout_state import (
    Deployment,
    RolloutEvent,
    Verdict,
    latest_drill,
    open_alerts,
    read_deployment,
    read_history,
    stale,
    write_move,
)

Follow = Callable[[str, int | None], None]
"""Points a registry alias (champion, challenger) at a version, or removes it for None."""

_log = logging.getLogger(__name__)


class NoChallenger(SkewlessError, LookupError):
    """A move that needs a climbing version, and there is none."""


class ChallengerClimbing(SkewlessError, ValueError):
    """A second version was submitted while one is still climbing."""


class WrongStage(SkewlessError, ValueError):
    """An approval of what is not paused, or a pause of what is."""


@dataclass(frozen=True, slots=True)
class Move:
    """What was decided, and the deployment that serves now."""

    deployment: Deployment
    moved: bool
    """False: the challenger waits where it is and nothing was written."""
    from_stage: str
    to_stage: str
    """shadow | canary | champion | paused | rolled_back; the same as `from_stage` for a wait."""
    version: int
    verdict: Verdict | None
    reason: str
    checks: tuple[Check, ...] = ()
    follow_error: str = ""
    """Why the registry's aliases are behind; `reconcile` catches up."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "moved": self.moved,
            "from_stage": self.from_stage,
            "to_stage": self.to_stage,
            "version": self.version,
            "generation": self.deployment.generation,
            "champion": self.deployment.champion,
            "challenger": self.deployment.challenger,
            "share": self.deployment.share,
            "verdict": self.verdict,
            "reason": self.reason,
            "checks": [check.to_dict() for check in self.checks],
            "follow_error": self.follow_error,
        }


class Rollouts:
    """The releases of one task.

    Args:
        engine: the shared state, from `contracts.state.open_state`.
        task: whose policy (`task.rollout`) decides.
        follow: called after each commit to move the registry's aliases; its failure is logged and repaired later.
    """

    def __init__(self, engine: Engine, task: Task, follow: Follow | None = None) -> None:
        self.engine = engine
        self._follow = follow
        self.task = task
        state.create_missing(engine)  # the history's table is unknown to a state opened before this module was imported

    def current(self) -> Deployment | None:
        """What serves now, or None before the task's first version."""
        with self.engine.begin() as connection:
            return read_deployment(connection, self.task.name)

    def history(self) -> list[RolloutEvent]:
        """Every move with its evidence, oldest first."""
        with self.engine.begin() as connection:
            return read_history(connection, self.task.name)

    def submit(self, version: int, bundle: Path, now: datetime, *, actor: str = "system") -> Move:
        """Let a registered version enter shadow.

        A task's very first version gets the naive baseline for its champion: version 0, answering this bundle's
        fallback.

        Raises:
            NotDeployable: a gate did not pass, the bundle is another task's, or the version is the champion already.
            ChallengerClimbing: another version is climbing; roll it back first.
            BundleError: the bundle is missing or altered.
        """
        moves.check_deployable(self.task.name, version, bundle)
        with self.engine.begin() as connection:
            before = read_deployment(connection, self.task.name)
            if before is not None and before.challenger is not None:
                raise ChallengerClimbing(
                    f"Task {self.task.name!r}: version {before.challenger} is in {before.stage} since {before.since};"
                    f" version {version} cannot enter.",
                    hint=f"wait for it, or drop it: `skewless rollout rollback {self.task.name} --why ...`.",
                )
            if before is not None and before.champion == version:
                raise moves.NotDeployable(f"Task {self.task.name!r}: version {version} is the champion already.")
            event = moves.entered(self.task.name, before, version, str(bundle), at=now, actor=actor)
            write_move(connection, before, event)
        return self._done(event)

    def advance(self, evidence: Evidence, now: datetime) -> Move:
        """Judge the challenger's stage: climb one step, wait, pause after the deadline, or roll back at once.

        Raises:
            StaleMove: the evidence belongs to another generation of the deployment.
            NoChallenger: nothing is climbing.
            ValueError: the evidence belongs to another task.
        """
        if evidence.task != self.task.name:
            raise ValueError(f"Evidence of task {evidence.task!r} cannot move task {self.task.name!r}.")
        with self.engine.begin() as connection:
            before = self._climbing(connection, evidence.generation)
            if before.stage == "paused":
                return _waiting(before, None, f"paused since {before.since}: a person must approve or roll back")
            found = self._checks(connection, before, evidence)
            verdict = checks.overall(found)
            reason = "; ".join(f"{check.name}: {check.reason}" for check in found if check.verdict == verdict)
            kept = {"checks": [check.to_dict() for check in found], "gathered": evidence.to_dict()}
            if verdict == "pass":
                event = moves.climbed(before, self._next_share(before), at=now, evidence=kept)
            elif verdict == "fail":
                event = moves.dropped(before, at=now, verdict=verdict, reason=reason, evidence=kept)
            elif now - before.since >= self.task.rollout.deadline:
                whole = timedelta(seconds=int((now - before.since).total_seconds()))
                reason = f"inconclusive for {show_duration(whole)}: {reason}"
                event = moves.paused(before, at=now, verdict=verdict, reason=reason, evidence=kept)
            else:
                return _waiting(before, verdict, reason, found)
            write_move(connection, before, event)
        return self._done(event, found)

    def protect(self, now: datetime) -> Move | None:
        """Roll the challenger back at once if what the replicas counted convicts it; None, and nothing written, if not.

        Asks only what can be answered within seconds: are its requests failing, is it too slow? Both are the same
        tests, on the same counts, as `advance` makes; looking as often as one likes costs no good version its place.
        """
        with self.engine.begin() as connection:
            before = read_deployment(connection, self.task.name)
            if before is None or before.challenger is None or before.stage == "paused":
                return None
            counts = read_outcomes(connection, self.task.name, before.generation)
            evidence = counted(nothing_yet(self.task, before, now), counts)
            found = (checks.errors(self.task.rollout, evidence), checks.latency(self.task.budget.p99_ms, evidence))
            if checks.overall(found) != "fail":
                return None
            reason = "; ".join(f"{check.name}: {check.reason}" for check in found if check.verdict == "fail")
            kept = {"checks": [check.to_dict() for check in found], "gathered": evidence.to_dict()}
            event = moves.dropped(before, at=now, verdict="fail", reason=reason, evidence=kept)
            write_move(connection, before, event)
        return self._done(event, found)

    def rollback(self, reason: str, actor: str, now: datetime, *, expected: int | None = None) -> Move:
        """Drop the challenger; or, where nothing climbs, give the traffic back to the champion before this one.

        Args:
            reason: why, for the history.
            actor: who.
            now: when.
            expected: the generation the decision was made on; None means what is there when the call begins. Pass the
                one a person was shown: a second press of the same button must not roll back a second version.

        Raises:
            StaleMove: the deployment is no longer at that generation.
            NothingToRollBack: no challenger, and no earlier champion.
        """
        expected = self._seen(expected)
        with self.engine.begin() as connection:
            before = read_deployment(connection, self.task.name)
            if before is None:
                raise moves.NothingToRollBack(
                    f"Task {self.task.name!r} has never been deployed.",
                    hint=f"train a version: `skewless train {self.task.name}`.",
                )
            self._check_generation(before, expected)
            if before.challenger is not None:
                event = moves.dropped(before, at=now, reason=reason, actor=actor)
            else:
                history = read_history(connection, self.task.name)
                event = moves.restored(before, history, at=now, reason=reason, actor=actor)
            write_move(connection, before, event)
        return self._done(event)

    def pause(self, reason: str, actor: str, now: datetime, *, expected: int | None = None) -> Move:
        """Take the challenger off all traffic and wait for a person.

        Raises:
            StaleMove: as in `rollback`.
            NoChallenger: nothing is climbing.
            WrongStage: it is paused already.
        """
        expected = self._seen(expected)
        with self.engine.begin() as connection:
            before = self._climbing(connection, expected)
            if before.stage == "paused":
                raise WrongStage(
                    f"Task {self.task.name!r}: version {before.challenger} is paused since {before.since}.",
                    hint="approve it or roll it back.",
                )
            event = moves.paused(before, at=now, reason=reason, actor=actor)
            write_move(connection, before, event)
        return self._done(event)

    def approve(self, note: str, actor: str, now: datetime, *, expected: int | None = None) -> Move:
        """Resume a paused challenger at the step it was paused at, its samples and bake beginning anew.

        Where it was paused for inconclusive evidence, the inconclusive checks among `rollout_checks.WAIVABLE` count as
        accepted by this person for this one step, should they still be inconclusive then. A check that fails is never
        accepted, nor are too few samples or too short a bake.

        Raises:
            StaleMove: as in `rollback`.
            NoChallenger: nothing is climbing.
            WrongStage: it is not paused.
        """
        expected = self._seen(expected)
        with self.engine.begin() as connection:
            before = self._climbing(connection, expected)
            if before.stage != "paused":
                raise WrongStage(
                    f"Task {self.task.name!r}: version {before.challenger} is in {before.stage}, not paused.",
                    hint="a running step is decided by its evidence; there is nothing to approve.",
                )
            history = read_history(connection, self.task.name)
            accepted = [
                check["name"]
                for check in history[-1].evidence.get("checks", ())
                if check["verdict"] == "inconclusive" and check["name"] in checks.WAIVABLE
            ]
            event = moves.resumed(before, history, at=now, note=note, actor=actor, accepted=accepted)
            write_move(connection, before, event)
        return self._done(event)

    def reconcile(self) -> str:
        """Let the registry's aliases follow the state once more; returns what went wrong, or an empty text."""
        if self._follow is None:
            return ""
        while (now := self.current()) is not None:
            try:
                self._follow("champion", now.champion or None)
                self._follow("challenger", now.challenger)
            except Exception as error:  # the registry is a mirror: its failure of any kind must not undo a move
                _log.warning("aliases of %s are behind generation %d: %s", self.task.name, now.generation, error)
                return f"{type(error).__name__}: {error}"
            after = self.current()
            if after is not None and after.generation == now.generation:
                break  # nobody moved while we followed, so no newer alias was overwritten by an older one
        return ""

    def _seen(self, expected: int | None) -> int:
        if expected is not None:
            return expected
        current = self.current()
        return current.generation if current else 0

    def _climbing(self, connection: Connection, expected: int) -> Deployment:
        before = read_deployment(connection, self.task.name)
        if before is not None:
            self._check_generation(before, expected)
        if before is None or before.challenger is None:
            raise NoChallenger(
                f"Task {self.task.name!r}: no version is climbing.",
                hint=f"train one: `skewless retrain {self.task.name}`.",
            )
        return before

    def _check_generation(self, before: Deployment, expected: int) -> None:
        if before.generation != expected:
            raise stale(self.task.name, expected, before.generation)

    def _checks(self, connection: Connection, before: Deployment, evidence: Evidence) -> tuple[Check, ...]:
        found = [*checks.judge(self.task, evidence), checks.alerts(open_alerts(connection, self.task.name))]
        if before.stage == "canary" and self._next_share(before) is None:
            found.append(checks.drill(*latest_drill(connection, self.task.name)))
            if not before.champion:
                found.append(checks.drift_drill(*latest_drill(connection, self.task.name, "drift")))
            load_test = latest_load_test(connection, self.task.name, before.challenger or 0)
            found.append(checks.load_test(self.task, load_test))
        entered = read_history(connection, self.task.name, since=before.generation)[0]  # others may have moved it since
        accepted = entered.evidence.get("accepted", ())
        return tuple(
            replace(check, verdict="pass", reason=f"accepted by {entered.actor} ({entered.reason}): {check.reason}")
            if check.name in accepted and check.verdict == "inconclusive"
            else check
            for check in found
        )

    def _next_share(self, before: Deployment) -> float | None:
        """The first step above the present share; None when there is none left. Survives a task whose steps changed."""
        return next((step for step in self.task.rollout.canary_steps if step > before.share), None)

    def _done(self, event: RolloutEvent, found: tuple[Check, ...] = ()) -> Move:
        return Move(
            deployment=event.deployment,
            moved=True,
            from_stage=event.from_stage,
            to_stage=event.to_stage,
            version=event.version,
            verdict=event.verdict,
            reason=event.reason,
            checks=found,
            follow_error=self.reconcile(),
        )


def _waiting(before: Deployment, verdict: Verdict | None, reason: str, found: tuple[Check, ...] = ()) -> Move:
    return Move(before, False, before.stage, before.stage, before.challenger or 0, verdict, reason, found)
