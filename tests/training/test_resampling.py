"""Intervals: over days drawn whole where there are enough of them, and as wide as chance makes the figure vary."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from training import resampling
from training.metrics import Ranked
from training.resampling import LEAST_DAYS, days_drawn, days_of, draws, estimate

DAY = 86_400_000_000


def mean_of(values):
    return lambda rows: {"mean": lambda counts: counts @ values[rows] / counts.sum(axis=1)}


def ranked(labels, scores):
    def metrics(rows):
        found = Ranked(labels[rows], scores[rows])
        return {name: found.metric(name) for name in Ranked.names}

    return metrics


def alike(days, each, seed, shared=1.0):
    """Values of so many days, those of one day sharing part of their deviation; true mean 0."""
    rng = np.random.default_rng(seed)
    values = np.repeat(rng.normal(0, shared, days), each) + rng.normal(0, 1, days * each)
    return values, np.repeat(np.arange(days) * DAY + 5, each)


def test_intervals_cover_the_value_narrow_with_rows_and_repeat_with_the_seed():
    rng = np.random.default_rng(1)
    widths = []
    for rows in (300, 3000):
        scores = rng.random(rows)
        labels = (rng.random(rows) < scores).astype(int)
        found = estimate(ranked(labels, scores), rows, seed=7)
        assert found == estimate(ranked(labels, scores), rows, seed=7)
        assert found["roc_auc"].low < found["roc_auc"].value < found["roc_auc"].high
        widths.append(found["roc_auc"].high - found["roc_auc"].low)
    assert widths[1] < widths[0] / 2
    # A fifth of the standard error of Hanley and McNeil's formula is room enough for 300 draws.
    assert pytest.approx(widths[1], rel=0.2) == 2 * 1.96 * 0.0089


def test_draws_are_resamples_of_all_cases():
    blocks = np.concatenate(list(draws(70, seed=1)))
    assert blocks.shape == (301, 70)
    assert (blocks[0] == 1).all()
    assert (blocks.sum(axis=1) == 70).all()
    assert blocks[1:].std() > 0.5


def test_days_drawn_together_come_whole():
    together = np.repeat([0, 1, 2], [5, 1, 4])
    for counts in draws(10, 3, together):
        for day in range(3):
            assert (counts[:, together == day].min(axis=1) == counts[:, together == day].max(axis=1)).all()


def test_the_interval_over_days_is_wider_where_the_cases_of_a_day_are_alike():
    values, stamps = alike(14, 200, seed=1)
    days, cases = (estimate(mean_of(values), len(values), 1, each)["mean"] for each in (stamps, None))
    assert days.value == cases.value == pytest.approx(values.mean())
    assert days.high - days.low > 5 * (cases.high - cases.low)


def test_where_days_are_all_alike_the_two_agree():
    values, stamps = alike(40, 100, seed=1, shared=0.0)
    days, cases = (estimate(mean_of(values), len(values), 1, each)["mean"] for each in (stamps, None))
    assert days.high - days.low == pytest.approx(cases.high - cases.low, rel=0.35)


@pytest.mark.parametrize("days", [LEAST_DAYS, 14])
def test_nineteen_of_twenty_intervals_over_days_hold_the_truth(days):
    """Plain percentiles of so few days hold it in 90 and 92 of a hundred."""
    held = []
    for seed in range(600):
        values, stamps = alike(days, 10, seed)
        found = estimate(mean_of(values), len(values), seed, stamps)["mean"]
        held.append(found.low <= 0 <= found.high)
    assert np.mean(held) > 0.93


def test_cases_are_drawn_where_days_are_too_few():
    values, stamps = alike(LEAST_DAYS - 1, 50, seed=1)
    assert days_drawn(stamps) == 0
    found = estimate(mean_of(values), len(values), 1, stamps)["mean"]
    assert found == estimate(mean_of(values), len(values), 1)["mean"]
    assert days_drawn(np.arange(LEAST_DAYS) * DAY) == LEAST_DAYS


def test_days_are_numbered_without_a_gap():
    assert days_of(np.array([3 * DAY + 1, 3 * DAY - 1, 9 * DAY, 3 * DAY])).tolist() == [1, 0, 2, 1]


def test_many_cases_are_sampled_for_the_interval_and_never_for_the_value(monkeypatch):
    monkeypatch.setattr(resampling, "MOST_CASES", 2_000)
    values = np.random.default_rng(1).normal(3, 1, 50_000)
    asked = []

    def metrics(rows):
        asked.append(len(values[rows]))
        return mean_of(values)(rows)

    found = estimate(metrics, len(values), 1)["mean"]
    assert asked == [50_000, 2_000]
    assert found.value == pytest.approx(values.mean())
    width = 2 * stats.norm.ppf(0.975) / np.sqrt(50_000)
    assert found.high - found.low == pytest.approx(width, rel=0.2)
    assert found.low < found.value < found.high


def test_sampled_days_are_never_too_narrow(monkeypatch):
    values, stamps = alike(20, 1_000, seed=2)
    whole = estimate(mean_of(values), len(values), 1, stamps)["mean"]
    monkeypatch.setattr(resampling, "MOST_CASES", 2_000)
    sampled = estimate(mean_of(values), len(values), 1, stamps)["mean"]
    assert sampled.value == pytest.approx(whole.value)
    assert sampled.high - sampled.low == pytest.approx(whole.high - whole.low, rel=0.15)


def test_draws_of_a_single_class_are_left_out_of_the_interval():
    found = estimate(ranked(np.array([0, 0, 1]), np.array([0.1, 0.2, 0.9])), 3, seed=1)["roc_auc"]
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_an_interval_without_a_usable_draw_is_nan():
    assert np.isnan(estimate(ranked(np.array([0, 0]), np.array([0.1, 0.2])), 2, seed=1)["roc_auc"].low)
