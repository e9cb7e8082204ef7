"""What a policy came to: metric and cost of its answers by month, decay and how soon it was seen, and against another.

Grain: N = one answered case whose outcome came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from asof.clockwork import to_micros
from contracts.predictions import read_predictions
from contracts.task import LOWER_IS_BETTER, Task
from loop.replay_life import Life
from loop.replay_window import FAR, Window, months
from training.answers import answered
from training.metrics import cost
from training.resampling import Estimate, Metric, Rows, estimate, point
from training.value_metrics import error_cost


@dataclass(frozen=True)
class Answers:
    """A policy's answers in order of (instant, case), those to callers only."""

    cases: np.ndarray
    """object [N] of str."""
    asked: np.ndarray
    """int64 [N], microseconds since the epoch."""
    labels: np.ndarray
    """float64 [N]."""
    answers: np.ndarray
    """float64 [N, 1 + q]: the score, then a regression's quantiles."""
    costs: np.ndarray
    """float64 [N]: what each answer cost."""

    def within(self, start: datetime, end: datetime) -> np.ndarray:
        """Positions of the cases asked about in [start, end)."""
        found: np.ndarray = np.flatnonzero((self.asked >= to_micros(start)) & (self.asked < to_micros(end)))
        return found


def read_answers(task: Task, window: Window, log: Path) -> Answers:
    """Everything the policy answered whose outcome came, whenever that was."""
    logged = read_predictions(log, vectors=False).join(window.outcomes(), "case_id", join_type="inner")
    logged = logged.sort_by([("event_timestamp", "ascending"), ("case_id", "ascending")])
    labels, score = logged["label"].to_numpy(), logged["score"].to_numpy()
    answers, prices = score[:, None], task.success.cost
    if task.kind == "binary":
        acts = logged["decision"].to_numpy() > 0
        costs = cost(labels, acts, false_alarm=prices.false_alarm, missed=prices.missed)
    else:
        costs = error_cost(labels, score, too_high=prices.too_high, too_low=prices.too_low)
        if task.quantiles:
            told = np.array([list(orjson.loads(each).values()) for each in logged["quantiles"].to_pylist()], float)
            answers = np.column_stack([score, told])
    cases = logged["case_id"].to_numpy(zero_copy_only=False)
    return Answers(cases, logged["event_timestamp"].cast(pa.int64()).to_numpy(), labels, answers, costs)


def figures(task: Task, found: Answers, life: Life, *, start: datetime, end: datetime) -> dict[str, Any]:
    """The policy's figures over the whole time and by month, as plain JSON values."""
    whole = _measured(task, found, np.arange(len(found.labels)))
    by_month = []
    for first, last in months(start, end):
        inside = [each for each in life.retrainings if first <= datetime.fromisoformat(each["at"]) < last]
        opened = [each for each in life.alerts if first < datetime.fromisoformat(each["at"]) <= last]
        by_month.append(
            {"month": f"{first:%Y-%m}", "start": first.isoformat(), "end": last.isoformat()}
            | _measured(task, found, found.within(first, last))
            | {"retrainings": len(inside), "alerts": len(opened)}
        )
    errors = [abs(each["estimated"] - each["realized"]) for each in life.estimates if None not in each.values()]
    climbed = [move for move in life.releases if move["to_stage"] == "champion"]
    return whole | {
        "retrainings": len(life.retrainings),
        "promotions": len(climbed),
        "rejected": sum(each["status"] != "candidate" for each in life.retrainings),
        "alerts": len(life.alerts),
        "detection": detection(task, found, life, start=start, end=end),
        "estimator": {"chunks": len(errors), "mean_error": float(np.mean(errors)) if errors else None},
        "watched": life.watched,
        "answered": life.answered,
        "refused": life.refused,
        "months": by_month,
    }


def _measured(task: Task, found: Answers, rows: np.ndarray) -> dict[str, Any]:
    value: float | None = None
    if len(rows):
        metric = answered(task, found.labels[rows], found.answers[rows]).metric(task.success.metric)
        value = _finite(point(metric, len(rows)))
    total = float(found.costs[rows].sum())
    return {
        "cases": len(rows),
        "metric": value,
        "cost": total,
        "cost_per_case": total / len(rows) if len(rows) else None,
    }


def detection(task: Task, found: Answers, life: Life, *, start: datetime, end: datetime) -> dict[str, Any]:
    """How long performance was bad before monitoring said so.

    An episode begins when the last `monitoring.consecutive` chunks of the policy's answers, judged on all outcomes, are
    beyond the floor, and ends with the first chunk that is not. Its delay runs from then to the first run of monitoring
    that says so, before the next episode begins.
    """
    rules = task.monitoring
    onsets: list[datetime] = []
    streak, at = 0, start
    while at + rules.chunk <= end:
        rows = found.within(at, at + rules.chunk)
        value = _measured(task, found, rows)["metric"] if len(rows) >= rules.min_rows else None
        at += rules.chunk
        if value is None:
            continue  # too few answers: it neither goes on nor ends
        bad = value > rules.performance_floor
        if task.success.metric not in LOWER_IS_BETTER:
            bad = value < rules.performance_floor
        streak = streak + 1 if bad else 0
        if streak == rules.consecutive:
            onsets.append(at)
    seen = [datetime.fromisoformat(each) for each in life.decays]
    delays = []
    for onset, following in zip(onsets, [*onsets, FAR][1:], strict=True):
        first = next((each for each in seen if onset <= each < following), None)
        delays.append(None if first is None else (first - onset).total_seconds() / 86400)
    known = [each for each in delays if each is not None]
    return {
        "episodes": len(onsets),
        "detected": len(known),
        "mean_delay_days": float(np.mean(known)) if known else None,
        "began": [each.isoformat() for each in onsets],
        "delay_days": delays,
    }


def against(task: Task, ours: Answers, theirs: Answers) -> dict[str, Any]:
    """A policy beside another on the cases both answered; intervals are over whole days drawn where there are ten.

    Returns:
        `metric` and `cost_per_case`, each a difference {value, low, high} that is above 0 where ours is the better.
    """
    _, mine, others = np.intersect1d(ours.cases, theirs.cases, assume_unique=True, return_indices=True)
    # In order of time: the days that are drawn together.
    order = np.argsort(ours.asked[mine], kind="stable")
    mine, others = mine[order], others[order]
    if not len(mine):
        return {"cases": 0, "metric": None, "cost_per_case": None}
    name = task.success.metric
    sign = -1.0 if name in LOWER_IS_BETTER else 1.0
    saved = theirs.costs[others] - ours.costs[mine]

    def of(rows: Rows) -> dict[str, Metric]:
        a = answered(task, ours.labels[mine][rows], ours.answers[mine][rows]).metric(name)
        b = answered(task, theirs.labels[others][rows], theirs.answers[others][rows]).metric(name)
        part = saved[rows]
        return {
            "metric": lambda counts: sign * (a(counts) - b(counts)),
            "cost_per_case": lambda counts: counts @ part / counts.sum(axis=1),
        }

    found = estimate(of, len(mine), task.training.seed, ours.asked[mine])
    return {"cases": len(mine), **{name: _plain(each) for name, each in found.items()}}


def verdict(task: Task, policy: Mapping[str, Any], reference: str) -> str:
    """One sentence on whether a policy was worth it beside another; plain where it was not.

    Args:
        task: names metric and currency.
        policy: its figures, with `against`.
        reference: the other policy's name.
    """
    count, beside = policy["retrainings"], policy["against"]
    trained = f"{count} retraining{'s' if count != 1 else ''}"
    if not count:
        return f"It never retrained, so it is {reference} by another name."
    if beside["metric"] is None:
        return f"{trained}; no case to compare with {reference}."
    told = []
    for name, unit in (("metric", task.success.metric), ("cost_per_case", f"{task.success.cost.currency} a case")):
        value, low, high = (beside[name][end] for end in ("value", "low", "high"))
        if value is None or low is None or high is None:  # outcomes of one class only
            told.append((0, f"{unit} unknown"))
            continue
        interval = f"{value:+.4g} {unit} [{low:+.4g}, {high:+.4g}]"
        told.append((1 if low > 0 else -1 if high < 0 else 0, interval))
    (metric, metric_text), (money, money_text) = told
    shown = f"against {reference} {metric_text}, saved {money_text}"
    if money > 0 or (metric > 0 and not money):
        return f"It helped: {trained}, {shown}."
    if money < 0 or metric < 0:
        return f"It did harm: {trained}, {shown}."
    return f"It did not help: {trained} bought nothing beyond chance, {shown}."


def _plain(found: Estimate) -> dict[str, float | None]:
    return {"value": _finite(found.value), "low": _finite(found.low), "high": _finite(found.high)}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
