"""How a packaged model does on the holdout: against chance, against the champion, in money, by slice, in time."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from contracts.bundle import Bundle
from contracts.scorer import Scorer
from contracts.task import LOWER_IS_BETTER, Task
from training.frame import Frame, FrameError, Inputs
from training.metrics import Estimate, Metric, Ranked, cost, estimate
from training.value_metrics import Errors, error_cost

_ROUNDS, _ROWS_A_ROUND = 5, 400


@dataclass(frozen=True, slots=True)
class Comparison:
    """The champion on the same holdout rows, or why it could not be asked."""

    model_hash: str
    metrics: dict[str, Estimate]
    """Of the champion; empty when it could not be asked."""
    difference: Estimate | None
    """Primary metric, paired: above 0 the new version is better."""
    note: str
    """Why there is no difference, or what to know about it."""


@dataclass(frozen=True, slots=True)
class Group:
    """One value of a slice column."""

    value: str
    rows: int
    metric: Estimate | None
    """None: fewer rows than the task asks for, or one class only."""


@dataclass(frozen=True, slots=True)
class Slices:
    """The primary metric by one spine column."""

    column: str
    groups: tuple[Group, ...]

    @property
    def judged(self) -> tuple[Group, ...]:
        """The groups large enough to have a metric, lowest value first."""
        return tuple(sorted((group for group in self.groups if group.metric), key=_value))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything the gates judge."""

    rows: int
    positives: int
    """Of a binary task's labels; 0 for a regression."""
    metrics: dict[str, Estimate]
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
    latency_ms: dict[str, float]
    """`p50` and `p99` of the packaged model answering one row, over the `rows` rows of the quietest round."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def evaluate(
    task: Task,
    frame: Frame,
    holdout: np.ndarray,
    *,
    scorer: Scorer,
    native: np.ndarray,
    threshold: float | None,
    naive: np.ndarray,
    champion: Bundle | None,
) -> Evaluation:
    """Judge nothing, measure everything, on rows that no fit has seen.

    Args:
        task: names the primary metric, the costs and the slices.
        frame: the training frame.
        holdout: positions of the holdout rows in it.
        scorer: the packaged model.
        native: [N, k], the learner's own answers for the holdout rows.
        threshold: chosen on the validation rows; None for a regression.
        naive: [k], what the naive baseline answers to everything.
        champion: what serves now, or None.
    """
    labels, inputs, seed = frame.labels[holdout], frame.inputs().take(holdout), task.training.seed
    answers = scorer.predict(inputs.numbers, inputs.texts)
    model, constant = answered(task, labels, answers), answered(task, labels, np.tile(naive, (len(labels), 1)))
    primary = task.success.metric
    ours = model.metric(primary)
    found = estimate(
        {
            **{name: model.metric(name) for name in model.names},
            **{f"baseline.{name}": constant.metric(name) for name in model.names},
            "over_baseline": _advantage(primary, ours, constant.metric(primary)),
            **{f"cost.{name}": m for name, m in _costs(task, labels, answers[:, 0], threshold, naive[0]).items()},
        },
        len(labels),
        seed,
    )
    return Evaluation(
        rows=len(labels),
        positives=int(labels.sum()) if task.kind == "binary" else 0,
        metrics={name: found[name] for name in model.names},
        baseline={name: found[f"baseline.{name}"] for name in model.names},
        over_baseline=found["over_baseline"],
        threshold=threshold,
        cost_per_case={name.removeprefix("cost."): value for name, value in found.items() if name.startswith("cost.")},
        champion=None if champion is None else _against(champion, task, frame, holdout, ours),
        slices=tuple(
            _sliced(task, frame.slice_values(column)[holdout], labels, answers, column)
            for column in task.fairness.slices
        ),
        parity=parity(answers, native),
        latency_ms=_latency(scorer, inputs),
    )


def answered(task: Task, labels: np.ndarray, answers: np.ndarray) -> Ranked | Errors:
    """The metrics of a task's kind, of answers [N, k] to cases with these labels [N]."""
    if task.kind == "binary":
        return Ranked(labels, answers[:, 0])
    return Errors(labels, answers, task.quantiles)


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


def _against(champion: Bundle, task: Task, frame: Frame, holdout: np.ndarray, ours: Metric) -> Comparison:
    try:
        inputs = frame.inputs(champion.metadata.features).take(holdout)
    except FrameError as error:
        return Comparison(champion.model_hash, {}, None, f"The champion cannot be asked: {error.fact}")
    labels, scorer = frame.labels[holdout], Scorer(champion.model_path)
    if (champion.metadata.kind, champion.metadata.quantiles) != (task.kind, task.quantiles):
        return Comparison(champion.model_hash, {}, None, "The champion cannot be asked: it answers another question.")
    theirs = answered(task, labels, scorer.predict(inputs.numbers, inputs.texts))
    primary = task.success.metric
    metrics = {name: theirs.metric(name) for name in theirs.names}
    found = estimate(
        {**metrics, "difference": _advantage(primary, ours, metrics[primary])}, len(labels), task.training.seed
    )
    changed = champion.metadata.service_fingerprint != frame.service_fingerprint
    note = "Feature definitions changed since; it was asked with the values they have now." if changed else ""
    return Comparison(champion.model_hash, {name: found[name] for name in metrics}, found["difference"], note)


def _sliced(task: Task, values: np.ndarray, labels: np.ndarray, answers: np.ndarray, column: str) -> Slices:
    groups = []
    for value in sorted(set(values)):
        inside = values == value
        label, metric = labels[inside], None
        if len(label) >= task.fairness.min_rows and (task.kind != "binary" or label.min() < label.max()):
            primary = answered(task, label, answers[inside]).metric(task.success.metric)
            metric = estimate({"metric": primary}, len(label), task.training.seed)["metric"]
        groups.append(Group(value, len(label), metric))
    return Slices(column, tuple(groups))


def _value(group: Group) -> float:
    assert group.metric is not None
    return group.metric.value


def _latency(scorer: Scorer, inputs: Inputs) -> dict[str, float]:
    """One row at a time, the quietest of some rounds: what else the machine does is not the model's doing.

    Rows rotate, since asking the same one again would flatter the caches; the first round also warms up.
    """
    size = len(inputs.numbers)
    rounds = []
    for turn in range(_ROUNDS):
        spent = []
        for at in range(turn * _ROWS_A_ROUND, (turn + 1) * _ROWS_A_ROUND):
            row = slice(at % size, at % size + 1)
            numbers, texts = inputs.numbers[row], inputs.texts[row]
            began = time.perf_counter()
            scorer.score(numbers, texts)
            spent.append(time.perf_counter() - began)
        rounds.append(np.percentile(spent, [50, 99]) * 1e3)
    p50, p99 = min(rounds, key=lambda each: float(each[1]))
    return {"p50": float(p50), "p99": float(p99), "rows": float(_ROWS_A_ROUND)}
