"""What every learner must show, whatever is inside it; then the same on rows of a known world.

The suite knows a learner by its name alone: a new one in the catalogue is under test from that moment on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import pytest

from contracts.scorer import Scorer
from training.evaluation import parity
from training.frame import Inputs
from training.learners.catalogue import LEARNERS, find_learner
from training.learners.protocol import Fitted, LearnerError, Part, Problem

TEXTS = np.array(["a", "b", "c", "dd", "", "rare"], object)
BINARY = Problem(kind="binary", metric="roc_auc", seed=7)
REGRESSION = Problem(kind="regression", metric="mae", quantiles=(0.1, 0.5, 0.9), seed=7)
QUICK = {
    "lightgbm": {"num_iterations": 60, "min_data_in_leaf": 20},
    "sklearn_boosting": {"max_iter": 40, "min_samples_leaf": 20},
    "sklearn_linear": {},
    "torch_sequence": {"epochs": 12, "batch_rows": 128},
}
DRAWS = {"lightgbm", "sklearn_boosting", "torch_sequence"}
"""Learners that sample rows or features: another seed is another model. The others find the one optimum."""
TOLERANCE = 1e-5


def world(problem: Problem, rows: int, seed: int) -> Part:
    """Numbers with nulls (one column without), two texts, one constant column; the label follows some of each."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(rows, 5)).astype(np.float32)
    numbers[:, 4] = 3
    numbers[:, :3][rng.random((rows, 3)) < 0.1] = np.nan
    texts = TEXTS[rng.choice(len(TEXTS), size=(rows, 2), p=[0.3, 0.3, 0.2, 0.1, 0.099, 0.001])]
    margin = np.nan_to_num(numbers[:, 0]) + numbers[:, 3] * 0.5 + (texts[:, 0] == "b") - 0.5
    if problem.kind == "binary":
        return Part(Inputs(numbers, texts), (rng.random(rows) < 1 / (1 + np.exp(-margin))).astype(np.int8))
    return Part(Inputs(numbers, texts), 20 * margin + rng.exponential(15, rows))


def fit(name: str, problem: Problem, *, rows: int = 4000, train: Part | None = None) -> Fitted:
    return find_learner(name)(problem, train or world(problem, rows, 1), world(problem, 1500, 2), QUICK[name])


def splits(model: bytes) -> Iterator[tuple[int, float]]:
    """Every (number feature, threshold) of the trees in a graph; none where there are no trees."""
    for node in onnx.load_from_string(model).graph.node:
        if node.op_type == "TreeEnsembleRegressor":
            found = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            for mode, feature, threshold in zip(
                found["nodes_modes"], found["nodes_featureids"], found["nodes_values"], strict=True
            ):
                if mode != b"LEAF" and feature < 5:
                    yield feature, threshold


def tables(model: bytes) -> list[onnx.NodeProto]:
    """What each text is turned into."""
    return [node for node in onnx.load_from_string(model).graph.node if node.op_type == "LabelEncoder"]


@pytest.fixture(scope="module", params=sorted(LEARNERS))
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "torch_sequence":
        pytest.importorskip("torch", reason="the extra 'sequences' is not installed: see CONTRIBUTING.md")
    return request.param


@pytest.fixture(scope="module", params=[BINARY, REGRESSION], ids=["binary", "regression"])
def problem(request: pytest.FixtureRequest) -> Problem:
    return request.param


@pytest.fixture(scope="module")
def fitted(name: str, problem: Problem) -> Fitted:
    return fit(name, problem)


@pytest.fixture(scope="module")
def scorer(fitted: Fitted) -> Scorer:
    return Scorer(fitted.model)


def apart(fitted: Fitted, scorer: Scorer, inputs: Inputs) -> float:
    return parity(scorer.predict(inputs.numbers, inputs.texts), fitted.native(inputs))


def test_the_suite_has_parameters_for_every_learner():
    assert set(QUICK) == set(LEARNERS)
    assert set(DRAWS) <= set(LEARNERS)


def test_it_learns_what_there_is(problem, scorer):
    later = world(problem, 3000, 3)
    answers = scorer.predict(later.inputs.numbers, later.inputs.texts)
    if problem.kind == "binary":
        assert answers.shape == (3000, 1)
        assert answers[later.labels == 1].mean() > answers[later.labels == 0].mean() + 0.15
        assert answers.mean() == pytest.approx(later.labels.mean(), abs=0.03)
    else:
        assert answers.shape == (3000, 4)
        naive = np.abs(later.labels - np.median(later.labels)).mean()
        assert np.abs(answers[:, 0] - later.labels).mean() < 0.75 * naive
        assert (later.labels[:, None] <= answers[:, 1:]).mean(axis=0) == pytest.approx(problem.quantiles, abs=0.04)
        assert (np.diff(answers[:, 1:], axis=1) >= 0).all()


def test_packaged_is_native(problem, fitted, scorer):
    assert (scorer.numbers, scorer.texts, scorer.quantiles) == (5, 2, len(problem.quantiles))
    assert apart(fitted, scorer, world(problem, 3000, 4).inputs) < TOLERANCE


def test_packaged_is_native_where_rounding_would_show(problem, fitted, scorer):
    """On every threshold and the floats beside it, at infinities, nulls, and all that is nearly zero or very large."""
    rng = np.random.default_rng(5)
    inputs, on = world(problem, 6000, 5).inputs, list(splits(fitted.model))
    odd = [0.0, -0.0, 1e-38, -1e-38, 1e-35, -1e-35, 2e-35, -2e-35, 1e-45, 3e38, -3e38, np.nan, np.inf, -np.inf]
    for row in inputs.numbers:
        row[rng.integers(5)] = rng.choice(odd)
        for at in rng.integers(len(on), size=3) if on else []:
            feature, threshold = on[at]
            bound = np.float32(threshold)
            row[feature] = rng.choice([bound, np.nextafter(bound, np.float32(9)), np.nextafter(bound, np.float32(-9))])
    assert apart(fitted, scorer, inputs) < TOLERANCE


def test_nothing_but_nulls_is_answered(problem, fitted, scorer):
    inputs = world(problem, 200, 6).inputs
    inputs.numbers[:] = np.nan
    inputs.texts[:] = ""
    answers = scorer.predict(inputs.numbers, inputs.texts)
    assert np.isfinite(answers).all()
    assert len(np.unique(answers, axis=0)) == 1
    assert apart(fitted, scorer, inputs) < TOLERANCE


def test_texts_never_seen_are_all_alike(problem, fitted, scorer):
    inputs = world(problem, 1, 7).inputs
    numbers, texts = inputs.numbers.repeat(3, axis=0), inputs.texts.repeat(3, axis=0)
    texts[:, 0] = ["zz", "née ☂", "rare"]
    assert len(np.unique(scorer.predict(numbers, texts), axis=0)) == 1
    assert apart(fitted, scorer, Inputs(numbers, texts)) < TOLERANCE


def test_rows_do_not_know_of_each_other(problem, scorer):
    inputs = world(problem, 300, 8).inputs
    whole = scorer.predict(inputs.numbers, inputs.texts)
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_allclose(
        scorer.predict(inputs.numbers[order], inputs.texts[order]), whole[order], rtol=1e-6, atol=1e-6
    )
    alone = [scorer.predict(inputs.numbers[at : at + 1], inputs.texts[at : at + 1])[0] for at in range(300)]
    np.testing.assert_allclose(np.stack(alone), whole, rtol=1e-6, atol=1e-6)
    nothing = scorer.predict(np.empty((0, 5), np.float32), np.empty((0, 2), object))
    assert nothing.shape == (0, whole.shape[1])


def test_equal_rows_and_seed_give_equal_bytes(name, problem, fitted):
    assert fit(name, problem).model == fitted.model


def test_the_seed_matters_where_something_is_drawn(name, problem, fitted):
    assert (fit(name, replace(problem, seed=8)).model != fitted.model) == (name in DRAWS)


def test_the_threads_do_not_matter(name, problem):
    one, two = (fit(name, replace(problem, threads=threads), rows=1000) for threads in (1, 2))
    assert one.model == two.model


def test_transforms_and_model_are_fitted_on_the_training_rows_alone(name, problem):
    """Validation rows that differ only in what no label goes with leave every fitted transform as it was."""
    train, validation = world(problem, 1000, 1), world(problem, 500, 2)
    changed = Part(Inputs(validation.inputs.numbers.copy(), validation.inputs.texts.copy()), validation.labels)
    changed.inputs.numbers[:, 4] = 1e6  # constant in training: no learner may have a use for it
    changed.inputs.texts[:, 1] = np.where(changed.inputs.texts[:, 1] == "", "never in training", "")
    learner, params = find_learner(name), {**QUICK[name]}
    one, other = (learner(problem, train, part, params) for part in (validation, changed))
    tables = [
        [n for n in onnx.load_from_string(f.model).graph.node if n.op_type == "LabelEncoder"] for f in (one, other)
    ]
    assert tables[0] == tables[1]
    assert all(feature != 4 for feature, _ in splits(one.model))


def test_numbers_alone_and_texts_alone(name, problem):
    for cut in (lambda i: Inputs(i.numbers, i.texts[:, :0]), lambda i: Inputs(i.numbers[:, :0], i.texts)):
        train, validation = world(problem, 1000, 1), world(problem, 500, 2)
        one, other = (Part(cut(part.inputs), part.labels) for part in (train, validation))
        fitted = find_learner(name)(problem, one, other, QUICK[name])
        scorer = Scorer(fitted.model)
        assert apart(fitted, scorer, other.inputs) < TOLERANCE


def test_a_squared_error_aims_at_the_mean(name):
    problem = replace(REGRESSION, metric="rmse", quantiles=())
    train = world(problem, 4000, 1)
    fitted, later = fit(name, problem, train=train), world(problem, 3000, 3)
    answers = Scorer(fitted.model).predict(later.inputs.numbers, later.inputs.texts)
    assert answers.shape == (3000, 1)
    assert answers.mean() == pytest.approx(later.labels.mean(), abs=1.5)
    median = fit(name, replace(problem, metric="mae"), train=train)
    assert median.native(later.inputs).mean() < answers.mean() - 1  # the labels lean to the right


def test_a_parameter_with_a_typo_is_named(name):
    near = next(iter(QUICK[name]), "penalty")
    with pytest.raises(LearnerError, match=f"'{near}s'") as error:
        find_learner(name)(BINARY, world(BINARY, 200, 1), world(BINARY, 200, 2), {near + "s": 3})
    assert f"did you mean '{near}'" in error.value.hint


def test_a_parameter_out_of_range_is_refused(name):
    bad = {"lightgbm": "num_leaves", "sklearn_boosting": "max_iter", "sklearn_linear": "penalty"}.get(name, "epochs")
    with pytest.raises(LearnerError):
        find_learner(name)(BINARY, world(BINARY, 200, 1), world(BINARY, 200, 2), {bad: -3})
