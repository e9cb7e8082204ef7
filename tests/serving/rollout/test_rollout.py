"""The controller on a real SQLite state: every move, every refusal."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, update

from contracts.bundle import MODEL, BundleError
from contracts.state import alerts
from serving.evidence import ErrorCount, Performance, SkewCount
from serving.rollout import ChallengerClimbing, NoChallenger, Rollouts, WrongStage
from serving.rollout_moves import NotDeployable, NothingToRollBack
from serving.rollout_state import StaleMove

Bundle = Callable[[int], Path]


def hours(count: float) -> timedelta:
    return timedelta(hours=count)


def test_nothing_is_deployed_before_the_first_version(rollouts: Rollouts) -> None:
    assert rollouts.current() is None
    assert rollouts.history() == []


def test_the_first_version_climbs_against_the_naive_baseline(rollouts: Rollouts, bundle: Bundle, support: Any) -> None:
    deployment = rollouts.submit(1, bundle(1), support.start).deployment
    assert (deployment.champion, deployment.champion_bundle) == (0, str(bundle(1)))
    assert (deployment.challenger, deployment.stage, deployment.share) == (1, "shadow", 0.0)
    assert deployment == rollouts.current()


def test_a_version_climbs_every_step_in_order(rollouts: Rollouts, engine: Engine, bundle: Bundle, support: Any) -> None:
    support.drill_on_record(engine)
    deployment = rollouts.submit(1, bundle(1), support.start).deployment
    seen = [(deployment.stage, deployment.share, deployment.champion)]
    at = support.start
    while deployment.challenger is not None:
        at += hours(3)
        deployment = rollouts.advance(support.good_evidence(deployment), at).deployment
        seen.append((deployment.stage, deployment.share, deployment.champion))
    assert seen == [("shadow", 0.0, 0), ("canary", 0.1, 0), ("canary", 0.5, 0), ("idle", 0.0, 1)]
    assert deployment.champion_bundle == str(bundle(1))
    stages = [(event.from_stage, event.to_stage) for event in rollouts.history()]
    assert stages == [
        ("registered", "shadow"),
        ("shadow", "canary"),
        ("canary", "canary"),
        ("canary", "champion"),
    ]


def test_each_move_keeps_its_evidence(rollouts: Rollouts, bundle: Bundle, support: Any) -> None:
    deployment = rollouts.submit(1, bundle(1), support.start).deployment
    rollouts.advance(support.good_evidence(deployment), support.start + hours(3))
    event = rollouts.history()[-1]
    verdicts = {check["name"]: check["verdict"] for check in event.evidence["checks"]}
    assert verdicts["exposure"] == "pass"
    assert event.evidence["gathered"]["skew"] == {
        "checked": 1000,
        "mismatches": 0,
        "share": 1.0,
        "not_judged": 0,
        "rows_set_aside": 0,
    }
    assert (event.verdict, event.actor, event.at) == ("pass", "rollout", support.start + hours(3))


def test_a_wait_writes_nothing(rollouts: Rollouts, bundle: Bundle, support: Any) -> None:
    deployment = rollouts.submit(1, bundle(1), support.start).deployment
    move = rollouts.advance(support.good_evidence(deployment, hours=1), support.start + hours(1))
    assert (move.moved, move.verdict, move.to_stage) == (False, "inconclusive", "shadow")
    assert "exposure" in move.reason
    assert rollouts.current() == deployment
    assert len(rollouts.history()) == 1


@pytest.mark.parametrize("missing", ["errors", "skew", "performance"])
def test_a_canary_without_evidence_waits(rollouts: Rollouts, bundle: Bundle, support: Any, missing: str) -> None:
    shadow = rollouts.submit(1, bundle(1), support.start).deployment
    canary = rollouts.advance(support.good_evidence(shadow), support.start + hours(3)).deployment
    move = rollouts.advance(support.good_evidence(canary, **{missing: None}), support.start + hours(6))
    assert (move.moved, move.verdict) == (False, "inconclusive")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("errors", ErrorCount(40, 20)),
        ("skew", SkewCount(1000, 1)),
        ("performance", Performance("roc_auc", 0.5, 0.6, 0.45, 0.55)),
    ],
)
def test_a_breach_rolls_back_at_once(rollouts: Rollouts, bundle: Bundle, support: Any, part: str, value: Any) -> None:
    shadow = rollouts.submit(1, bundle(1), support.start).deployment
    canary = rollouts.advance(support.good_evidence(shadow), support.start + hours(3)).deployment
    early = support.good_evidence(canary, hours=0.1, **{part: value})
    move = rollouts.advance(early, canary.since + hours(0.1))
    assert (move.verdict, move.to_stage, move.deployment.challenger, move.deployment.share) == (
        "fail",
        "rolled_back",
        None,
        0.0,
    )
    assert move.deployment.stage == "idle"
    assert move.deployment.champion == 0


def test_an_inconclusive_step_is_paused_at_its_deadline(rollouts: Rollouts, bundle: Bundle, support: Any) -> None:
    shadow = rollouts.submit(1, bundle(1), support.start).deployment
    blind = support.good_evidence(shadow, hours=47, skew=None)
    assert not rollouts.advance(blind, support.start + hours(47)).moved
    move = rollouts.advance(blind, support.start + hours(48))
    assert (move.to_stage, move.verdict, move.deployment.share) == ("paused", "inconclusive", 0.0)
    assert move.deployment.challenger == 1
    still = rollouts.advance(support.good_evidence(move.deployment), support.start + hours(50))
    assert not still.moved
    assert "a person must" in still.reason


def test_approval_resumes_the_step_it_was_paused_at_from_its_beginning(
    rollouts: Rollouts, bundle: Bundle, support: Any
) -> None:
    shadow = rollouts.submit(1, bundle(1), support.start).deployment
    canary = rollouts.advance(support.good_evidence(shadow), support.start + hours(3)).deployment
    rollouts.pause("fire drill", "ada", support.start + hours(4))
    resumed = rollouts.approve("all clear", "ada", support.start + hours(5)).deployment
    assert (resumed.stage, resumed.share, resumed.challenger) == ("canary", canary.share, 1)
    assert resumed.since == support.start + hours(5)
    short = rollouts.advance(support.good_evidence(resumed, hours=0.5), support.start + hours(5.5))
    assert not short.moved


def test_a_person_may_accept_what_stayed_inconclusive_but_not_the_samples(
    rollouts: Rollouts, bundle: Bundle, support: Any
) -> None:
    shadow = rollouts.submit(1, bundle(1), support.start).deployment
    canary = rollouts.advance(support.good_evidence(shadow), support.start + hours(3)).deployment
    blind = support.good_evidence(canary, hours=48, performance=None, skew=None)
    paused = rollouts.advance(blind, canary.since + hours(48))
    assert paused.to_stage == "paused"
    resumed = rollouts.approve("no estimate exists for it", "ada", canary.since + hours(49)).deployment
    assert rollouts.history()[-1].evidence["accepted"] == ["performance"]

    few = support.good_evidence(resumed, hours=0.5, performance=None)
    assert not rollouts.advance(few, resumed.since + hours(0.5)).moved
    no_skew = support.good_evidence(resumed, performance=None, skew=None)
    assert "skew" in rollouts.advance(no_skew, resumed.since + hours(3)).reason
    failing = support.good_evidence(resumed, performance=None)
    move = rollouts.advance(failing, resumed.since + hours(3))
    assert move.to_stage == "canary"
    accepted = next(check for check in move.checks if check.name == "performance")
    assert accepted.reason.startswith("accepted by ada (no estimate exists for it)")
    # the next step is judged by itself again
    assert not rollouts.advance(
        support.good_evidence(move.deployment, performance=None), move.deployment.since + hours(3)
    ).moved


def test_an_accepted_check_that_fails_still_rolls_back(rollouts: Rollouts, bundle: Bundle, support: Any) -> None:
    shadow = rollouts.submit(1, bundle(1), support.start).deployment
    canary = rollouts.advance(support.good_evidence(shadow), support.start + hours(3)).deployment
    rollouts.advance(support.good_evidence(canary, hours=48, performance=None), canary.since + hours(48))
    resumed = rollouts.approve("fine", "ada", canary.since + hours(49)).deployment
    bad = Performance("roc_auc", 0.4, 0.6)
    assert rollouts.advance(support.good_evidence(resumed, performance=bad), resumed.since).to_stage == "rolled_back"


def test_promotion_needs_a_passed_rollback_drill(
    rollouts: Rollouts, engine: Engine, bundle: Bundle, support: Any
) -> None:
    deployment = rollouts.submit(1, bundle(1), support.start).deployment
    for _ in range(3):
        deployment = rollouts.advance(support.good_evidence(deployment), deployment.since + hours(3)).deployment
    assert (deployment.stage, deployment.share) == ("canary", 0.5)
    assert (
        "no rollback drill" in rollouts.advance(support.good_evidence(deployment), deployment.since + hours(3)).reason
    )
    support.drill_on_record(engine, passed=False)
    refused = rollouts.advance(support.good_evidence(deployment), deployment.since + hours(3))
    assert "drill" in refused.reason
    assert not refused.moved
    support.drill_on_record(engine, kinds=["rollback"])
    refused = rollouts.advance(support.good_evidence(deployment), deployment.since + hours(3))
    assert (refused.moved, "the latest drift drill" in refused.reason) == (False, True)
    support.drill_on_record(engine, kinds=["drift"])
    assert rollouts.advance(support.good_evidence(deployment), deployment.since + hours(3)).to_stage == "champion"


def test_only_a_task_that_goes_live_needs_a_drift_drill(
    rollouts: Rollouts, engine: Engine, bundle: Bundle, support: Any, promote: Any
) -> None:
    now = promote(1, support.start)
    support.drill_on_record(engine, passed=False, kinds=["drift"])
    deployment = rollouts.submit(2, bundle(2), now).deployment
    while deployment.challenger is not None:
        move = rollouts.advance(support.good_evidence(deployment), deployment.since + hours(3))
        assert move.moved, move.reason
        deployment = move.deployment
    assert deployment.champion == 2


def test_an_alert_blocks_every_step_up_until_acknowledged(
    rollouts: Rollouts, engine: Engine, bundle: Bundle, support: Any
) -> None:
    deployment = rollouts.submit(1, bundle(1), support.start).deployment
    row = {"task": "churn", "kind": "skew", "opened_at": support.start, "evidence": {}, "message": "m"}
    with engine.begin() as connection:
        connection.execute(insert(alerts).values([row, row | {"task": "other"}]))
    blocked = rollouts.advance(support.good_evidence(deployment), support.start + hours(3))
    assert "1 open alert" in blocked.reason
    assert not blocked.moved
    with engine.begin() as connection:
        connection.execute(update(alerts).where(alerts.c.task == "churn").values(acknowledged_at=support.start))
    assert rollouts.advance(support.good_evidence(deployment), support.start + hours(3)).moved


def test_only_one_version_climbs_at_a_time(rollouts: Rollouts, bundle: Bundle, support: Any) -> None:
    rollouts.submit(1, bundle(1), support.start)
    with pytest.raises(ChallengerClimbing, match="version 1 is in shadow"):
        rollouts.submit(2, bundle(2), support.start)
    rollouts.rollback("wrong data", "ada", support.start)
    assert rollouts.submit(2, bundle(2), support.start).deployment.challenger == 2


@pytest.mark.parametrize(
    ("gates", "told"),
    [
        (({"name": "floor", "verdict": "pass"}, {"name": "parity", "verdict": "fail"}), "parity fail"),
        (({"name": "champion", "verdict": "inconclusive"},), "champion inconclusive"),
        ((), "none ran"),
    ],
)
def test_a_version_that_did_not_pass_its_gates_is_refused(
    rollouts: Rollouts, tmp_path: Path, support: Any, gates: tuple[dict[str, Any], ...], told: str
) -> None:
    path = support.make_bundle(tmp_path / "rejected", gates=gates)
    with pytest.raises(NotDeployable, match=told):
        rollouts.submit(1, path, support.start)
    assert rollouts.current() is None


def test_other_bundles_that_cannot_be_deployed(
    rollouts: Rollouts,
    bundle: Bundle,
    tmp_path: Path,
    support: Any,
    promote: Callable[[int, datetime], datetime],
) -> None:
    with pytest.raises(NotDeployable, match="'fraud'"):
        rollouts.submit(1, support.make_bundle(tmp_path / "fraud", task="fraud"), support.start)
    with pytest.raises(NotDeployable, match="numbered from 1"):
        rollouts.submit(0, bundle(1), support.start)
    (bundle(3) / MODEL).write_bytes(b"altered")
    with pytest.raises(BundleError, match="altered"):
        rollouts.submit(3, bundle(3), support.start)
    promote(1, support.start)
    with pytest.raises(NotDeployable, match="champion already"):
        rollouts.submit(1, bundle(1), support.start)


def test_rolling_back_goes_back_one_champion_at_a_time_and_never_forward(
    rollouts: Rollouts, bundle: Bundle, support: Any, promote: Callable[[int, datetime], datetime]
) -> None:
    at = promote(2, promote(1, support.start))
    assert rollouts.rollback("bad", "ada", at).deployment.champion == 1
    at = promote(3, at)
    champions = [rollouts.rollback("bad", "ada", at).deployment for _ in range(2)]
    assert [each.champion for each in champions] == [1, 0]
    assert [each.champion_bundle for each in champions] == [str(bundle(1)), str(bundle(1))]
    with pytest.raises(NothingToRollBack, match="champion 0 has no predecessor"):
        rollouts.rollback("bad", "ada", at)
    last = rollouts.history()[-1]
    assert (last.from_stage, last.to_stage, last.version, last.reason, last.actor) == (
        "champion",
        "rolled_back",
        1,
        "bad",
        "ada",
    )


def test_a_climbing_challenger_is_dropped_before_any_champion(
    rollouts: Rollouts, bundle: Bundle, support: Any, promote: Callable[[int, datetime], datetime]
) -> None:
    at = promote(1, support.start)
    rollouts.submit(2, bundle(2), at)
    after = rollouts.rollback("bad", "ada", at).deployment
    assert (after.champion, after.challenger) == (1, None)


def test_moves_that_need_something_that_is_not_there(rollouts: Rollouts, bundle: Bundle, support: Any) -> None:
    now = support.start
    with pytest.raises(NothingToRollBack, match="never been deployed"):
        rollouts.rollback("x", "ada", now)
    with pytest.raises(NoChallenger):
        rollouts.pause("x", "ada", now)
    first = rollouts.submit(1, bundle(1), now).deployment
    with pytest.raises(WrongStage, match="in shadow, not paused"):
        rollouts.approve("x", "ada", now)
    rollouts.pause("x", "ada", now)
    with pytest.raises(WrongStage, match="is paused since"):
        rollouts.pause("x", "ada", now)
    idle = rollouts.rollback("x", "ada", now).deployment
    with pytest.raises(NoChallenger):
        rollouts.advance(replace(support.good_evidence(first), generation=idle.generation), now)
    with pytest.raises(NothingToRollBack):
        rollouts.rollback("x", "ada", now)
    with pytest.raises(ValueError, match="'fraud'"):
        rollouts.advance(replace(support.good_evidence(first), task="fraud"), now)


def test_a_decision_on_an_older_generation_is_refused(rollouts: Rollouts, bundle: Bundle, support: Any) -> None:
    first = rollouts.submit(1, bundle(1), support.start).deployment
    rollouts.advance(support.good_evidence(first), support.start + hours(3))
    moves: list[Callable[[], object]] = [
        lambda: rollouts.advance(support.good_evidence(first), support.start + hours(4)),
        lambda: rollouts.rollback("x", "ada", support.start, expected=first.generation),
        lambda: rollouts.pause("x", "ada", support.start, expected=first.generation),
        lambda: rollouts.approve("x", "ada", support.start, expected=first.generation),
    ]
    for move in moves:
        with pytest.raises(StaleMove, match="decided on generation 1, but it is at generation 2"):
            move()
    assert len(rollouts.history()) == 2


def test_a_second_press_of_rollback_does_not_take_the_champion(
    rollouts: Rollouts, bundle: Bundle, support: Any, promote: Callable[[int, datetime], datetime]
) -> None:
    at = promote(1, support.start)
    shown = rollouts.submit(2, bundle(2), at).deployment
    rollouts.rollback("bad", "ada", at, expected=shown.generation)
    with pytest.raises(StaleMove):
        rollouts.rollback("bad", "ben", at, expected=shown.generation)
    current = rollouts.current()
    assert current is not None
    assert current.champion == 1


def test_the_registry_follows_after_each_move(engine: Engine, bundle: Bundle, support: Any) -> None:
    aliases: dict[str, int | None] = {}
    rollouts = Rollouts(engine, support.make_task(canary_steps=[0.5]), aliases.__setitem__)
    support.drill_on_record(engine)
    deployment = rollouts.submit(1, bundle(1), support.start).deployment
    assert aliases == {"champion": None, "challenger": 1}
    for _ in range(2):
        deployment = rollouts.advance(support.good_evidence(deployment), deployment.since + hours(3)).deployment
    assert aliases == {"champion": 1, "challenger": None}


def test_a_registry_that_fails_does_not_undo_the_move_and_is_caught_up(
    engine: Engine, task: Any, bundle: Bundle, support: Any, caplog: pytest.LogCaptureFixture
) -> None:
    aliases: dict[str, int | None] = {}
    broken = True

    def follow(alias: str, version: int | None) -> None:
        if broken:
            raise ConnectionError("registry is down")
        aliases[alias] = version

    rollouts = Rollouts(engine, task, follow)
    with caplog.at_level(logging.WARNING):
        move = rollouts.submit(1, bundle(1), support.start)
    assert move.follow_error == "ConnectionError: registry is down"
    assert "behind generation 1" in caplog.text
    assert rollouts.current() == move.deployment
    broken = False
    assert rollouts.reconcile() == ""
    assert aliases == {"champion": None, "challenger": 1}


def test_the_alias_follows_what_is_there_when_another_moves_meanwhile(
    engine: Engine, task: Any, bundle: Bundle, support: Any
) -> None:
    other = Rollouts(engine, task)
    aliases: dict[str, int | None] = {}

    def slow(alias: str, version: int | None) -> None:
        current = other.current()
        if alias == "challenger" and current is not None and current.challenger == 1:
            other.rollback("meanwhile", "ben", support.start)
        aliases[alias] = version

    Rollouts(engine, task, slow).submit(1, bundle(1), support.start)
    assert aliases == {"champion": None, "challenger": None}


def test_a_task_whose_steps_changed_on_the_way_goes_on_to_the_next_higher(
    engine: Engine, bundle: Bundle, support: Any
) -> None:
    before, after = (Rollouts(engine, support.make_task(canary_steps=steps)) for steps in ([0.1, 0.5], [0.05, 0.3]))
    deployment = before.submit(1, bundle(1), support.start).deployment
    deployment = before.advance(support.good_evidence(deployment), deployment.since + hours(3)).deployment
    assert after.advance(support.good_evidence(deployment), deployment.since + hours(3)).deployment.share == 0.3


def test_moves_and_events_are_plain_json(rollouts: Rollouts, bundle: Bundle, support: Any) -> None:
    import json

    deployment = rollouts.submit(1, bundle(1), support.start).deployment
    nan = Performance("roc_auc", float("nan"), 0.6)
    move = rollouts.advance(
        support.good_evidence(deployment, performance=nan, skew=SkewCount(5, 5)), support.start + hours(3)
    )
    assert json.loads(json.dumps(move.to_dict()))["to_stage"] == "rolled_back"
    event = rollouts.history()[-1]
    assert event.evidence["gathered"]["performance"]["value"] is None
    assert json.loads(json.dumps(event.to_dict(), allow_nan=False))["at"] == "2024-01-01T03:00:00+00:00"
