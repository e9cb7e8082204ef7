"""Each check alone: what passes, what fails, what waits."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from contracts.task import Task
from serving import rollout_checks as checks
from serving.comparison import Comparison
from serving.evidence import ErrorCount, Evidence, Performance, SkewCount, Traffic
from serving.load_tests import LoadTest
from serving.rollout_state import Deployment

COMPARED = Comparison(400, 0.02, 118, 120, 6, 0.01, 0.1, ())


@pytest.fixture
def shadow(support: Any) -> Evidence:
    return support.good_evidence(Deployment("churn", 5, 1, "b1", 2, "b2", "shadow", 0.0, support.start))


@pytest.fixture
def canary(support: Any) -> Evidence:
    return support.good_evidence(Deployment("churn", 6, 1, "b1", 2, "b2", "canary", 0.1, support.start))


def traffic(requests: int, *, slow: int = 0, acted: int | None = None) -> Traffic:
    return Traffic(requests, requests, slow, 5.0, 10.0, requests // 3 if acted is None else acted)


def test_good_evidence_passes_everything(task: Task, shadow: Evidence, canary: Evidence) -> None:
    for evidence in (shadow, canary):
        found = checks.judge(task, evidence)
        assert {check.verdict for check in found} == {"pass"}
        assert checks.overall(found) == "pass"
        assert all(check.reason for check in found)
        json.dumps([check.to_dict() for check in found], allow_nan=False)


def test_no_evidence_at_all_never_passes(task: Task, shadow: Evidence, canary: Evidence) -> None:
    nothing: dict[str, Any] = {
        "challenger": Traffic(0, 0, 0, None, None, 0),
        "champion": Traffic(0, 0, 0, None, None, 0),
        "comparison": None,
        "holdout_action_rate": None,
        "errors": None,
        "skew": None,
        "performance": None,
    }
    for evidence in (shadow, canary):
        found = checks.judge(task, replace(evidence, **nothing))
        assert checks.overall(found) == "inconclusive"
        passed = [check for check in found if check.verdict == "pass"]
        assert all(check.evidence == {"applies": False} for check in passed)
    assert checks.overall(()) == "inconclusive"


def test_one_failure_outweighs_everything() -> None:
    made = {verdict: checks.Check("x", verdict, "because") for verdict in ("pass", "fail", "inconclusive")}
    assert checks.overall([made["pass"], made["inconclusive"], made["fail"]]) == "fail"
    assert checks.overall([made["pass"], made["inconclusive"]]) == "inconclusive"


@pytest.mark.parametrize(
    ("stage", "rows", "hours", "verdict"),
    [
        ("shadow", 100, 2, "pass"),
        ("shadow", 99, 2, "inconclusive"),
        ("shadow", 100, 1.999, "inconclusive"),
        ("canary", 50, 1, "pass"),
        ("canary", 49, 1, "inconclusive"),
        ("canary", 50, 0.999, "inconclusive"),
    ],
)
def test_exposure_asks_for_rows_and_for_time(
    task: Task, shadow: Evidence, stage: str, rows: int, hours: float, verdict: str
) -> None:
    until = shadow.since + timedelta(hours=hours)
    evidence = replace(shadow, stage=stage, challenger=traffic(rows), until=until)
    assert checks.exposure(task.rollout, evidence).verdict == verdict


@pytest.mark.parametrize(
    ("failed", "requests", "verdict"),
    [
        (0, 1, "pass"),
        (1, 100, "pass"),
        (2, 100, "inconclusive"),
        (1, 30, "inconclusive"),
        (0, 0, "inconclusive"),
        (10, 10, "fail"),
        (12, 200, "fail"),
    ],
)
def test_errors(task: Task, canary: Evidence, failed: int, requests: int, verdict: str) -> None:
    evidence = replace(canary, errors=ErrorCount(requests, failed))
    assert checks.errors(task.rollout, evidence).verdict == verdict


def test_a_task_that_tolerates_no_error_fails_on_the_first(support: Any, canary: Evidence) -> None:
    rules = support.make_task(max_error_rate=0).rollout
    assert checks.errors(rules, replace(canary, errors=ErrorCount(10_000, 1))).verdict == "fail"
    assert checks.errors(rules, replace(canary, errors=ErrorCount(10_000, 0))).verdict == "pass"


def test_what_fails_for_everybody_is_not_the_challengers_fault(task: Task, canary: Evidence) -> None:
    rules, half = task.rollout, ErrorCount(200, 100, champion_requests=2000, champion_failed=1000)
    assert checks.errors(rules, replace(canary, errors=half)).verdict == "inconclusive"
    assert checks.errors(rules, replace(canary, errors=replace(half, champion_failed=10))).verdict == "fail"


def test_a_shadow_that_fails_on_mirrored_requests_is_dropped_before_it_answers_anybody(
    task: Task, shadow: Evidence
) -> None:
    assert checks.errors(task.rollout, replace(shadow, errors=ErrorCount(40, 20, 40, 0))).verdict == "fail"
    assert checks.errors(task.rollout, replace(shadow, errors=None)).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("requests", "slow", "verdict"),
    [
        (0, 0, "inconclusive"),
        (5, 0, "pass"),
        (19, 1, "inconclusive"),
        (20, 1, "pass"),
        (99, 1, "pass"),
        (60, 2, "inconclusive"),
        (1000, 10, "pass"),
        (1000, 11, "inconclusive"),
        (1000, 60, "fail"),
        (30, 20, "fail"),
    ],
)
def test_latency(canary: Evidence, requests: int, slow: int, verdict: str) -> None:
    evidence = replace(canary, challenger=traffic(requests, slow=slow), champion=traffic(2000))
    assert checks.latency(50, evidence).verdict == verdict


def test_a_slow_machine_is_not_the_challengers_fault(canary: Evidence) -> None:
    slow = replace(canary, challenger=traffic(200, slow=60))
    assert checks.latency(50, replace(slow, champion=traffic(2000, slow=600))).verdict == "inconclusive"
    assert checks.latency(50, replace(slow, champion=traffic(2000))).verdict == "fail"
    assert checks.latency(50, replace(slow, champion=traffic(0))).verdict == "fail"


def test_nobody_waits_for_a_shadow(shadow: Evidence) -> None:
    found = checks.latency(50, replace(shadow, challenger=traffic(200, slow=200)))
    assert (found.verdict, found.evidence) == ("pass", {"applies": False})


@pytest.mark.parametrize(
    ("pairs", "psi", "low", "verdict"),
    [
        (99, 0.0, 0.0, "inconclusive"),
        (100, 0.25, 0.0, "pass"),
        (400, 0.25, 0.25, "pass"),
        (400, 0.30, 0.25, "inconclusive"),
        (400, 0.45, 0.26, "fail"),
        (40, 0.90, 0.26, "fail"),
    ],
)
def test_divergence(task: Task, shadow: Evidence, pairs: int, psi: float, low: float, verdict: str) -> None:
    evidence = replace(shadow, comparison=replace(COMPARED, pairs=pairs, psi=psi, psi_low=low))
    assert checks.divergence(task.rollout, evidence).verdict == verdict


def test_a_canary_is_compared_on_what_the_champion_answers(task: Task, canary: Evidence) -> None:
    few = replace(COMPARED, pairs=task.rollout.canary_samples - 1)
    assert checks.divergence(task.rollout, replace(canary, comparison=few)).verdict == "inconclusive"
    assert checks.divergence(task.rollout, replace(canary, comparison=COMPARED)).verdict == "pass"


def test_divergence_where_it_cannot_be_measured(task: Task, shadow: Evidence, canary: Evidence) -> None:
    for evidence in (shadow, canary):
        assert checks.divergence(task.rollout, replace(evidence, comparison=None)).verdict == "inconclusive"
    found = checks.divergence(task.rollout, replace(shadow, champion_is_baseline=True, comparison=None))
    assert (found.verdict, found.evidence) == ("pass", {"applies": False})
    assert found.reason.startswith("not applicable: ")


@pytest.mark.parametrize(
    ("count", "verdict"),
    [
        (None, "inconclusive"),
        (SkewCount(0, 0), "inconclusive"),
        (SkewCount(1000, 0), "pass"),
        (SkewCount(1000, 1), "fail"),
    ],
)
def test_skew(canary: Evidence, shadow: Evidence, count: SkewCount | None, verdict: str) -> None:
    for evidence in (canary, shadow):
        assert checks.skew(replace(evidence, skew=count)).verdict == verdict


@pytest.mark.parametrize(
    ("value", "low", "high", "higher", "verdict"),
    [
        (0.60, None, None, True, "pass"),
        (0.59, None, None, True, "fail"),
        (0.59, 0.55, 0.63, True, "inconclusive"),
        (0.55, 0.52, 0.58, True, "fail"),
        (0.60, None, None, False, "pass"),
        (0.61, 0.58, 0.64, False, "inconclusive"),
        (0.65, 0.61, 0.69, False, "fail"),
        (float("nan"), None, None, True, "inconclusive"),
        (0.7, 0.6, float("nan"), True, "inconclusive"),
    ],
)
def test_performance(
    canary: Evidence, value: float, low: float | None, high: float | None, higher: bool, verdict: str
) -> None:
    found = Performance("some_metric", value, 0.6, low, high, higher, kind="realized")
    assert checks.performance(replace(canary, performance=found)).verdict == verdict


def test_the_check_says_whether_performance_was_realized_or_estimated_and_why_it_is_neither(canary: Evidence) -> None:
    for kind in ("realized", "estimated"):
        found = Performance("pinball", 9.1, 14, 8.7, 9.5, higher_is_better=False, kind=kind, rows=812)
        check = checks.performance(replace(canary, performance=found))
        assert (check.verdict, check.reason) == ("pass", f"{kind} pinball 9.1000 on 812 rows, floor 14")
        assert (check.evidence["kind"], check.evidence["low"], check.evidence["high"]) == (kind, 8.7, 9.5)
    none = Performance("pinball", None, 14, higher_is_better=False, note="no label has come")
    check = checks.performance(replace(canary, performance=none))
    assert (check.verdict, check.reason) == (
        "inconclusive",
        "performance is neither realized nor estimated: no label has come",
    )


def test_bad_performance_counts_in_shadow_and_none_is_needed_there(shadow: Evidence, canary: Evidence) -> None:
    assert checks.performance(replace(shadow, performance=None)).verdict == "pass"
    assert checks.performance(replace(canary, performance=None)).verdict == "inconclusive"
    bad = Performance("roc_auc", 0.5, 0.6)
    assert checks.performance(replace(shadow, performance=bad)).verdict == "fail"


@pytest.mark.parametrize(
    ("acted", "verdict"), [(120, "pass"), (45, "pass"), (3, "fail"), (399, "inconclusive"), (35, "inconclusive")]
)
def test_the_decision_rate_in_shadow_is_judged_on_the_same_requests(shadow: Evidence, acted: int, verdict: str) -> None:
    evidence = replace(shadow, comparison=replace(COMPARED, challenger_acted=acted))
    assert checks.decision_rate(evidence).verdict == verdict


def test_acting_too_often_fails_once_the_champion_is_known_to_act_seldom(shadow: Evidence) -> None:
    compared = replace(COMPARED, pairs=4000, champion_acted=400, challenger_acted=2000)
    assert checks.decision_rate(replace(shadow, comparison=compared)).verdict == "fail"
    compared = replace(COMPARED, pairs=40, champion_acted=4, challenger_acted=20)
    assert checks.decision_rate(replace(shadow, comparison=compared)).verdict == "inconclusive"


def test_the_decision_rate_of_a_canary_is_judged_over_the_same_time(canary: Evidence) -> None:
    champion = traffic(2000, acted=200)
    usual = replace(canary, comparison=None, champion=champion, challenger=traffic(100, acted=25))
    assert checks.decision_rate(usual).verdict == "pass"
    assert checks.decision_rate(replace(usual, challenger=traffic(100, acted=90))).verdict == "fail"


def test_against_its_own_holdout_a_version_is_made_to_wait_never_dropped(canary: Evidence) -> None:
    first = replace(canary, champion_is_baseline=True, comparison=None, holdout_action_rate=0.1)
    assert checks.decision_rate(replace(first, challenger=traffic(400, acted=100))).verdict == "pass"
    strange = checks.decision_rate(replace(first, challenger=traffic(400, acted=390)))
    assert (strange.verdict, strange.evidence["of"]) == ("inconclusive", "its own holdout")
    assert checks.decision_rate(replace(first, holdout_action_rate=None)).verdict == "inconclusive"
    few = replace(canary, comparison=None, champion=traffic(29), holdout_action_rate=0.3)
    assert checks.decision_rate(few).evidence["of"] == "its own holdout"


def test_alerts_and_drill(support: Any) -> None:
    assert checks.alerts([]).verdict == "pass"
    assert checks.alerts([3, 5]).evidence == {"open": [3, 5]}
    assert checks.alerts([3, 5]).verdict == "inconclusive"
    assert checks.drill(None, None).verdict == "inconclusive"
    assert checks.drill(True, support.start).verdict == "pass"
    assert checks.drill(False, support.start).verdict == "inconclusive"
    found = [checks.drift_drill(passed, None if passed is None else support.start) for passed in (None, True, False)]
    assert [each.verdict for each in found] == ["inconclusive", "pass", "inconclusive"]


QUICK = LoadTest(1000, 100.0, 10.0, 0, 0, {"p99": (20.0, 15.0, 28.0)}, 1.0, 100, 22.0)


@pytest.mark.parametrize(
    ("change", "verdict", "why"),
    [
        ({}, "pass", "within 50 ms"),
        ({"requests": 999}, "inconclusive", "1000 requests are needed"),
        ({"rate": 99.0}, "inconclusive", "100/s is expected"),
        ({"failed": 11}, "inconclusive", "11 failed"),
        ({"refused": 1}, "inconclusive", "1 were refused"),
        ({"quantiles": {"p99": (51.0, 45.0, 60.0)}}, "inconclusive", "the budget is 50 ms"),
    ],
)
def test_load_test(support: Any, change: dict[str, Any], verdict: str, why: str) -> None:
    found = checks.load_test(support.make_task(load_test_requests=1000), replace(QUICK, **change))
    assert (found.verdict, why in found.reason) == (verdict, True)


def test_a_load_test_that_is_missing_is_no_pass_unless_the_task_needs_none(support: Any, task: Task) -> None:
    assert checks.load_test(support.make_task(load_test_requests=1), None).verdict == "inconclusive"
    found = checks.load_test(task, None)
    assert (found.verdict, found.evidence) == ("pass", {"applies": False})


def test_nobody_can_waive_samples_errors_skew_alerts_or_the_drill() -> None:
    assert checks.WAIVABLE.isdisjoint({"exposure", "errors", "skew", "alerts", "drill", "drift_drill"})


def test_the_runbook_explains_every_check() -> None:
    runbook = Path(__file__).parents[3] / "docs" / "runbook.md"
    for name in (
        "exposure",
        "errors",
        "latency",
        "divergence",
        "skew",
        "performance",
        "decision_rate",
        "alerts",
        "drill",
        "drift_drill",
        "load_test",
    ):
        assert f"`{name}`" in runbook.read_text()
