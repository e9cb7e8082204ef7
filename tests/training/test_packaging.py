from __future__ import annotations

import numpy as np
import pytest

from contracts.scorer import Scorer, ScorerError
from training import learner
from training.calibration import Calibration
from training.encoding import fit_encoding
from training.frame import Inputs
from training.packaging import Tree, package

PARAMS = {"num_iterations": 80, "min_data_in_leaf": 10}
TEXTS = ["a", "b", "c", "dd", "", "rare"]


def world(rows, seed):
    """Three number features with nulls, one without, two texts; the label follows one of each."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(rows, 4)).astype(np.float32)
    numbers[:, :3][rng.random((rows, 3)) < 0.1] = np.nan
    texts = rng.choice(TEXTS, size=(rows, 2), p=[0.3, 0.3, 0.2, 0.1, 0.099, 0.001]).astype(object)
    margin = np.nan_to_num(numbers[:, 0]) + numbers[:, 3] * 0.5 + (texts[:, 0] == "b") - 0.5
    return Inputs(numbers, texts), (rng.random(rows) < 1 / (1 + np.exp(-margin))).astype(np.int8)


def fit(params=PARAMS, seed=7, rows=8000):
    (train, train_labels), (validation, validation_labels) = world(rows, 1), world(2000, 2)
    return learner.fit(train, train_labels, validation, validation_labels, seed=seed, metric="roc_auc", params=params)


def pack(fitted):
    return package(fitted.trees, fitted.encodings, fitted.calibration, numbers=4)


@pytest.fixture(scope="module")
def fitted():
    return fit()


@pytest.fixture(scope="module")
def scorer(fitted):
    return Scorer(pack(fitted))


def difference(fitted, scorer, inputs):
    return float(np.abs(scorer.score(inputs.numbers, inputs.texts) - fitted.scores(inputs)).max())


def test_scores_are_the_learners_own(fitted, scorer):
    assert scorer.numbers == 4
    assert scorer.texts == 2
    inputs, labels = world(3000, 3)
    scores = scorer.score(inputs.numbers, inputs.texts)
    assert scores.shape == (3000,)
    assert scores.dtype == np.float32
    assert difference(fitted, scorer, inputs) < 1e-6
    assert scores[labels == 1].mean() > scores[labels == 0].mean() + 0.1


def test_scores_agree_where_rounding_would_show(fitted, scorer):
    """On every threshold and the floats beside it, at nulls, infinities and all that is nearly zero."""
    rng = np.random.default_rng(4)
    splits = [
        (feature, threshold)
        for tree in fitted.trees
        for mode, feature, threshold in zip(tree.modes, tree.features, tree.thresholds, strict=True)
        if mode == "BRANCH_LEQ" and feature < 4
    ]
    inputs, _ = world(20_000, 5)
    nearly_zero = [0.0, -0.0, 1e-38, -1e-38, 1e-35, -1e-35, 2e-35, -2e-35, 1e-45]
    for row in inputs.numbers:
        for at in rng.integers(len(splits), size=4):
            feature, threshold = splits[at]
            on = np.float32(threshold)
            beside = [on, np.nextafter(on, np.float32(9)), np.nextafter(on, np.float32(-9))]
            row[feature] = rng.choice([*beside * 3, *nearly_zero, np.nan, np.inf, -np.inf])
    assert difference(fitted, scorer, inputs) < 1e-6


def test_missing_values_where_training_had_none(fitted, scorer):
    inputs, _ = world(500, 6)
    inputs.numbers[:] = np.nan
    assert difference(fitted, scorer, inputs) < 1e-6
    inputs.numbers[:, 3] = 0
    assert difference(fitted, scorer, inputs) < 1e-6


def test_a_text_never_seen_is_no_error(fitted, scorer):
    inputs, _ = world(300, 7)
    inputs.texts[:100, 0], inputs.texts[100:200, 0], inputs.texts[200:, 0] = "zz", "yy", "née ☂"
    assert difference(fitted, scorer, inputs) < 1e-6
    same_row = inputs.numbers[:1].repeat(3, axis=0)
    texts = inputs.texts[:1].repeat(3, axis=0)
    texts[:, 0] = ["zz", "yy", "née ☂"]
    assert len(set(scorer.score(same_row, texts).tolist())) == 1


def test_no_rows_no_scores(scorer):
    assert scorer.score(np.empty((0, 4), np.float32), np.empty((0, 2), object)).shape == (0,)


def test_equal_rows_and_seed_give_equal_bytes(fitted):
    assert pack(fit()) == pack(fitted)


def test_the_seed_matters(fitted):
    assert pack(fit(seed=8)) != pack(fitted)


def test_the_threads_do_not_matter(fitted, monkeypatch):
    monkeypatch.setitem(learner._FIXED, "num_threads", 1)
    assert pack(fit()) == pack(fitted)


@pytest.mark.parametrize("boosting", ["gbdt", "dart"])
def test_other_boostings_package_alike(boosting):
    other = fit({**PARAMS, "boosting": boosting}, rows=2000)
    assert difference(other, Scorer(pack(other)), world(2000, 8)[0]) < 1e-6


def test_numbers_alone_need_no_texts():
    train, labels = world(1000, 1)
    train = Inputs(train.numbers, train.texts[:, :0])
    fitted = learner.fit(train, labels, train, labels, seed=1, metric="brier", params=PARAMS)
    scorer = Scorer(pack(fitted))
    assert scorer.texts == 0
    assert np.abs(scorer.score(train.numbers) - fitted.scores(train)).max() < 1e-6


def test_texts_alone_need_no_numbers():
    train, labels = world(2000, 1)
    train = Inputs(train.numbers[:, :0], train.texts)
    fitted = learner.fit(train, labels, train, labels, seed=1, metric="log_loss", params=PARAMS)
    scorer = Scorer(package(fitted.trees, fitted.encodings, fitted.calibration, numbers=0))
    assert np.abs(scorer.score(train.numbers, train.texts) - fitted.scores(train)).max() < 1e-6


def test_a_tree_that_never_split_answers_one_value():
    tree = Tree()
    tree.add_leaf(0.5, parent=-1, is_left=True)
    encoding = fit_encoding(np.array(["x"] * 3, object), np.array([0, 1, 1]))
    scorer = Scorer(package([tree], [encoding], Calibration(2.0, -1.0), numbers=1))
    assert scorer.score(np.zeros((2, 1), np.float32), np.array([["x"], ["y"]], object)).tolist() == [0.5, 0.5]


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(ScorerError, match="cannot load"):
        Scorer(path)


def test_a_graph_of_another_shape_is_refused():
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in ("x", "score")]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["score"])], "other", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ScorerError, match=r"inputs \['x'\]"):
        Scorer(model.SerializeToString())
