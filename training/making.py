"""One version from a frame: split, fit, package, evaluate, judge. Nothing is written, nothing is registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from contracts.bundle import Bundle
from contracts.scorer import Scorer
from contracts.task import Task
from training.arrays import feature_kinds, sequences
from training.choice import choose
from training.evaluation import Evaluation, Holdout, evaluate
from training.frame import Frame
from training.gates import Gate, judge
from training.learners.catalogue import find_learner
from training.learners.protocol import Fitted, Part, Problem
from training.metrics import cheapest_threshold
from training.split import Split, split_by_time

Tune = Callable[[Split, Problem, str], Mapping[str, Any]]
"""Parameters for a split, a problem and a learner's name."""


@dataclass(frozen=True, slots=True)
class Made:
    """A model and what was found of it, before it has a name."""

    learner: str
    fitted: Fitted
    naive: np.ndarray
    """[k], what the naive baseline answers to everything."""
    split: Split
    evaluation: Evaluation
    gates: tuple[Gate, ...]
    holdout_scores: np.ndarray


def make_version(
    task: Task,
    frame: Frame,
    cutoff: datetime,
    champion: Bundle | None,
    *,
    lap: Callable[[str], None],
    say: Callable[[str], None],
    last_month: Bundle | None = None,
    tune: Tune | None = None,
) -> Made:
    """Split, fit, package, evaluate and judge; nothing is written or registered.

    Args:
        task: the whole policy.
        frame: labelled rows and their features.
        cutoff: the instant training stands at.
        champion: what the version is compared with.
        lap: told the name of each step when it is done.
        say: told what is being done.
        last_month: what was champion 30 days before the cutoff, to be shown beside it.
        tune: yields the learner's parameters; the task's own when None.

    Raises:
        SkewlessError: the frame does not carry a split or a fit.
    """
    settings, labels = task.training, frame.labels
    split = split_by_time(
        frame.event_timestamps,
        frame.known_at,
        labels,
        cutoff=cutoff,
        window=settings.window,
        validation=settings.validation,
        holdout=settings.holdout,
    )
    train, validation, holdout = _parts(frame, labels, split)
    problem = Problem(
        kind=task.kind,
        metric=task.success.metric,
        quantiles=task.quantiles,
        seed=settings.seed,
        threads=settings.threads,
        sequences=sequences(frame.specs),
    )
    learner = choose(task, feature_kinds(frame.specs), frame.table.num_rows).learner.used
    say(
        f"fitting {learner} on {len(split.train):,} rows, {len(split.validation):,} validate, "
        f"{len(split.holdout):,} held out"
    )
    params = settings.params if tune is None else tune(split, problem, learner)
    fitted = find_learner(learner)(problem, train, validation, params)
    scorer = Scorer(fitted.model)
    lap("fit")
    size = ", ".join(f"{count:,} {what}" for what, count in fitted.size.items())
    say(f"{size} packaged in {len(fitted.model) / 1024:,.0f} KB; judging them on the holdout")
    naive, threshold = _without_a_model(task, train.labels), None
    scores = scorer.score(validation.inputs.numbers, validation.inputs.texts)
    if task.kind == "binary":
        prices = task.success.cost
        threshold = cheapest_threshold(validation.labels, scores, false_alarm=prices.false_alarm, missed=prices.missed)
    answers = scorer.predict(holdout.inputs.numbers, holdout.inputs.texts)
    evaluation = evaluate(
        task,
        frame,
        Holdout(rows=split.holdout, inputs=holdout.inputs, start=split.bounds["holdout"], end=split.bounds["cutoff"]),
        scorer=scorer,
        answers=answers,
        native=fitted.native(holdout.inputs),
        threshold=threshold,
        naive=naive,
        validation=(validation.labels, scores),
        champion=champion,
        last_month=last_month,
    )
    lap("evaluate")
    return Made(
        learner=learner,
        fitted=fitted,
        naive=naive,
        split=split,
        evaluation=evaluation,
        gates=judge(task, evaluation),
        holdout_scores=answers[:, 0],
    )


def _parts(frame: Frame, labels: np.ndarray, split: Split) -> list[Part]:
    """Each part's rows; the whole frame's inputs, as large as all of them, are not kept beside."""
    inputs = frame.inputs()
    return [Part(inputs.take(rows), labels[rows]) for rows in (split.train, split.validation, split.holdout)]


def _without_a_model(task: Task, labels: np.ndarray) -> np.ndarray:
    """What the training labels alone would answer, [k]: the base rate, or the median and the quantiles."""
    if task.kind == "binary":
        return np.array([labels.mean()])
    return np.quantile(labels, [0.5, *task.quantiles])
