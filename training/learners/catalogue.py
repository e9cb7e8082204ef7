"""Every learner by the name a task calls it; a framework is imported when its learner is wanted."""

from __future__ import annotations

from importlib import import_module

from contracts.task_search import Range
from training.learners.protocol import Learner, LearnerError

LEARNERS = {
    "lightgbm": "lightgbm_trees",
    "sklearn_linear": "sklearn_linear",
    "sklearn_boosting": "sklearn_trees",
    "torch_sequence": "torch_sequence",
}
"""Name to module, which has the learner as `fit`; the first stands in for one that is missing."""


SPACES: dict[str, dict[str, Range]] = {
    "lightgbm": {
        "learning_rate": Range(low=0.02, high=0.2, log=True),
        "num_leaves": Range(low=7, high=127, log=True),
        "min_data_in_leaf": Range(low=20, high=500, log=True),
        "feature_fraction": Range(low=0.3, high=1.0),
        "bagging_fraction": Range(low=0.5, high=1.0),
        "lambda_l2": Range(low=0.1, high=100.0, log=True),
    },
    "sklearn_linear": {
        "penalty": Range(low=0.001, high=1000.0, log=True),
        "least_rows": Range(low=5, high=500, log=True),
    },
    "sklearn_boosting": {
        "learning_rate": Range(low=0.02, high=0.2, log=True),
        "max_leaf_nodes": Range(low=7, high=127, log=True),
        "min_samples_leaf": Range(low=20, high=500, log=True),
        "l2_regularization": Range(low=0.1, high=100.0, log=True),
        "max_features": Range(low=0.3, high=1.0),
    },
    "torch_sequence": {
        "learning_rate": Range(low=0.0003, high=0.01, log=True),
        "weight_decay": Range(low=0.00001, high=0.01, log=True),
        "hidden": Range(low=8, high=64, log=True),
    },
}
"""Of each learner the parameters a search tries, where the task does not say otherwise."""


def find_learner(name: str) -> Learner:
    """The learner of that name.

    Raises:
        LearnerError: its framework is not installed.
        KeyError: it is not in `LEARNERS`.
    """
    try:
        found: Learner = import_module(f"training.learners.{LEARNERS[name]}").fit
    except ModuleNotFoundError as error:
        raise LearnerError(
            f"The learner {name!r} needs {error.name}, which is not installed.",
            hint="`make setup` installs PyTorch (the extra `sequences`) where PIP_FIND_LINKS names a folder with a CPU "
            "wheel of it, see CONTRIBUTING.md; or name another training.learner.",
        ) from error
    return found
