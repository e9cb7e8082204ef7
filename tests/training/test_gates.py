"""Every gate can pass, fail and, where chance has a say, be inconclusive."""

from __future__ import annotations

from dataclasses import replace

import pytest

from training.evaluation import Comparison, Evaluation
from training.gates import judge, promotable
from training.latency import Latency
from training.resampling import Estimate
from training.slices import Group, Slices


def around(value, spread=0.01):
    return Estimate(value, value - spread, value + spread)


@pytest.fixture
def task(make_task):
    return make_task(10)


@pytest.fixture
def good():
    return Evaluation(
        rows=1000,
        positives=300,
        metrics={"roc_auc": around(0.8)},
        baseline={"roc_auc": around(0.5, 0.0)},
        over_baseline=around(0.3),
        threshold=0.3,
        cost_per_case={
            "model": around(0.5),
            "never": around(0.9),
            "always": around(0.7),
            "over_trivial": around(-0.2),
        },
        champion=None,
        slices=(Slices("depot", (Group("a", 100, around(0.78)), Group("b", 100, around(0.82)))),),
        parity=1e-7,
        latency=(Latency(1, 400, 0.1, 0.2), Latency(32, 100, 1.0, 1000.0)),
    )


def verdict(task, evaluation, name):
    [gate] = [gate for gate in judge(task, evaluation) if gate.name == name]
    assert (gate.action == "") == (gate.verdict == "pass")
    return gate.verdict


def test_a_good_version_passes_every_gate(task, good):
    gates = judge(task, good)
    assert [gate.verdict for gate in gates] == ["pass"] * 8
    assert promotable(gates)


def test_nothing_but_a_pass_promotes(task, good):
    for spoilt in (replace(good, rows=10), replace(good, parity=0.5)):
        assert not promotable(judge(task, spoilt))


def test_a_small_holdout_is_inconclusive(task, good):
    assert verdict(task, replace(good, rows=500), "holdout_size") == "pass"
    assert verdict(task, replace(good, rows=499), "holdout_size") == "inconclusive"


@pytest.mark.parametrize(("value", "expected"), [(0.7, "pass"), (0.695, "inconclusive"), (0.6, "fail")])
def test_the_floor(task, good, value, expected):
    assert verdict(task, replace(good, metrics={"roc_auc": around(value)}), "floor") == expected


@pytest.mark.parametrize(("value", "expected"), [(0.4, "pass"), (0.505, "inconclusive"), (0.6, "fail")])
def test_the_floor_of_a_loss_is_a_ceiling(make_task, good, value, expected):
    task = make_task(10, success={"metric": "log_loss", "floor": 0.5, "cost": {"false_alarm": 1, "missed": 3}})
    losses = {"metrics": {"log_loss": around(value)}, "baseline": {"log_loss": around(0.7, 0.0)}}
    assert verdict(task, replace(good, **losses), "floor") == expected


@pytest.mark.parametrize(("advantage", "expected"), [(0.04, "pass"), (0.02, "inconclusive"), (0.0, "fail")])
def test_the_baseline_must_be_beaten_by_the_margin(task, good, advantage, expected):
    assert verdict(task, replace(good, over_baseline=around(advantage)), "baseline") == expected


@pytest.mark.parametrize(("advantage", "expected"), [(0.006, "pass"), (-0.004, "inconclusive"), (-0.02, "fail")])
def test_a_champion_may_be_missed_by_the_margin_only(task, good, advantage, expected):
    champion = Comparison("hash", {"roc_auc": around(0.8)}, around(advantage), "")
    assert verdict(task, replace(good, champion=champion), "champion") == expected


def test_a_champion_that_cannot_be_asked_is_no_pass(task, good):
    champion = Comparison("hash", {}, None, "it wants a feature that is gone")
    assert verdict(task, replace(good, champion=champion), "champion") == "inconclusive"


@pytest.mark.parametrize(("over", "expected"), [(0.0, "pass"), (0.005, "inconclusive"), (0.1, "fail")])
def test_a_version_dearer_than_never_or_always_acting(task, good, over, expected):
    costs = {**good.cost_per_case, "over_trivial": around(over)}
    assert verdict(task, replace(good, cost_per_case=costs), "business_cost") == expected


@pytest.mark.parametrize(("best", "expected"), [(0.79, "pass"), (0.815, "inconclusive"), (0.9, "fail")])
def test_the_gap_between_slices(task, good, best, expected):
    slices = Slices("depot", (Group("a", 100, around(best)), Group("b", 100, around(0.6))))
    assert verdict(task, replace(good, slices=(slices,)), "slice_gap") == expected


def test_one_bad_column_of_slices_is_enough(task, good):
    bad = Slices("size", (Group("a", 100, around(0.9)), Group("b", 100, around(0.5))))
    assert verdict(task, replace(good, slices=(*good.slices, bad)), "slice_gap") == "fail"


def test_slices_too_small_to_judge_are_no_pass(task, good):
    unseen = Slices("depot", (Group("a", 100, around(0.8)), Group("b", 3, None, note="3 rows, fewer than 50")))
    [gate] = [gate for gate in judge(task, replace(good, slices=(unseen,))) if gate.name == "slice_gap"]
    assert "1 of 2 groups judged, inconclusive: b (3 rows, fewer than 50)" in gate.evidence
    assert verdict(task, replace(good, slices=(unseen,)), "slice_gap") == "inconclusive"
    assert verdict(task, replace(good, slices=()), "slice_gap") == "pass"


def test_packaged_and_native_scores_must_agree(task, good):
    assert verdict(task, replace(good, parity=1e-4), "parity") == "pass"
    assert verdict(task, replace(good, parity=1.1e-4), "parity") == "fail"


def test_the_packaged_model_alone_may_use_its_share_of_the_budget(task, good):
    for p99, expected in ((20.0, "pass"), (20.1, "fail")):
        assert verdict(task, replace(good, latency=(Latency(1, 400, 1.0, p99),)), "latency") == expected
