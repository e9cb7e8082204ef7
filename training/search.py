"""Hyperparameters looked for by Optuna within the training part of the split, bounded by time.

Neither validation nor holdout is seen. The training part is cut into stretches of equal length: fold i fits on the
first i of them, stops and calibrates on the next, and is judged on the one after. Each part of a fold has the embargo
of the split, in that a row counts only if its label could be read when its part ended. The task's own parameters are
the first trial and run to their end: what is found is never worse than they are, on these folds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import optuna

from asof.clockwork import to_micros
from contracts.errors import SkewlessError
from contracts.scorer import Scorer
from contracts.task import LOWER_IS_BETTER, Task
from contracts.task_search import Range
from training.answers import answered
from training.frame import Frame
from training.learners.catalogue import SPACES, find_learner
from training.learners.protocol import Part, Problem
from training.resampling import point
from training.split import Split

_LEAST_ROWS = 50
"""Of any part of a fold: fewer rank nothing."""


class SearchError(SkewlessError, ValueError):
    """The training part carries no search."""


class TrialRun(Protocol):
    """Where a trial is recorded: a run inside the training's own."""

    def params(self, values: dict[str, Any]) -> None:
        """What was tried."""

    def metrics(self, values: dict[str, float]) -> None:
        """What came of it."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to."""

    params: dict[str, Any]
    """The best, over the task's own `training.params`."""
    value: float
    """Mean of the primary metric over the folds."""
    defaults: float
    """The same of the task's parameters as they are."""
    trials: int
    """Completed ones; others ran out of time, or were given up after a fold."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = {"params": self.params, "value": self.value, "defaults": self.defaults}
        return found | {"trials": self.trials, "seconds": round(self.seconds, 1)}


@dataclass(frozen=True, slots=True)
class Fold:
    """Row positions of the frame."""

    train: np.ndarray
    stop: np.ndarray
    """For early stopping and calibration."""
    judged: np.ndarray


def search(
    task: Task,
    frame: Frame,
    split: Split,
    problem: Problem,
    learner: str,
    *,
    trial_run: Callable[[int], AbstractContextManager[TrialRun]],
    say: Callable[[str], None],
) -> Found:
    """Try parameters until the task's minutes or trials are used up.

    Args:
        task: its `search` section says how much.
        frame: labelled rows and their features.
        split: whose training part is used.
        problem: what is to be learned.
        learner: name in the catalogue.
        trial_run: opens the record of a trial, by its number.
        say: told of each trial that is the best so far.

    Raises:
        SearchError: a fold has too few rows or one class.
        LearnerError: a parameter that the space names is refused.
    """
    settings, metric = task.search, task.success.metric
    begun = time.monotonic()
    deadline = begun + settings.time.total_seconds()
    cut, inputs, fit = folds(frame, split, settings.folds), frame.inputs(), find_learner(learner)
    space = SPACES[learner] | settings.space
    lower = metric in LOWER_IS_BETTER

    def judge(trial: optuna.Trial) -> float:
        chosen = {name: _drawn(trial, name, each) for name, each in space.items()} if trial.number else {}
        with trial_run(trial.number) as record:
            return attempt(trial, {**task.training.params, **chosen}, record)

    def attempt(trial: optuna.Trial, params: dict[str, Any], record: TrialRun) -> float:
        record.params(params)
        values: list[float] = []
        for step, fold in enumerate(cut):
            if trial.number and time.monotonic() > deadline:
                raise optuna.TrialPruned
            train, stop, judged = (
                Part(inputs.take(rows), frame.labels[rows]) for rows in (fold.train, fold.stop, fold.judged)
            )
            fitted = fit(problem, train, stop, params)
            answers = Scorer(fitted.model).predict(judged.inputs.numbers, judged.inputs.texts)
            values.append(point(answered(task, judged.labels, answers).metric(metric), len(judged.labels)))
            record.metrics({f"fold.{step}.{metric}": values[-1]})
            trial.report(values[-1], step)
            if trial.number and step + 1 < len(cut) and trial.should_prune():
                raise optuna.TrialPruned
        mean = float(np.mean(values))
        record.metrics({metric: mean})
        return mean

    def tell(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.value is not None and study.best_trial.number == trial.number:
            say(f"trial {trial.number}: {metric} {trial.value:.4f} over {len(cut)} folds, the best so far")
        if time.monotonic() > deadline:  # Optuna's own timeout may leave no trial at all
            study.stop()

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="minimize" if lower else "maximize",
        sampler=optuna.samplers.TPESampler(seed=problem.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
    )
    study.optimize(judge, n_trials=settings.trials, callbacks=[tell])
    completed = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    best = study.best_trial
    return Found(
        params={**task.training.params, **best.params},
        value=float(best.value or 0.0),
        defaults=float(completed[0].value or 0.0),
        trials=len(completed),
        seconds=time.monotonic() - begun,
    )


def _drawn(trial: optuna.Trial, name: str, each: Range) -> Any:
    if each.choices:
        return trial.suggest_categorical(name, each.choices)
    low, high = each.low, each.high
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=each.log)
    assert low is not None  # a range without choices has both ends
    assert high is not None
    return trial.suggest_float(name, low, high, log=each.log)


def folds(frame: Frame, split: Split, count: int) -> list[Fold]:
    """Cut the training part, earliest fold first.

    Raises:
        SearchError: a part of a fold has too few rows or one class.
    """
    edges = np.linspace(to_micros(split.bounds["start"]), to_micros(split.bounds["validation"]), count + 3).astype(
        np.int64
    )

    def part(begin: int, end: int, number: int) -> np.ndarray:
        asked, known = frame.event_timestamps[split.train], frame.known_at[split.train]
        rows = split.train[(asked >= edges[begin]) & (asked < edges[end]) & (known <= edges[end])]
        labels = frame.labels[rows]
        if len(rows) < _LEAST_ROWS or labels.min() == labels.max():
            raise SearchError(
                f"Fold {number + 1} of {count} of the search has a part with {len(rows)} labelled rows"
                f"{' of one label' if len(rows) >= _LEAST_ROWS else ''}; {_LEAST_ROWS} of several labels are needed.",
                hint="lengthen training.window, or lower search.folds in the task.",
            )
        return rows

    return [Fold(part(0, i + 1, i), part(i + 1, i + 2, i), part(i + 2, i + 3, i)) for i in range(count)]
