"""Training's door to LightGBM: rows in, trees out, the same trees for the same rows and seed."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np

from contracts.errors import SkewlessError
from training.calibration import Calibration, fit_calibration
from training.encoding import TextEncoding, fit_encoding
from training.frame import Inputs
from training.packaging import Tree

NAME = "lightgbm"

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
    "objective": "binary",
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 2,
    "verbosity": -1,
}
_NOT_FREE = {*_FIXED, "metric", "seed", "categorical_feature", "zero_as_missing", "linear_tree"}
_METRICS = {
    "roc_auc": "auc",
    "average_precision": "average_precision",
    "log_loss": "binary_logloss",
    "brier": "binary_logloss",
}
_READ_AS_ZERO = np.float32(1e-35)


class LearnerError(SkewlessError, ValueError):
    """Parameters that LightGBM does not know or refuses, or a feature table it cannot fit."""


@dataclass(frozen=True, slots=True)
class FittedModel:
    """Trees, encodings and calibration: everything the packaged graph holds."""

    trees: tuple[Tree, ...]
    encodings: tuple[TextEncoding, ...]
    """One a text feature, in the order of the texts."""
    calibration: Calibration
    params: dict[str, Any]
    """As used, fixed ones included."""
    booster: lgb.Booster

    def scores(self, inputs: Inputs) -> np.ndarray:
        """float64 [N]: the native scores, which the packaged graph must repeat."""
        margins = self.booster.predict(_matrix(inputs, self.encodings), raw_score=True)
        return self.calibration.apply(np.asarray(margins))


def fit(
    train: Inputs,
    train_labels: np.ndarray,
    validation: Inputs,
    validation_labels: np.ndarray,
    *,
    seed: int,
    metric: str,
    params: dict[str, Any],
) -> FittedModel:
    """Boost on the training rows, stop and calibrate on the validation rows.

    Args:
        train: the training rows' features.
        train_labels: [N], 0 or 1.
        validation: the validation rows' features, later than every training row.
        validation_labels: [M], 0 or 1.
        seed: of every random choice.
        metric: the task's primary metric, watched for early stopping.
        params: LightGBM's, over `DEFAULTS`.

    Raises:
        LearnerError: a parameter is unknown, fixed for reproducibility, or refused.
    """
    used = {**DEFAULTS, **_canonical(params), **_FIXED, "metric": _METRICS[metric], "seed": seed}
    rounds = int(used["num_iterations"])
    boosting = {name: value for name, value in used.items() if name != "num_iterations"}
    encodings = tuple(fit_encoding(column, train_labels) for column in train.texts.T)
    try:
        data = lgb.Dataset(_matrix(train, encodings), train_labels, params=boosting)
        watched = data.create_valid(_matrix(validation, encodings), validation_labels)
        booster = lgb.train(boosting, data, rounds, valid_sets=[watched])
        if not booster.best_iteration:
            booster.best_iteration = booster.current_iteration()
        trees = _trees(booster)
        margins = np.asarray(booster.predict(_matrix(validation, encodings), raw_score=True))
    except lgb.basic.LightGBMError as error:
        raise LearnerError(f"LightGBM refuses: {error}", hint="check training.params in the task.") from error
    return FittedModel(trees, encodings, fit_calibration(margins, validation_labels), used, booster)


def _matrix(inputs: Inputs, encodings: tuple[TextEncoding, ...]) -> np.ndarray:
    """float32 [N, n + t], numbers before texts, as in the packaged graph."""
    codes = [encoding.apply(column) for encoding, column in zip(encodings, inputs.texts.T, strict=True)]
    return np.column_stack([inputs.numbers, *codes]) if codes else inputs.numbers


def _canonical(params: dict[str, Any]) -> dict[str, Any]:
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


def _trees(booster: lgb.Booster) -> tuple[Tree, ...]:
    model = booster.dump_model(num_iteration=booster.best_iteration)
    if model["average_output"]:
        raise LearnerError("Averaging forests (boosting = rf) cannot be packaged.", hint="use boosting = gbdt.")
    return tuple(_tree(each["tree_structure"]) for each in model["tree_info"])


def _tree(root: dict[str, Any]) -> Tree:
    """LightGBM's nested dump to parallel lists, parents before children."""
    tree = Tree()
    queue = [(root, -1, True)]
    while queue:
        node, parent, is_left = queue.pop()
        if "leaf_value" in node:
            tree.add_leaf(node["leaf_value"], parent=parent, is_left=is_left)
            continue
        if node["decision_type"] != "<=":
            raise LearnerError(f"A split of kind {node['decision_type']!r} cannot be packaged.")
        # A feature without a missing value in training: LightGBM then reads NaN as 0.
        goes_left = node["default_left"] if node["missing_type"] == "NaN" else node["threshold"] >= 0
        at = tree.add_split(
            node["split_feature"], _float32_below(node["threshold"]), goes_left, parent=parent, is_left=is_left
        )
        queue += [(node["right_child"], at, False), (node["left_child"], at, True)]
    return tree


def _float32_below(threshold: float) -> float:
    """The largest float32 below which LightGBM goes left: `x <= it` then means the same for every float32 x."""
    limit = float(np.finfo(np.float32).max)
    nearest = np.float32(min(max(threshold, -limit), limit))
    # LightGBM reads any |x| <= 1e-35 as 0, so -1e-35 itself is above a threshold of -1e-35.
    above = float(nearest) > threshold or nearest == -_READ_AS_ZERO
    return float(np.nextafter(nearest, np.float32(-math.inf)) if above else nearest)
