"""Training's door to fairlearn: the primary metric and the decisions by group, and how far groups are apart.

A group with too few rows is measured all the same, but it is not judged: its figures are chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from fairlearn.metrics import MetricFrame

from contracts.task import Task
from training.answers import answered
from training.resampling import Estimate, Metric, Rows, estimate, point


@dataclass(frozen=True, slots=True)
class Group:
    """One value of a slice column."""

    value: str
    rows: int
    metric: Estimate | None
    """The primary metric. None: inconclusive, see `note`."""
    figures: dict[str, float] = field(default_factory=dict)
    """Of any group the primary metric; `label` and `answer`, their means; for a binary task also `acted_on`,
    `false_alarms` (share of the negatives acted on) and `missed` (share of the positives not acted on). Left out
    where there is nothing to take a share of."""
    note: str = ""
    """Why there is no metric."""


@dataclass(frozen=True, slots=True)
class Slices:
    """One spine column's groups."""

    column: str
    groups: tuple[Group, ...]
    differences: dict[str, float] = field(default_factory=dict)
    """Of each figure the largest less the smallest, among the groups that have a metric."""

    @property
    def judged(self) -> tuple[Group, ...]:
        """The groups large enough to have a metric, lowest value first."""
        return tuple(sorted((group for group in self.groups if group.metric), key=_value))


def sliced(
    task: Task,
    column: str,
    values: np.ndarray,
    labels: np.ndarray,
    answers: np.ndarray,
    threshold: float | None,
    stamps: np.ndarray,
) -> Slices:
    """Measure every group of one column.

    Args:
        task: says the primary metric and the least rows of a group.
        column: of the spine.
        values: object [N] of str, the column.
        labels: [N].
        answers: [N, k].
        threshold: from which score on the model acts; None for a regression.
        stamps: int64 [N], microseconds; a group's interval is over its own days.
    """
    notes = {value: _too_little(task, labels[values == value]) for value in sorted(set(values))}
    figures = _figures(task, answers, threshold)

    def measured(rows: np.ndarray) -> MetricFrame:
        # What a metric is given as predictions are positions: an answer may have several columns.
        return MetricFrame(metrics=figures, y_true=labels[rows], y_pred=rows, sensitive_features=_named(values[rows]))

    by_group, groups = measured(np.arange(len(labels))).by_group, []
    for value, note in notes.items():
        inside, metric = values == value, None
        if not note:
            own = _primary(task, labels[inside], answers[inside])
            metric = estimate(own, int(inside.sum()), task.training.seed, stamps[inside])["metric"]
        row = by_group.loc[_MARK + value]
        groups.append(Group(value, int(inside.sum()), metric, _finite(row, figures), note))
    judged = np.flatnonzero([not notes[value] for value in values])
    if not len(judged):
        return Slices(column, tuple(groups))
    apart = measured(judged).difference(method="between_groups")
    return Slices(column, tuple(groups), _finite(apart, figures))


def _primary(task: Task, labels: np.ndarray, answers: np.ndarray) -> Callable[[Rows], dict[str, Metric]]:
    return lambda rows: {"metric": answered(task, labels[rows], answers[rows]).metric(task.success.metric)}


_MARK = "="


def _named(values: np.ndarray) -> np.ndarray:
    """fairlearn leaves out groups without a name, and the empty string is one of ours."""
    return np.array([_MARK + value for value in values], object)


def _too_little(task: Task, labels: np.ndarray) -> str:
    least = task.fairness.min_rows
    if len(labels) < least:
        return f"{len(labels):,} rows, fewer than {least:,}"
    if task.kind == "binary" and labels.min() == labels.max():
        return f"only the label {labels[0]} in {len(labels):,} rows"
    return ""


Figure = Callable[[np.ndarray, np.ndarray], float]
"""Labels and positions of a group's rows to a number."""


def _figures(task: Task, answers: np.ndarray, threshold: float | None) -> dict[str, Figure]:
    def primary(labels: np.ndarray, rows: np.ndarray) -> float:
        metric = answered(task, np.asarray(labels), answers[rows]).metric(task.success.metric)
        return point(metric, len(rows))

    scores = answers[:, 0]
    found: dict[str, Figure] = {
        task.success.metric: primary,
        "label": lambda labels, _: float(np.mean(labels)),
        "answer": lambda _, rows: float(np.mean(scores[rows])),
    }
    if threshold is None:
        return found
    acts = scores >= threshold
    return found | {
        "acted_on": lambda _, rows: _share(acts[rows]),
        "false_alarms": lambda labels, rows: _share(acts[rows][np.asarray(labels) == 0]),
        "missed": lambda labels, rows: _share(~acts[rows][np.asarray(labels) > 0]),
    }


def _share(found: np.ndarray) -> float:
    return float(found.mean()) if len(found) else float("nan")


def _finite(found: pd.Series, names: Iterable[str]) -> dict[str, float]:
    return {name: float(found[name]) for name in names if np.isfinite(found[name])}


def _value(group: Group) -> float:
    assert group.metric is not None
    return group.metric.value
