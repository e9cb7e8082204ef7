from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.calibration import Calibration, Shifts, fit_calibration, fit_shifts


def test_finds_the_sigmoid_that_made_the_labels():
    rng = np.random.default_rng(0)
    margins = rng.normal(size=200_000)
    labels = rng.random(200_000) < 1 / (1 + np.exp(-(0.5 * margins - 1)))
    found = fit_calibration(margins, labels.astype(int))
    assert found.slope == pytest.approx(0.5, abs=0.02)
    assert found.offset == pytest.approx(-1, abs=0.02)


def test_brings_the_mean_score_to_the_base_rate():
    rng = np.random.default_rng(1)
    margins = rng.normal(size=5000) * 3
    labels = (margins + rng.normal(size=5000) > 3).astype(int)
    assert fit_calibration(margins, labels).apply(margins).mean() == pytest.approx(labels.mean(), abs=1e-3)


def test_separable_labels_still_end():
    found = fit_calibration(np.r_[-np.ones(50), np.ones(50)], np.r_[np.zeros(50), np.ones(50)])
    assert found.slope > 1
    assert found.apply(np.array([-1.0, 1.0])) == pytest.approx([1 / 52, 51 / 52], abs=1e-4)


def test_never_turns_the_ranking_round():
    margins = np.linspace(-1, 1, 100)
    assert fit_calibration(margins, (margins < 0).astype(int)) == Calibration(1.0, 0.0)


def test_a_constant_margin_gets_the_base_rate():
    labels = np.r_[np.zeros(300), np.ones(100)]
    assert fit_calibration(np.zeros(400), labels).apply(np.zeros(1))[0] == pytest.approx(0.25, abs=0.01)


@given(st.floats(-800, 800))
def test_extreme_margins_stay_probabilities(margin):
    assert 0 <= Calibration(1.0, 0.0).apply(np.array([margin]))[0] <= 1


def test_a_moved_quantile_has_its_level():
    rng = np.random.default_rng(2)
    labels, raw = rng.normal(size=10_000), np.zeros((10_000, 3))
    shifts = fit_shifts(raw, labels, (0.2, 0.9))
    assert shifts.offsets[0] == 0
    assert (labels[:, None] <= shifts.apply(raw)[:, 1:]).mean(axis=0) == (pytest.approx([0.2, 0.9], abs=1e-3))


def test_quantiles_that_cross_are_put_in_order():
    answers = Shifts((0.0, 1.0, -1.0)).apply(np.array([[5.0, 3.0, 3.0], [5.0, 0.0, 9.0]]))
    assert answers.tolist() == [[5.0, 2.0, 4.0], [5.0, 1.0, 8.0]]
