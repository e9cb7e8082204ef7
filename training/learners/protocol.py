"""What every learner is: rows in, one packaged graph out, and the native scores that the graph must repeat.

Grain: N = one row, k = 1 + the task's quantiles: the value or margin first, then one column a quantile.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from contracts.errors import SkewlessError
from training.calibration import Head, fit_calibration, fit_shifts
from training.frame import Inputs


class LearnerError(SkewlessError, ValueError):
    """Parameters that a learner does not know or refuses, or rows it cannot fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is to be learned, the rows aside."""

    kind: Literal["binary", "regression"]
    metric: str
    """The task's primary metric: what a learner that watches its validation rows watches."""
    seed: int
    """Of every random choice."""
    quantiles: tuple[float, ...] = ()
    """Levels to predict beside the value, rising; none for a binary task."""
    threads: int = 1
    sequences: tuple[tuple[int, ...], ...] = ()
    """For each array feature the columns of `numbers` that are its places, the last one last."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one part of the split with their labels."""

    inputs: Inputs
    labels: np.ndarray
    """[N], 0 or 1 for a binary task, any finite number for a regression."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted model, packaged and native."""

    model: bytes
    """The ONNX graph of a bundle: every fitted transform and the head are inside it."""
    head: Head
    raw: Callable[[Inputs], np.ndarray]
    """The learner's own float64 [N, k], before the head."""
    params: dict[str, Any]
    """As used, fixed ones included."""
    size: dict[str, int]
    """How large the model is, in the learner's own words: `{"trees": 312}`."""

    def native(self, inputs: Inputs) -> np.ndarray:
        """float64 [N, k]: what the packaged graph must repeat."""
        return self.head.apply(self.raw(inputs))


class Learner(Protocol):
    """Fits on `train`; may stop, choose and calibrate on `validation`, which is later; is never shown the holdout."""

    def __call__(self, problem: Problem, train: Part, validation: Part, params: Mapping[str, Any]) -> Fitted:
        """Fit and package. The same problem, rows and parameters give the same bytes.

        Raises:
            LearnerError: a parameter is unknown, fixed for reproducibility, or refused.
        """
        ...


def fit_head(problem: Problem, raw: np.ndarray, labels: np.ndarray) -> Head:
    """The last step of a model, fitted on validation rows.

    Args:
        problem: its kind says which step.
        raw: float64 [N, k], the learner's own outputs of these rows.
        labels: [N].
    """
    if problem.kind == "binary":
        return fit_calibration(raw[:, 0], labels)
    return fit_shifts(raw, labels, problem.quantiles)


def settings(learner: str, defaults: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """A learner's defaults with the task's parameters over them, each of the default's own type.

    Raises:
        LearnerError: a parameter has no default, or is of another type.
    """
    for name, value in params.items():
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            raise LearnerError(
                f"training.params names {name!r}, which is no parameter of {learner}.",
                hint=f"did you mean {near[0]!r}?" if near else f"it has {', '.join(defaults)}.",
            )
        wanted = type(defaults[name])
        if isinstance(value, bool) != (wanted is bool) or not isinstance(value, (wanted, int)):
            raise LearnerError(
                f"training.params.{name} is {value!r}; {learner} wants {_A[wanted]}.",
                hint=f"such as {defaults[name]!r}.",
            )
    return {name: type(value)(params.get(name, value)) for name, value in defaults.items()}


_A = {int: "a whole number", float: "a number", bool: "true or false"}
