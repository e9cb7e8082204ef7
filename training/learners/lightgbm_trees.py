"""Training's door to LightGBM: rows in, trees out, the same trees for the same rows and seed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

import lightgbm as lgb
import numpy as np

from training.encoding import TextEncoding, fit_categories
from training.frame import Inputs
from training.learners.protocol import Fitted, LearnerError, Part, Problem, fit_head
from training.packaging import Tree, float32_below, package_trees

DEFAULTS: dict[str, Any] = {
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "num_iterations": 1000,
    "early_stopping_round": 50,
}
_FIXED: dict[str, Any] = {
    # Bit-equal trees: the sums behind a split must be taken in one order, whatever the machine.
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
_NOT_FREE = {
    *_FIXED,
    *("objective", "alpha", "num_threads", "metric", "seed", "categorical_feature", "zero_as_missing", "linear_tree"),
}
_METRICS = {
    "roc_auc": "auc",
    "average_precision": "average_precision",
    "log_loss": "binary_logloss",
    "brier": "binary_logloss",
    "mae": "l1",
    "rmse": "l2",
    "pinball": "l1",
}
_READ_AS_ZERO = np.float32(1e-35)
_DUMPED_INFINITY = 1e300


def fit(problem: Problem, train: Part, validation: Part, params: Mapping[str, Any]) -> Fitted:
    """Boost on the training rows, one ensemble an output; stop and calibrate on the validation rows.

    Args:
        problem: what is to be learned.
        train: fitted on, text encodings included.
        validation: watched for early stopping, and what the head is fitted on.
        params: LightGBM's, by any of their names, over `DEFAULTS`.

    Raises:
        LearnerError: a parameter is unknown, fixed for reproducibility, or refused.
    """
    used = {**DEFAULTS, **_canonical(params), **_FIXED, "num_threads": problem.threads, "seed": problem.seed}
    encodings = tuple(fit_categories(column) for column in train.inputs.texts.T)
    matrices = tuple(_matrix(part.inputs, encodings) for part in (train, validation))
    numbers = train.inputs.numbers.shape[1]
    categories = list(range(numbers, numbers + len(encodings)))
    try:
        boosters = [
            _boost({**used, **goal}, matrices, (train.labels, validation.labels), categories)
            for goal in _objectives(problem)
        ]
    except lgb.basic.LightGBMError as error:
        raise LearnerError(f"LightGBM refuses: {error}", hint="check training.params in the task.") from error

    def raw(inputs: Inputs) -> np.ndarray:
        matrix = _matrix(inputs, encodings)
        return np.column_stack([np.asarray(each.predict(matrix, raw_score=True)) for each in boosters])

    head = fit_head(problem, raw(validation.inputs), validation.labels)
    ensembles = [_trees(booster, numbers) for booster in boosters]
    return Fitted(
        model=package_trees(ensembles, encodings, head, numbers=numbers),
        head=head,
        raw=raw,
        params={**used, **_objectives(problem)[0]},
        size={"trees": sum(map(len, ensembles))},
    )


def _objectives(problem: Problem) -> list[dict[str, Any]]:
    """What each output's ensemble is boosted towards, and the metric it stops by."""
    watched = _METRICS[problem.metric]
    if problem.kind == "binary":
        return [{"objective": "binary", "metric": watched}]
    levels = [{"objective": "quantile", "metric": "quantile", "alpha": level} for level in problem.quantiles]
    return [{"objective": "regression" if watched == "l2" else "regression_l1", "metric": watched}, *levels]


def _boost(
    params: dict[str, Any], matrices: tuple[np.ndarray, ...], labels: tuple[np.ndarray, ...], categories: list[int]
) -> lgb.Booster:
    rounds = int(params["num_iterations"])
    boosting = {name: value for name, value in params.items() if name != "num_iterations"}
    data = lgb.Dataset(matrices[0], labels[0], params=boosting, categorical_feature=categories)
    booster = lgb.train(boosting, data, rounds, valid_sets=[data.create_valid(matrices[1], labels[1])])
    if not booster.best_iteration:
        booster.best_iteration = booster.current_iteration()
    return booster


def _matrix(inputs: Inputs, encodings: tuple[TextEncoding, ...]) -> np.ndarray:
    """float32 [N, n + t], numbers before texts, as in the packaged graph."""
    codes = [encoding.apply(column) for encoding, column in zip(encodings, inputs.texts.T, strict=True)]
    return np.column_stack([inputs.numbers, *codes]) if codes else inputs.numbers


def _canonical(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters under LightGBM's first names, each known and free to be set."""
    known: dict[str, list[str]] = lgb.basic._ConfigAliases._get_all_param_aliases()
    names = {alias: name for name, aliases in known.items() for alias in [name, *aliases]}
    for given in params:
        if given not in names:
            near = difflib.get_close_matches(given, names, n=1)
            raise LearnerError(
                f"training.params names {given!r}, which is no parameter of LightGBM.",
                hint=f"did you mean {near[0]!r}?" if near else "see LightGBM's list of parameters.",
            )
        if names[given] in _NOT_FREE:
            raise LearnerError(
                f"training.params sets {given!r}, which is fixed so that a model can be repeated and packaged.",
                hint="remove it; the seed and the metric have their own fields in the task.",
            )
    return {names[given]: value for given, value in params.items()}


def _trees(booster: lgb.Booster, numbers: int) -> tuple[Tree, ...]:
    model = booster.dump_model(num_iteration=booster.best_iteration)
    if model["average_output"]:
        raise LearnerError("Averaging forests (boosting = rf) cannot be packaged.", hint="use boosting = gbdt.")
    return tuple(_tree(each["tree_structure"], numbers) for each in model["tree_info"])


def _tree(root: dict[str, Any], numbers: int) -> Tree:
    """LightGBM's nested dump to parallel lists, parents before children."""
    tree = Tree()
    queue = [(root, -1, True)]
    while queue:
        node, parent, is_left = queue.pop()
        if "leaf_value" in node:
            tree.add_leaf(node["leaf_value"], parent=parent, is_left=is_left)
            continue
        if node["decision_type"] == "==":
            # One of a set of categories goes left; an unseen one (-1) is in no set.
            codes = [int(code) for code in node["threshold"].split("||")]
            at = tree.add_choice(node["split_feature"] - numbers, codes, parent=parent, is_left=is_left)
            queue += [(node["right_child"], at, False), (node["left_child"], at, True)]
            continue
        # A feature without a missing value in training: LightGBM then reads NaN as 0.
        goes_left = node["default_left"] if node["missing_type"] == "NaN" else node["threshold"] >= 0
        at = tree.add_split(
            node["split_feature"], _float32_below(node["threshold"]), goes_left, parent=parent, is_left=is_left
        )
        queue += [(node["right_child"], at, False), (node["left_child"], at, True)]
    return tree


def _float32_below(threshold: float) -> float:
    # "All but the missing": infinite in the booster, where an infinite value goes left too, but dumped as 1e300.
    below = math.inf if threshold >= _DUMPED_INFINITY else float32_below(threshold)
    # LightGBM reads any |x| <= 1e-35 as 0, so -1e-35 itself is above a threshold of -1e-35.
    return float(np.nextafter(np.float32(below), np.float32(-1))) if below == -_READ_AS_ZERO else below
