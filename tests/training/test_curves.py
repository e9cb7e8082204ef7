"""Curves and tables against their slow, obvious counterparts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from training.curves import cost_curve, coverage, predicted_and_observed, ranking, reliability, shown_cases
from training.metrics import NEVER, Ranked
from training.resampling import estimate
from training.value_metrics import Errors

cases = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), min_size=2, max_size=40).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


def drawn(rows, seed=1):
    rng = np.random.default_rng(seed)
    scores = rng.random(rows).astype(np.float32)
    return (rng.random(rows) < scores).astype(np.int8), scores


@given(cases)
def test_every_point_of_a_short_curve_is_scikit_learns(rows):
    labels, scores = np.array([y for y, _ in rows]), np.array([s / 8 for _, s in rows])
    found = ranking(labels, scores)
    alarms, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert np.array(found.roc) == pytest.approx(np.column_stack([alarms, hits]))
    precision, recall, _ = precision_recall_curve(labels, scores)
    assert {(round(r, 9), round(p, 9)) for r, p in found.precision_recall} <= {
        (round(r, 9), round(p, 9)) for r, p in zip(recall, precision, strict=True)
    }


def test_a_long_curve_is_thinned_and_keeps_its_area():
    labels, scores = drawn(20_000)
    found = ranking(labels, scores)
    assert len(found.roc) < 150
    assert len(found.precision_recall) < 150
    alarms, hits, _ = roc_curve(labels, scores)
    assert auc(*np.array(found.roc).T) == pytest.approx(auc(alarms, hits), abs=1e-3)
    assert found.roc[0] == (0, 0)
    assert found.roc[-1] == (1, 1)
    assert found.precision_recall[-1][0] == 1


def test_a_reliability_table_is_what_calibration_error_is_made_of():
    labels, scores = drawn(5_000)
    scores = np.clip(scores + 0.1, 0, 1)
    ranked = Ranked(labels, scores)
    table = reliability(ranked)
    assert [each.rows for each in table] == pytest.approx([500] * 10, abs=2)
    gap = sum(each.rows * abs(each.predicted - each.observed) for each in table) / 5_000
    assert gap == pytest.approx(float(ranked.metric("ece")(np.ones((1, 5_000)))[0]), abs=1e-6)
    order = np.argsort(scores, kind="stable")
    assert table[0].observed == pytest.approx(labels[order[: table[0].rows]].mean())
    assert all(each.low < each.observed < each.high for each in table)


def test_the_interval_of_a_share_is_wilsons():
    [bin_] = reliability(Ranked(np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), np.full(10, 0.5)))
    assert (bin_.low, bin_.high) == pytest.approx((0.0179, 0.4042), abs=1e-4)


@given(cases, cases, st.integers(0, 9), st.integers(0, 9))
def test_costs_by_threshold_are_what_the_decisions_cost(first, second, false_alarm, missed):
    sides = [(np.array([y for y, _ in rows]), np.array([s / 8 for _, s in rows])) for rows in (first, second)]
    found = cost_curve(*sides, false_alarm=false_alarm, missed=missed)

    def slowly(labels, scores, threshold):
        each = [(false_alarm if s >= threshold else 0) if not y else (0 if s >= threshold else missed)
                for y, s in zip(labels, scores, strict=True)]  # fmt: skip
        return sum(each) / len(each)

    for point in found.points:
        assert point.validation == pytest.approx(slowly(*sides[0], point.threshold))
        assert point.holdout == pytest.approx(slowly(*sides[1], point.threshold))
    assert found.points[-1].threshold == NEVER
    assert found.hindsight_cost == pytest.approx(min(slowly(*sides[1], t) for t in [*np.arange(9) / 8, NEVER]))
    assert found.hindsight_cost == pytest.approx(slowly(*sides[1], found.hindsight_threshold))


def test_outcomes_by_predicted_value():
    rng = np.random.default_rng(2)
    values = rng.normal(size=2_000)
    labels = 3 * values + rng.normal(size=2_000)
    found = predicted_and_observed(labels, values)
    assert sum(each.rows for each in found) == 2_000
    assert [each.predicted for each in found] == sorted(each.predicted for each in found)
    lowest = np.argsort(values)[:100]
    assert found[0].observed == pytest.approx(labels[lowest].mean())
    assert np.mean(labels[lowest] <= found[0].low) == pytest.approx(0.1, abs=0.01)
    assert set(shown_cases(labels, values, 1)) <= set(zip(values, labels, strict=True))


def test_an_interval_says_what_it_should_hold_and_what_it_holds():
    rng = np.random.default_rng(4)
    labels = rng.normal(size=4_000)
    levels = (0.1, 0.25, 0.5, 0.75, 0.9)
    from_normal = [-1.2816, -0.6745, 0.0, 0.6745, 1.2816]
    answers = np.tile([0.0, *from_normal], (4_000, 1))
    errors = Errors(labels, answers, levels)
    found = coverage(answers, levels, estimate(lambda _: {n: errors.metric(n) for n in errors.names}, 4_000, 1))
    assert [(each.low, each.high, each.nominal) for each in found] == [(0.1, 0.9, 0.8), (0.25, 0.75, 0.5)]
    for each in found:
        inside = np.mean((labels >= each.width / -2) & (labels <= each.width / 2))
        assert each.found.value == pytest.approx(inside)
        assert each.found.low < each.nominal < each.found.high
    assert found[0].width == pytest.approx(2 * 1.2816)
