from __future__ import annotations

import numpy as np
import pytest

from contracts.scorer import Scorer
from training.calibration import Calibration, Shifts
from training.encoding import fit_categories, fit_encoding
from training.packaging import Graph, Tree, float32_below, package_trees


def leaf(value):
    tree = Tree()
    tree.add_leaf(value, parent=-1, is_left=True)
    return tree


def test_a_tree_that_never_split_answers_one_value():
    encoding = fit_encoding(np.array(["x"] * 3, object), np.array([0, 1, 1]))
    scorer = Scorer(package_trees([[leaf(0.5)]], [encoding], Calibration(2.0, -1.0), numbers=1))
    assert scorer.score(np.zeros((2, 1), np.float32), np.array([["x"], ["y"]], object)).tolist() == [0.5, 0.5]


def test_each_output_sums_its_own_trees():
    ensembles = [[leaf(1.0), leaf(2.0)], [leaf(9.0)], [leaf(4.0), leaf(-1.0)]]
    scorer = Scorer(package_trees(ensembles, [], Shifts((0.0, 0.5, 0.0)), numbers=1))
    assert scorer.quantiles == 2
    assert scorer.predict(np.zeros((2, 1), np.float32)).tolist() == [[3.0, 3.0, 9.5]] * 2
    assert scorer.score(np.zeros((1, 1), np.float32)).tolist() == [3.0]


def test_a_value_without_quantiles_is_one_output():
    scorer = Scorer(package_trees([[leaf(1.5)]], [], Shifts((0.0,)), numbers=1))
    assert scorer.quantiles == 0
    assert scorer.predict(np.zeros((1, 1), np.float32)).tolist() == [[1.5]]


def test_a_set_of_texts_is_one_comparison():
    """Three trees over two text features, one of which nobody chooses by; two of them share a set."""
    encodings = [fit_categories(np.repeat(np.array(texts, object), 10)) for texts in (["x"], ["a", "b", "c", ""])]
    codes = encodings[1].codes
    trees = []
    for chosen, value in ((["b"], 1.0), (["a", ""], 10.0), (["b"], 100.0)):
        tree = Tree()
        at = tree.add_choice(1, [int(codes[text]) for text in chosen], parent=-1, is_left=True)
        tree.add_leaf(value, parent=at, is_left=True)
        tree.add_leaf(0.0, parent=at, is_left=False)
        trees.append(tree)
    scorer = Scorer(package_trees([trees], encodings, Shifts((0.0,)), numbers=1))
    asked = np.array([["x", each] for each in ("a", "b", "c", "", "never seen")], object)
    assert scorer.score(np.zeros((5, 1), np.float32), asked).tolist() == [10, 101, 0, 10, 0]


def test_a_table_answers_its_default_for_the_rest():
    graph = Graph(Shifts((0.0,)), numbers=0, texts=1)
    scorer = Scorer(graph.finish(graph.look_up(graph.text(0), "found", {"x": 2.0, "": 3.0}, -1.0)))
    assert scorer.score(np.empty((3, 0), np.float32), np.array([["x"], [""], ["née"]], object)).tolist() == [2, 3, -1]


@pytest.mark.parametrize(
    ("double", "single"),
    [(0.5, 0.5), (1e300, np.finfo(np.float32).max), (np.inf, np.inf), (-np.inf, -np.inf), (0.1, 0.099999994)],
)
def test_a_double_becomes_the_float32_at_or_below_it(double, single):
    assert float32_below(double) == float(np.float32(single))
    assert np.float32(float32_below(double)) == float32_below(double)
