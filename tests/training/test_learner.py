from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import learner
from training.calibration import Calibration, fit_calibration
from training.encoding import fit_encoding
from training.frame import Inputs
from training.learner import LearnerError


def fit(params, metric="roc_auc", rows=400, numbers=None):
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(rows, 2)).astype(np.float32) if numbers is None else numbers
    labels = (numbers[:, 0] + rng.normal(size=rows) > 0).astype(np.int8)
    inputs = Inputs(numbers, np.empty((rows, 0), object))
    return learner.fit(inputs, labels, inputs, labels, seed=1, metric=metric, params=params)


def test_parameters_go_by_any_of_their_names():
    fitted = fit({"n_estimators": 3, "eta": 0.3})
    assert fitted.params["num_iterations"] == 3
    assert fitted.params["learning_rate"] == 0.3
    assert "n_estimators" not in fitted.params
    assert len(fitted.trees) == 3


def test_a_parameter_with_a_typo_is_named_with_its_neighbour():
    with pytest.raises(LearnerError, match="'num_leafs'") as error:
        fit({"num_leafs": 3})
    assert "did you mean 'num_leaf" in error.value.hint or "did you mean 'num_leaves'" in error.value.hint


def test_a_parameter_like_no_other_points_to_the_list():
    with pytest.raises(LearnerError) as error:
        fit({"zzzzzzzz": 3})
    assert "list of parameters" in error.value.hint


@pytest.mark.parametrize(
    "name", ["seed", "random_state", "n_jobs", "objective", "metric", "linear_tree", "deterministic"]
)
def test_what_makes_a_model_repeatable_cannot_be_set(name):
    with pytest.raises(LearnerError, match=repr(name)):
        fit({name: 1})


def test_what_lightgbm_refuses_is_said():
    with pytest.raises(LearnerError, match="LightGBM refuses"):
        fit({"num_leaves": -3})


def test_an_averaging_forest_is_refused():
    with pytest.raises(LearnerError, match="boosting = rf"):
        fit({"boosting": "rf", "bagging_fraction": 0.5, "bagging_freq": 1})


def test_boosting_stops_where_validation_stops_improving():
    rng = np.random.default_rng(0)

    def drawn():
        numbers = rng.normal(size=(400, 2)).astype(np.float32)
        return Inputs(numbers, np.empty((400, 0), object)), (numbers[:, 0] + rng.normal(size=400) > 0).astype(np.int8)

    params = {"num_iterations": 500, "early_stopping_round": 5, "min_data_in_leaf": 5}
    fitted = learner.fit(*drawn(), *drawn(), seed=1, metric="log_loss", params=params)
    assert 0 < len(fitted.trees) < 500


def test_features_without_information_give_the_base_rate():
    fitted = fit({"num_iterations": 5}, numbers=np.ones((400, 2), np.float32))
    scores = fitted.scores(Inputs(np.ones((2, 2), np.float32), np.empty((2, 0), object)))
    base_rate = 0.84  # noise above -1
    assert scores == pytest.approx([base_rate, base_rate], abs=0.04)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.1, np.nextafter(np.float32(0.1), np.float32(0))),
        (0.5, np.float32(0.5)),
        (1e300, np.finfo(np.float32).max),
        (-1.0000000180025095e-35, np.nextafter(np.float32(-1e-35), np.float32(-1))),
    ],
)
def test_thresholds_are_rounded_down(threshold, expected):
    assert learner._float32_below(threshold) == float(expected)


@given(st.floats(-1e30, 1e30), st.floats(-(2.0**99), 2.0**99, width=32))
def test_a_rounded_threshold_divides_float32_as_the_double_did(threshold, x):
    if abs(threshold) > 1e-30:
        assert (np.float32(x) <= np.float32(learner._float32_below(threshold))) == (float(x) <= threshold)


class TestEncoding:
    def test_codes_rise_with_the_rate_of_positives(self):
        texts = np.array(["low"] * 100 + ["high"] * 100 + ["mid"] * 100, object)
        labels = np.r_[np.zeros(90), np.ones(10), np.zeros(10), np.ones(90), np.zeros(50), np.ones(50)]
        encoding = fit_encoding(texts, labels)
        assert sorted(encoding.codes, key=encoding.codes.__getitem__) == ["low", "mid", "high"]
        assert encoding.codes["low"] < encoding.unseen < encoding.codes["high"]

    def test_rare_texts_are_as_if_never_seen(self):
        encoding = fit_encoding(np.array(["often"] * 20 + ["once"], object), np.arange(21) % 2)
        assert set(encoding.codes) == {"often"}
        assert encoding.apply(np.array(["once", "never", "often"], object)).tolist() == [
            encoding.unseen,
            encoding.unseen,
            0.0,
        ]

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1)), min_size=1, max_size=80), st.randoms())
    def test_the_order_of_rows_does_not_matter(self, rows, random):
        shuffled = list(rows)
        random.shuffle(shuffled)
        one, other = (
            fit_encoding(np.array([t for t, _ in each], object), np.array([y for _, y in each]))
            for each in (rows, shuffled)
        )
        assert one == other


class TestCalibration:
    def test_finds_the_sigmoid_that_made_the_labels(self):
        rng = np.random.default_rng(0)
        margins = rng.normal(size=200_000)
        labels = rng.random(200_000) < 1 / (1 + np.exp(-(0.5 * margins - 1)))
        found = fit_calibration(margins, labels.astype(int))
        assert found.slope == pytest.approx(0.5, abs=0.02)
        assert found.offset == pytest.approx(-1, abs=0.02)

    def test_brings_the_mean_score_to_the_base_rate(self):
        rng = np.random.default_rng(1)
        margins = rng.normal(size=5000) * 3
        labels = (margins + rng.normal(size=5000) > 3).astype(int)
        assert fit_calibration(margins, labels).apply(margins).mean() == pytest.approx(labels.mean(), abs=1e-3)

    def test_separable_labels_still_end(self):
        found = fit_calibration(np.r_[-np.ones(50), np.ones(50)], np.r_[np.zeros(50), np.ones(50)])
        assert found.slope > 1
        assert found.apply(np.array([-1.0, 1.0])) == pytest.approx([1 / 52, 51 / 52], abs=1e-4)

    def test_never_turns_the_ranking_round(self):
        margins = np.linspace(-1, 1, 100)
        assert fit_calibration(margins, (margins < 0).astype(int)) == Calibration(1.0, 0.0)

    def test_a_constant_margin_gets_the_base_rate(self):
        labels = np.r_[np.zeros(300), np.ones(100)]
        assert fit_calibration(np.zeros(400), labels).apply(np.zeros(1))[0] == pytest.approx(0.25, abs=0.01)

    @given(st.floats(-800, 800))
    def test_extreme_margins_stay_probabilities(self, margin):
        assert 0 <= Calibration(1.0, 0.0).apply(np.array([margin]))[0] <= 1
