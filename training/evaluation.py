"""How a packaged model does on the holdout: against chance, against champions, in money, by slice, in time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np

from contracts.bundle import Bundle
from contracts.scorer import Scorer
from contracts.task import LOWER_IS_BETTER, Task
from training.answers import answered
from training.curves import (
    Calibrated,
    Costs,
    Interval,
    Predicted,
    Ranking,
    cost_curve,
    coverage,
    predicted_and_observed,
    ranking,
    reliability,
    shown_cases,
)
from training.frame import Frame, FrameError, Inputs
from training.latency import Latency, latencies
from training.metrics import Ranked, cost
from training.periods import Period, by_period
from training.resampling import Estimate, Metric, Rows, days_drawn, estimate
from training.slices import Slices, sliced
from training.value_metrics import error_cost


@dataclass(frozen=True, slots=True)
class Comparison:
    """Another version on the same holdout rows, or why it could not be asked."""

    model_hash: str
    metrics: dict[str, Estimate]
    """Of the other version; empty when it could not be asked."""
    difference: Estimate | None
    """Primary metric, paired: above 0 the new version is better."""
    note: str
    """Why there is no difference, or what to know about it."""
    trained_at: str = ""
    """Of the other version, ISO 8601."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything the gates judge, and what stands behind it."""

    rows: int
    positives: int
    """Of a binary task's labels; 0 for a regression."""
    metrics: dict[str, Estimate]
    """Each with its interval, over `days`."""
    baseline: dict[str, Estimate]
    """Metrics of the naive baseline: every case answered with the training rows' base rate, or their median."""
    over_baseline: Estimate
    """Primary metric, paired: above 0 the model is better than the naive baseline."""
    threshold: float | None
    """None for a regression."""
    cost_per_case: dict[str, Estimate]
    """`model` and `over_trivial`: the model less what is cheapest without one.

    That is, for a binary task, where the model acts at the threshold, the cheaper of `never` and `always` acting; for
    a regression `naive`, always answering the training rows' median.
    """
    champion: Comparison | None
    slices: tuple[Slices, ...]
    parity: float
    """Largest difference between packaged and native answers; relative where a value is beyond 1."""
    latency: tuple[Latency, ...]
    """Of the packaged model alone, one row a call first."""
    last_month: Comparison | None = None
    """The version that was champion 30 days before the cutoff."""
    days: int = 0
    """Whole days that intervals were drawn of; 0 where they were too few and cases were drawn."""
    by_case: Estimate | None = None
    """The primary metric with its interval over cases drawn one by one, as if independent: narrower than over days
    where days differ by more than chance."""
    periods: tuple[Period, ...] = ()
    ranking: Ranking | None = None
    """Binary."""
    reliability: tuple[Calibrated, ...] = ()
    """Binary."""
    costs: Costs | None = None
    """Binary."""
    predicted: tuple[Predicted, ...] = ()
    """Regression."""
    shown: tuple[tuple[float, float], ...] = ()
    """Regression: predicted value and outcome of some cases, for a plot."""
    intervals: tuple[Interval, ...] = ()
    """Regression with quantiles."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdout:
    """The rows a version is judged on."""

    rows: np.ndarray
    """Their positions in the frame."""
    inputs: Inputs
    """Of these rows."""
    start: datetime
    end: datetime


def evaluate(
    task: Task,
    frame: Frame,
    holdout: Holdout,
    *,
    scorer: Scorer,
    answers: np.ndarray,
    native: np.ndarray,
    threshold: float | None,
    naive: np.ndarray,
    validation: tuple[np.ndarray, np.ndarray],
    champion: Bundle | None,
    last_month: Bundle | None,
) -> Evaluation:
    """Judge nothing, measure everything, on rows that no fit has seen.

    Args:
        task: names the primary metric, the costs and the slices.
        frame: the training frame.
        holdout: which of its rows.
    XX: [N, k], the learner's own answers for the holdout rows.
        threshold: chosen on the validation rows; None for a regression.
        naive: [k], what the naive baseline answers to everything.
        validation: labels and scores of the validation rows, for the cost curve.
        champion: what serves now, or None.
        last_month: what served 30 days before, or None.
    """
    rows = holdout.rows
    labels, seed, stamps = frame.labels[rows], task.training.seed, frame.event_timestamps[rows]
    constants = np.tile(naive, (len(labels), 1))
    primary = task.success.metric
    model = answered(task, labels, answers)

    def measured(of: Rows) -> dict[str, Metric]:
        ours, constant = answered(task, labels[of], answers[of]), answered(task, labels[of], constants[of])
        return {
            **{name: ours.metric(name) for name in ours.names},
            **{f"baseline.{name}": constant.metric(name) for name in ours.names},
            "over_baseline": _advantage(primary, ours.metric(primary), constant.metric(primary)),
            **{f"cost.{name}": m for name, m in _costs(task, labels[of], answers[of, 0], threshold, naive[0]).items()},
        }

    def ours_alone(of: Rows) -> dict[str, Metric]:
        return {"metric": answered(task, labels[of], answers[of]).metric(primary)}

    found = estimate(measured, len(labels), seed, stamps)
    metrics = {name: found[name] for name in model.names}
    others = {"baseline": constants}
    rivals = {}
    for name, bundle in (("champion", champion), ("last_month", last_month)):
        theirs, note = (None, "") if bundle is None else _asked(bundle, task, frame, holdout)
        others |= {} if theirs is None else {name: theirs}
        rivals[name] = None if bundle is None else _against(bundle, task, labels, stamps, theirs, note, answers)
    return Evaluation(
        rows=len(labels),
        positives=int(labels.sum()) if task.kind == "binary" else 0,
        metrics=metrics,
        baseline={name: found[f"baseline.{name}"] for name in model.names},
        over_baseline=found["over_baseline"],
        threshold=threshold,
        cost_per_case={name.removeprefix("cost."): value for name, value in found.items() if name.startswith("cost.")},
        champion=rivals["champion"],
        last_month=rivals["last_month"],
        days=days_drawn(stamps),
        by_case=estimate(ours_alone, len(labels), seed)["metric"],
        periods=by_period(task, holdout.start, holdout.end, stamps, labels, answers, others),
        slices=tuple(
            sliced(task, column, frame.slice_values(column)[rows], labels, answers, threshold, stamps)
            for column in task.fairness.slices
        ),
        parity=parity(answers, native),
        latency=latencies(scorer, holdout.inputs),
        **_behind(task, labels, answers, model, validation, metrics),
    )


def parity(packaged: np.ndarray, native: np.ndarray) -> float:
    """Largest difference of answers [N, k], as a share of the native one where that is beyond 1."""
    return float((np.abs(packaged - native) / np.maximum(1, np.abs(native))).max(initial=0))


def _advantage(name: str, ours: Metric, theirs: Metric) -> Metric:
    sign = -1.0 if name in LOWER_IS_BETTER else 1.0
    return lambda counts: sign * (ours(counts) - theirs(counts))


def _costs(
    task: Task, labels: np.ndarray, scores: np.ndarray, threshold: float | None, naive: float
) -> dict[str, Metric]:
    def per_case(each: np.ndarray) -> Metric:
        return lambda counts: counts @ each / counts.sum(axis=1)

    prices = task.success.cost
    if threshold is None:
        sides = {"too_high": prices.too_high, "too_low": prices.too_low}
        model = per_case(error_cost(labels, scores, **sides))
        trivial = per_case(error_cost(labels, np.full(len(labels), naive), **sides))
        return {"model": model, "naive": trivial, "over_trivial": lambda counts: model(counts) - trivial(counts)}
    acts, price = scores >= threshold, {"false_alarm": prices.false_alarm, "missed": prices.missed}
    model = per_case(cost(labels, acts, **price))
    never = per_case(cost(labels, np.zeros_like(acts), **price))
    always = per_case(cost(labels, np.ones_like(acts), **price))
    return {
        "model": model,
        "never": never,
        "always": always,
        "over_trivial": lambda counts: model(counts) - np.minimum(never(counts), always(counts)),
    }


def _asked(rival: Bundle, task: Task, frame: Frame, holdout: Holdout) -> tuple[np.ndarray | None, str]:
    """Another version's answers to the holdout, [N, k], or none; and what to know about them."""
    if (rival.metadata.kind, rival.metadata.quantiles) != (task.kind, task.quantiles):
        return None, "It cannot be asked: it answers another question."
    try:
        inputs = frame.inputs(rival.metadata.features).take(holdout.rows)
    except FrameError as error:
        return None, f"It cannot be asked: {error.fact}"
    notes = []
    if rival.metadata.service_fingerprint != frame.service_fingerprint:
        notes.append("Feature definitions changed since; it was asked with the values they have now.")
    known = _fitted_until(rival)
    if known is not None and known > holdout.start:
        notes.append(f"It was fitted on cases until {known:%F %H:%M}: some of these it has seen, which flatters it.")
    return Scorer(rival.model_path).predict(inputs.numbers, inputs.texts), " ".join(notes)


def _fitted_until(rival: Bundle) -> datetime | None:
    bounds: Mapping[str, str] = rival.metadata.training_data.get("split", {}).get("bounds", {})
    return datetime.fromisoformat(bounds["holdout"]) if "holdout" in bounds else None


def _against(
    rival: Bundle,
    task: Task,
    labels: np.ndarray,
    stamps: np.ndarray,
    answers: np.ndarray | None,
    note: str,
    ours: np.ndarray,
) -> Comparison:
    trained_at = rival.metadata.trained_at
    if answers is None:
        return Comparison(rival.model_hash, {}, None, note, trained_at)
    theirs, primary = answers, task.success.metric

    def measured(of: Rows) -> dict[str, Metric]:
        own, other = answered(task, labels[of], ours[of]), answered(task, labels[of], theirs[of])
        metrics = {name: other.metric(name) for name in other.names}
        return {**metrics, "difference": _advantage(primary, own.metric(primary), metrics[primary])}

    found = estimate(measured, len(labels), task.training.seed, stamps)
    difference = found.pop("difference")
    return Comparison(rival.model_hash, found, difference, note, trained_at)


def _behind(
    task: Task,
    labels: np.ndarray,
    answers: np.ndarray,
    model: Any,
    validation: tuple[np.ndarray, np.ndarray],
    metrics: dict[str, Estimate],
) -> dict[str, Any]:
    """The curves and tables of a task's kind, by their fields."""
    values = answers[:, 0]
    if isinstance(model, Ranked):
        prices = task.success.cost
        return {
            "ranking": ranking(labels, values),
            "reliability": reliability(model),
            "costs": cost_curve(validation, (labels, values), false_alarm=prices.false_alarm, missed=prices.missed),
        }
    return {
        "predicted": predicted_and_observed(labels, values),
        "shown": shown_cases(labels, values, task.training.seed),
        "intervals": coverage(answers, task.quantiles, metrics),
    }
