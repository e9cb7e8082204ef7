from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from training.metrics import NEVER, Ranked, cheapest_threshold, cost

ORACLES = {
    "roc_auc": roc_auc_score,
    "average_precision": average_precision_score,
    "log_loss": lambda y, p: log_loss(y, np.clip(p, 1e-7, 1 - 1e-7), labels=[0, 1]),
    "brier": brier_score_loss,
}

cases = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), min_size=2, max_size=40).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


@pytest.mark.parametrize("name", ORACLES)
@given(rows=cases, seed=st.integers(0, 99))
@settings(max_examples=40)
def test_metrics_agree_with_scikit_learn_on_every_draw(name, rows, seed):
    labels, scores = np.array([y for y, _ in rows]), np.array([s / 8 for _, s in rows])
    drawn = np.random.default_rng(seed).integers(0, len(rows), len(rows))
    counts = np.bincount(drawn, minlength=len(rows))[None].astype(float)
    ours = Ranked(labels, scores).metric(name)
    assert ours(np.ones((1, len(rows))))[0] == pytest.approx(ORACLES[name](labels, scores))
    if name in ("log_loss", "brier") or len(set(labels[drawn])) == 2:
        assert ours(counts)[0] == pytest.approx(ORACLES[name](labels[drawn], scores[drawn]))
    elif name == "roc_auc":
        assert np.isnan(ours(counts)[0])


def test_calibration_error_of_a_calibrated_and_of_a_shifted_score():
    rng = np.random.default_rng(3)
    scores = rng.random(50_000)
    labels = (rng.random(50_000) < scores).astype(int)
    ones = np.ones((1, 50_000))
    assert Ranked(labels, scores).metric("ece")(ones)[0] < 0.01
    assert Ranked(labels, np.clip(scores + 0.2, 0, 1)).metric("ece")(ones)[0] > 0.15
    assert Ranked(labels, np.full(50_000, 0.25)).metric("ece")(ones)[0] == pytest.approx(abs(labels.mean() - 0.25))


@given(cases, st.floats(0, 10), st.floats(0, 10))
def test_no_threshold_is_cheaper(rows, false_alarm, missed):
    labels, scores = np.array([y for y, _ in rows]), np.array([s / 8 for _, s in rows], np.float32)
    prices = {"false_alarm": false_alarm, "missed": missed}
    chosen = cheapest_threshold(labels, scores, **prices)
    totals = {t: cost(labels, scores >= t, **prices).sum() for t in [*np.arange(9) / 8, NEVER]}
    assert totals[min(totals, key=lambda t: abs(t - chosen))] == pytest.approx(min(totals.values()))


def test_where_alarms_cost_more_than_misses_it_never_acts():
    labels, scores = np.array([0, 1, 0]), np.array([0.2, 0.4, 0.9])
    assert cheapest_threshold(labels, scores, false_alarm=10, missed=1) == NEVER


def test_costs_by_hand():
    each = cost(np.array([0, 0, 1, 1]), np.array([False, True, False, True]), false_alarm=4, missed=15)
    assert each.tolist() == [0, 4, 15, 0]
