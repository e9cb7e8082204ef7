"""Every learner by the name a task calls it; a framework is imported when its learner is wanted."""

from __future__ import annotations

from importlib import import_module

from training.learners.protocol import Learner, LearnerError

LEARNERS = {
    "lightgbm": "lightgbm_trees",
    "sklearn_linear": "sklearn_linear",
    "sklearn_boosting": "sklearn_trees",
    "torch_sequence": "torch_sequence",
}
"""Name to module, which has the learner as `fit`; the first stands in for one that is missing."""


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
