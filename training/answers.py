"""A model's answers to labelled cases, as the metrics of the task's kind see them."""

from __future__ import annotations

import numpy as np

from contracts.task import Task
from training.metrics import Ranked
from training.value_metrics import Errors


def answered(task: Task, labels: np.ndarray, answers: np.ndarray) -> Ranked | Errors:
    """The metrics of a task's kind, of answers [N, k] to cases with these labels [N]."""
    if task.kind == "binary":
        return Ranked(labels, answers[:, 0])
    return Errors(labels, answers, task.quantiles)
