"""Training's door to scikit-learn's linear models: a baseline that is small, quick and easy to explain.

Numbers are imputed with the training median, scaled, and kept within some standard deviations; a missing number also
has a weight of its own. Each text is one-hot: in the graph, a table from category to weight. A category never seen, or
seen too rarely, weighs nothing.

A regression's quantiles are its value moved by one number each, which the head finds on the validation rows: as wide
for one row as for another, which is what there is to beat.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits

from contracts.scorer import NUMBERS
from training.frame import Inputs
from training.learners.protocol import Fitted, LearnerError, Part, Problem, fit_head, settings
from training.packaging import Graph

DEFAULTS: dict[str, Any] = {"penalty": 1.0, "max_iterations": 500, "least_rows": 20}
"""`penalty`: L2 strength; `least_rows`: of a category with a weight of its own."""
_LIMIT = 8.0
"""Standard deviations beyond which a number counts no more: one broken sensor must not decide."""

_FINITE = 1e30
"""Infinite numbers become this: times a scale of 0 they would be no number at all."""


@dataclass(frozen=True, slots=True)
class _Transform:
    """What is fitted on the training rows before the weights."""

    medians: np.ndarray
    """float32 [n]."""
    scales: np.ndarray
    """float32 [n]: one over the standard deviation; 0 for a number that does not vary."""
    categories: tuple[tuple[str, ...], ...]
    """One a text, sorted."""

    def matrix(self, inputs: Inputs) -> sparse.csr_matrix:
        """float64 [N, 2n + categories]: scaled numbers, what is missing, one-hot texts."""
        missing = np.isnan(inputs.numbers)
        filled = np.clip(np.where(missing, self.medians, inputs.numbers).astype(np.float64), -_FINITE, _FINITE)
        scaled = np.clip((filled - self.medians) * self.scales.astype(np.float64), -_LIMIT, _LIMIT)
        blocks = [sparse.csr_matrix(scaled), sparse.csr_matrix(missing.astype(np.float64))]
        for column, names in zip(inputs.texts.T, self.categories, strict=True):
            places = {name: at for at, name in enumerate(names)}
            codes = np.fromiter((places.get(text, -1) for text in column), np.int64, len(column))
            hot = np.flatnonzero(codes >= 0)
            blocks.append(sparse.csr_matrix((np.ones(len(hot)), (hot, codes[hot])), shape=(len(column), len(names))))
        return sparse.csr_matrix(sparse.hstack(blocks))


def fit(problem: Problem, train: Part, validation: Part, params: Mapping[str, Any]) -> Fitted:
    """Fit a logistic regression, or a ridge regression; the head is fitted on the validation rows.

    Where the metric is one of absolute errors, the ridge regression's value is moved to the middle of the outcomes.

    Args:
        problem: what is to be learned.
        train: fitted on, transforms included.
        validation: what the head is fitted on.
        params: over `DEFAULTS`.

    Raises:
        LearnerError: a parameter is unknown or of the wrong type.
    """
    used = settings("sklearn_linear", DEFAULTS, params)
    if used["penalty"] <= 0 or min(used["max_iterations"], used["least_rows"]) < 1:
        raise LearnerError(f"training.params are {dict(params)}; a penalty is above 0, every count 1 at least.")
    transform = _fit_transform(train.inputs, used["least_rows"])
    matrix = transform.matrix(train.inputs)
    with threadpool_limits(problem.threads):
        model, moved = _fit_model(problem, matrix, train.labels, used)
    outputs = 1 + len(problem.quantiles)
    weights = np.tile(np.ravel(model.coef_)[:, None], outputs)
    intercept = float(np.ravel(model.intercept_)[0]) + moved

    def raw(inputs: Inputs) -> np.ndarray:
        rows = transform.matrix(inputs)
        values = model.decision_function(rows) if problem.kind == "binary" else model.predict(rows) + moved
        return np.tile(values[:, None], outputs)

    head = fit_head(problem, raw(validation.inputs), validation.labels)
    graph = Graph(head, numbers=train.inputs.numbers.shape[1], texts=len(transform.categories))
    return Fitted(
        model=graph.finish(_add(graph, transform, weights, np.full(outputs, intercept))),
        head=head,
        raw=raw,
        params=used,
        size={"weights": len(weights)},
    )


def _fit_transform(inputs: Inputs, least_rows: int) -> _Transform:
    numbers = np.where(np.isfinite(inputs.numbers), inputs.numbers, np.nan).astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without a single value has no median: 0 will do
        medians, deviations = np.nan_to_num(np.nanmedian(numbers, axis=0)), np.nan_to_num(np.nanstd(numbers, axis=0))
    scales = np.divide(1, deviations, out=np.zeros_like(deviations), where=deviations > 1e-12)
    categories = []
    for column in inputs.texts.T:
        names, counts = np.unique(column.astype(str), return_counts=True)
        categories.append(tuple(str(name) for name in names[counts >= least_rows]))
    return _Transform(medians.astype(np.float32), scales.astype(np.float32), tuple(categories))


def _fit_model(
    problem: Problem, matrix: sparse.csr_matrix, labels: np.ndarray, used: dict[str, Any]
) -> tuple[Any, float]:
    """The model, and by how much its value is moved."""
    rounds, penalty = used["max_iterations"], used["penalty"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `max_iterations` is the caller's own choice
        if problem.kind == "binary":
            model = LogisticRegression(C=1 / penalty, max_iter=rounds, random_state=problem.seed)
            return model.fit(matrix, labels), 0.0
        model = Ridge(alpha=penalty, solver="sparse_cg", tol=1e-8, max_iter=rounds).fit(matrix, labels)
    return model, 0.0 if problem.metric == "rmse" else float(np.median(labels - model.predict(matrix)))


def _add(graph: Graph, transform: _Transform, weights: np.ndarray, intercepts: np.ndarray) -> str:
    """float32 [N, k]: transforms and weights as nodes."""
    size = len(transform.medians)
    raw = graph.constant("intercepts", intercepts.astype(np.float32)[None, :])
    if size:
        graph.constant("medians", transform.medians)
        graph.constant("scales", transform.scales)
        graph.constant("low", np.array(-_LIMIT, np.float32))
        graph.constant("high", np.array(_LIMIT, np.float32))
        graph.constant("least", np.array(-_FINITE, np.float32))
        graph.constant("most", np.array(_FINITE, np.float32))
        graph.constant("weights", weights[:size].astype(np.float32))
        graph.constant("weights_missing", weights[size : 2 * size].astype(np.float32))
        missing = graph.add("IsNaN", [NUMBERS], "missing")
        graph.add("Clip", [graph.add("Where", [missing, "medians", NUMBERS], "filled"), "least", "most"], "finite")
        graph.add("Mul", [graph.add("Sub", ["finite", "medians"], "centred"), "scales"], "standard")
        graph.add("Clip", ["standard", "low", "high"], "bounded")
        graph.add("Cast", [missing], "missing_as_number", to=1)
        parts = [
            graph.add("MatMul", ["bounded", "weights"], "from_numbers"),
            graph.add("MatMul", ["missing_as_number", "weights_missing"], "from_missing"),
        ]
    else:
        parts = []
    begin = 2 * size
    for at, names in enumerate(transform.categories):
        source = graph.text(at)
        own = weights[begin : begin + len(names)].astype(np.float32)
        begin += len(names)
        columns = [
            graph.look_up(source, f"weight_{at}_{k}", dict(zip(names, own[:, k].tolist(), strict=True)), 0.0)
            for k in range(weights.shape[1])
        ]
        parts.append(graph.add("Concat", columns, f"from_text_{at}", axis=1))
    for at, part in enumerate(parts):
        raw = graph.add("Add", [part, raw], f"sum_{at}")
    return raw
