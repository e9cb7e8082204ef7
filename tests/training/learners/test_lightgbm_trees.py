from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.scorer import Scorer
from training.frame import Inputs
from training.learners import lightgbm_trees
from training.learners.protocol import LearnerError, Part, Problem


def fit(params, metric="roc_auc", rows=400, numbers=None):
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(rows, 2)).astype(np.float32) if numbers is None else numbers
    labels = (numbers[:, 0] + rng.normal(size=rows) > 0).astype(np.int8)
    part = Part(Inputs(numbers, np.empty((rows, 0), object)), labels)
    return lightgbm_trees.fit(Problem(kind="binary", metric=metric, seed=1), part, part, params)


def test_parameters_go_by_any_of_their_names():
    fitted = fit({"n_estimators": 3, "eta": 0.3})
    assert fitted.params["num_iterations"] == 3
    assert fitted.params["learning_rate"] == 0.3
    assert "n_estimators" not in fitted.params
    assert fitted.size == {"trees": 3}


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
        labels = (numbers[:, 0] + rng.normal(size=400) > 0).astype(np.int8)
        return Part(Inputs(numbers, np.empty((400, 0), object)), labels)

    params = {"num_iterations": 500, "early_stopping_round": 5, "min_data_in_leaf": 5}
    fitted = lightgbm_trees.fit(Problem(kind="binary", metric="log_loss", seed=1), drawn(), drawn(), params)
    assert 0 < fitted.size["trees"] < 500


def test_features_without_information_give_the_base_rate():
    fitted = fit({"num_iterations": 5}, numbers=np.ones((400, 2), np.float32))
    scores = fitted.native(Inputs(np.ones((2, 2), np.float32), np.empty((2, 0), object)))[:, 0]
    base_rate = 0.84  # noise above -1
    assert scores == pytest.approx([base_rate, base_rate], abs=0.04)


@pytest.mark.parametrize("boosting", ["gbdt", "dart"])
def test_other_boostings_package_alike(boosting):
    fitted = fit({"boosting": boosting, "num_iterations": 20, "min_data_in_leaf": 10}, rows=2000)
    numbers = np.random.default_rng(8).normal(size=(2000, 2)).astype(np.float32)
    native = fitted.native(Inputs(numbers, np.empty((2000, 0), object)))
    assert np.abs(Scorer(fitted.model).predict(numbers) - native).max() < 1e-6


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.1, np.nextafter(np.float32(0.1), np.float32(0))),
        (0.5, np.float32(0.5)),
        (1e299, np.finfo(np.float32).max),
        (1e300, np.inf),
        (-1.0000000180025095e-35, np.nextafter(np.float32(-1e-35), np.float32(-1))),
    ],
)
def test_thresholds_are_rounded_down(threshold, expected):
    assert lightgbm_trees._float32_below(threshold) == float(expected)


@given(st.floats(-1e30, 1e30), st.floats(-(2.0**99), 2.0**99, width=32))
def test_a_rounded_threshold_divides_float32_as_the_double_did(threshold, x):
    if abs(threshold) > 1e-30:
        assert (np.float32(x) <= np.float32(lightgbm_trees._float32_below(threshold))) == (float(x) <= threshold)


@pytest.mark.parametrize("categories", [3, 200])
def test_a_split_on_a_set_of_categories_is_packaged_exactly(categories):
    """Outcomes hang on a hidden effect of each category, so sets are what trees split on; five were never seen."""
    effects = np.random.default_rng(5).normal(size=categories + 5)

    def drawn(rows, count, seed):
        rng = np.random.default_rng(seed)
        codes = rng.integers(0, count, rows)
        labels = (rng.random(rows) < 1 / (1 + np.exp(-2 * effects[codes]))).astype(np.int8)
        texts = np.array([f"c{code}" for code in codes], object)
        texts[::50] = ""
        return Part(Inputs(rng.normal(size=(rows, 1)).astype(np.float32), texts[:, None]), labels)

    params = {"num_iterations": 20, "min_data_in_leaf": 5, "min_data_per_group": 5}
    train, validation = drawn(6000, categories, 1), drawn(2000, categories, 2)
    fitted = lightgbm_trees.fit(Problem(kind="binary", metric="roc_auc", seed=1), train, validation, params)
    assert b"outside_0" in fitted.model
    asked = drawn(5000, categories + 5, 3).inputs
    packaged = Scorer(fitted.model).score(asked.numbers, asked.texts)
    assert packaged == pytest.approx(fitted.native(asked)[:, 0], abs=1e-6)
    assert len(np.unique(packaged)) > categories / 4
