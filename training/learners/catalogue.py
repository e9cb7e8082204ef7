"""Every learner by the name a task calls it; a framework is imported when its learner is wanted."""

from __future__ import annotations

from importlib import import_module

from training.learners.protocol import Learner

LEARNERS = {
    "lightgbm": "lightgbm_trees",
    "sklearn_linear": "sklearn_linear",
    "sklearn_boosting": "sklearn_trees",
}
"""Name to module, which has the learner as `fit`; the first stands in for one that is missing."""


def find_learner(name: str) -> Learner:
    """The learner of that name. Raises KeyError for one that is not in `LEARNERS`."""
    found: Learner = import_module(f"training.learners.{LEARNERS[name]}").fit
    return found
