"""Training's door to scikit-learn's histogram boosting: trees again, by other hands than LightGBM's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from training.encoding import TextEncoding, fit_encoding
from training.frame import Inputs
from training.learners.protocol import Fitted, LearnerError, Part, Problem, fit_head, settings
from training.packaging import Tree, float32_below, package_trees

DEFAULTS: dict[str, Any] = {
    "learning_rate": 0.05,
    "max_iter": 500,
    "max_leaf_nodes": 31,
    "min_samples_leaf": 100,
    "l2_regularization": 5.0,
    "max_features": 0.7,
    "n_iter_no_change": 25,
}


def fit(problem: Problem, train: Part, validation: Part, params: Mapping[str, Any]) -> Fitted:
    """Boost on the training rows, one ensemble an output; stop and calibrate on the validation rows.

    Args:
        problem: what is to be learned.
        train: fitted on, text encodings included.
        validation: watched for early stopping, and what the head is fitted on.
        params: scikit-learn's own names, over `DEFAULTS`.

    Raises:
        LearnerError: a parameter is unknown or refused.
    """
    used = settings("sklearn_boosting", DEFAULTS, params)
    encodings = tuple(fit_encoding(column, train.labels) for column in train.inputs.texts.T)
    rows, later = (_matrix(part.inputs, encodings) for part in (train, validation))
    models = [_estimator(problem, level, used) for level in (None, *problem.quantiles)]
    try:
        with threadpool_limits(problem.threads):
            for model in models:
                model.fit(rows, train.labels, X_val=later, y_val=validation.labels)
    except ValueError as error:
        raise LearnerError(f"scikit-learn refuses: {error}", hint="check training.params in the task.") from error

    def raw(inputs: Inputs) -> np.ndarray:
        matrix = _matrix(inputs, encodings)
        if problem.kind == "binary":
            return models[0].decision_function(matrix)[:, None]
        return np.column_stack([model.predict(matrix) for model in models])

    head = fit_head(problem, raw(validation.inputs), validation.labels)
    ensembles = [_trees(model) for model in models]
    return Fitted(
        model=package_trees(ensembles, encodings, head, numbers=train.inputs.numbers.shape[1]),
        head=head,
        raw=raw,
        params=used,
        size={"trees": sum(map(len, ensembles))},
    )


def _estimator(problem: Problem, level: float | None, used: dict[str, Any]) -> Any:
    """The estimator of one output; `level` is its quantile, None for the value or margin."""
    shared = {**used, "early_stopping": True, "random_state": problem.seed, "scoring": "loss"}
    if problem.kind == "binary":
        return HistGradientBoostingClassifier(**shared)
    if level is not None:
        return HistGradientBoostingRegressor(loss="quantile", quantile=level, **shared)
    return HistGradientBoostingRegressor(
        loss="squared_error" if problem.metric == "rmse" else "absolute_error", **shared
    )


def _matrix(inputs: Inputs, encodings: tuple[TextEncoding, ...]) -> np.ndarray:
    """float64 [N, n + t], numbers before texts, as in the packaged graph."""
    codes = [encoding.apply(column) for encoding, column in zip(encodings, inputs.texts.T, strict=True)]
    return np.column_stack([inputs.numbers, *codes]).astype(np.float64)


def _trees(model: Any) -> tuple[Tree, ...]:
    """The boosted trees, after one that holds the baseline they start from."""
    start = Tree()
    start.add_leaf(float(np.ravel(model._baseline_prediction)[0]), parent=-1, is_left=True)
    return (start, *(_tree(each.nodes) for [each] in model._predictors))


def _tree(nodes: np.ndarray) -> Tree:
    """scikit-learn's array of nodes to parallel lists, parents before children."""
    tree = Tree()
    queue = [(0, -1, True)]
    while queue:
        number, parent, is_left = queue.pop()
        node = nodes[number]
        if node["is_leaf"]:
            tree.add_leaf(float(node["value"]), parent=parent, is_left=is_left)
            continue
        at = tree.add_split(
            int(node["feature_idx"]),
            float32_below(float(node["num_threshold"])),
            bool(node["missing_go_to_left"]),
            parent=parent,
            is_left=is_left,
        )
        queue += [(int(node["right"]), at, False), (int(node["left"]), at, True)]
    return tree
