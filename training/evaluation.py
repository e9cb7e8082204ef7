"""How a packaged model does on the holdout: against chance, against the champion, in money, by slice, in time."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from contracts.bundle import Bundle
from contracts.scorer import Scorer
from contracts.task import LOWER_IS_BETTER, Cost, Task
from training.frame import Frame, FrameError, Inputs
from training.metrics import METRICS, Estimate, Metric, Ranked, cost, estimate

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
    metrics: dict[str, Estimate]
    baseline: dict[str, Estimate]
    """Metrics of answering every case with the training rows' base rate."""
    over_baseline: Estimate
    """Primary metric, paired: above 0 the model is better than the base rate."""
    threshold: float
    cost_per_case: dict[str, Estimate]
    """`model` at the threshold, `never` and `always` acting, `over_trivial` (model less the cheaper of the two)."""
    champion: Comparison | None
    slices: tuple[Slices, ...]
    parity: float
    """Largest difference between packaged and native scores."""
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
    threshold: float,
    base_rate: float,
    champion: Bundle | None,
) -> Evaluation:
    """Judge nothing, measure everything, on rows that no fit has seen.

    Args:
        task: names the primary metric, the costs and the slices.
        frame: the training frame.
        holdout: positions of the holdout rows in it.
        scorer: the packaged model.
        native: [N], the learner's own scores of the holdout rows.
        threshold: chosen on the validation rows.
        base_rate: share of positives among the training rows.
        champion: what serves now, or None.
    """
    labels, inputs, seed = frame.labels[holdout], frame.inputs().take(holdout), task.training.seed
    scores = scorer.score(inputs.numbers, inputs.texts)
    ranked, constant = Ranked(labels, scores), Ranked(labels, np.full(len(labels), base_rate))
    primary = task.success.metric
    ours, naive = ranked.metric(primary), constant.metric(primary)
    found = estimate(
        {
            **{name: ranked.metric(name) for name in METRICS},
            **{f"baseline.{name}": constant.metric(name) for name in METRICS},
            "over_baseline": _advantage(primary, ours, naive),
            **{f"cost.{name}": m for name, m in _costs(task.success.cost, labels, scores >= threshold).items()},
        },
        len(labels),
        seed,
    )
    return Evaluation(
        rows=len(labels),
        positives=int(labels.sum()),
        metrics={name: found[name] for name in METRICS},
        baseline={name: found[f"baseline.{name}"] for name in METRICS},
        over_baseline=found["over_baseline"],
        threshold=threshold,
        cost_per_case={name.removeprefix("cost."): value for name, value in found.items() if name.startswith("cost.")},
        champion=None if champion is None else _against(champion, task, frame, holdout, ours),
        slices=tuple(
            _sliced(task, frame.slice_values(column)[holdout], labels, scores, column)
            for column in task.fairness.slices
        ),
        parity=float(np.abs(scores - native).max()),
        latency_ms=_latency(scorer, inputs),
    )


def _advantage(name: str, ours: Metric, theirs: Metric) -> Metric:
    sign = -1.0 if name in LOWER_IS_BETTER else 1.0
    return lambda counts: sign * (ours(counts) - theirs(counts))


def _costs(prices: Cost, labels: np.ndarray, acts: np.ndarray) -> dict[str, Metric]:
    def per_case(each: np.ndarray) -> Metric:
        return lambda counts: counts @ each / counts.sum(axis=1)

    price = {"false_alarm": prices.false_alarm, "missed": prices.missed}
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
    labels = frame.labels[holdout]
    ranked = Ranked(labels, Scorer(champion.model_path).score(inputs.numbers, inputs.texts))
    primary = task.success.metric
    metrics = {name: ranked.metric(name) for name in METRICS}
    found = estimate(
        {**metrics, "difference": _advantage(primary, ours, metrics[primary])}, len(labels), task.training.seed
    )
    changed = champion.metadata.service_fingerprint != frame.service_fingerprint
    note = "Feature definitions changed since; it was asked with the values they have now." if changed else ""
    return Comparison(champion.model_hash, {name: found[name] for name in METRICS}, found["difference"], note)


def _sliced(task: Task, values: np.ndarray, labels: np.ndarray, scores: np.ndarray, column: str) -> Slices:
    groups = []
    for value in sorted(set(values)):
        inside = values == value
        label, metric = labels[inside], None
        if len(label) >= task.fairness.min_rows and label.min() < label.max():
            primary = Ranked(label, scores[inside]).metric(task.success.metric)
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
