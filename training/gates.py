"""What a version must show before it may reach anybody: named rules, three verdicts, one page.

Only "pass" on every gate makes a candidate. Missing evidence is "inconclusive", which is not a pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from contracts.task import Task
from training.evaluation import Evaluation
from training.resampling import Estimate
from training.slices import Slices
from training.value_metrics import coverage_name

Verdict = Literal["pass", "fail", "inconclusive"]
_NAMED = 3
"""Groups too small to judge that are named one by one."""
_NAIVE = {"binary": "base rate", "regression": "median"}


@dataclass(frozen=True, slots=True)
class Gate:
    """One rule's verdict, with what it rests on and what to do about it."""

    name: str
    verdict: Verdict
    threshold: str
    """The rule, in words and numbers."""
    evidence: str
    """What was measured."""
    action: str
    """What to do; empty on a pass."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def judge(task: Task, evaluation: Evaluation) -> tuple[Gate, ...]:
    """Every gate of a task, in the order of the report."""
    return (
        _holdout_size(task, evaluation),
        _floor(task, evaluation),
        *(_coverage(task, evaluation, level) for level in task.quantiles),
        _baseline(task, evaluation),
        _champion(task, evaluation),
        _business_cost(task, evaluation),
        _slice_gap(task, evaluation),
        _parity(task, evaluation),
        _latency(task, evaluation),
    )


def promotable(gates: Iterable[Gate]) -> bool:
    """Whether every gate passed."""
    return all(gate.verdict == "pass" for gate in gates)


def _gate(name: str, verdict: Verdict, threshold: str, evidence: str, action: str) -> Gate:
    return Gate(name, verdict, threshold, evidence, "" if verdict == "pass" else action)


def _holdout_size(task: Task, found: Evaluation) -> Gate:
    least = task.gates.min_holdout_rows
    return _gate(
        "holdout_size",
        "pass" if found.rows >= least else "inconclusive",
        f"at least {least:,} holdout rows",
        f"{found.rows:,} rows" + (f", {found.positives:,} positive" if task.kind == "binary" else ""),
        "lengthen training.holdout, or wait for more labels",
    )


def _floor(task: Task, found: Evaluation) -> Gate:
    """The value itself must reach the floor; falling short by no more than chance is inconclusive."""
    name, floor = task.success.metric, task.success.floor
    metric = found.metrics[name]
    best = metric.low if task.is_better(metric.low, metric.high) else metric.high
    reached = not task.is_better(floor, metric.value)
    verdict: Verdict = "pass" if reached else "fail" if task.is_better(floor, best) else "inconclusive"
    bound = "at least" if task.is_better(1.0, 0.0) else "at most"
    action = "look at the features and the audit of the data; a longer training.window may help"
    return _gate("floor", verdict, f"{name} {bound} {floor:g}", f"{name} {_text(metric)}", action)


def _coverage(task: Task, found: Evaluation, level: float) -> Gate:
    """As many labels at or below the quantile as its level says; too far off within chance is inconclusive."""
    tolerance, share = task.gates.coverage_tolerance, found.metrics[coverage_name(level)]
    if abs(share.value - level) <= tolerance:
        verdict: Verdict = "pass"
    else:
        reached = share.low - tolerance <= level <= share.high + tolerance
        verdict = "inconclusive" if reached else "fail"
    return _gate(
        coverage_name(level),
        verdict,
        f"a share of {level:g} of the labels at or below the {level:g} quantile, within {tolerance:g}",
        f"share {_text(share)}",
        "give training.validation more or later rows to calibrate the quantiles on",
    )


def _baseline(task: Task, found: Evaluation) -> Gate:
    """Better than the naive baseline by the margin, over the whole interval."""
    margin, name, naive = task.gates.baseline_margin, task.success.metric, _NAIVE[task.kind]
    return _gate(
        "baseline",
        _at_least(margin, found.over_baseline),
        f"{name} better than the {naive}'s by {margin:g}, whole interval",
        f"better by {_text(found.over_baseline)}; {naive} alone {found.baseline[name].value:.4f}",
        "the features carry too little: check the joins and the label",
    )


def _champion(task: Task, found: Evaluation) -> Gate:
    """Not worse than the champion by more than the margin, over the whole paired interval."""
    margin, name = task.gates.champion_margin, task.success.metric
    rule = f"{name} not worse than the champion's by more than {margin:g}, whole paired interval"
    action = "keep the champion; train on a later or longer window"
    if found.champion is None:
        return _gate("champion", "pass", rule, "there is no champion yet: the baseline stands in for it", action)
    other = found.champion
    if other.difference is None:
        return _gate(
            "champion",
            "inconclusive",
            rule,
            f"The champion: {other.note}",
            "keep its features in the service until it is replaced",
        )
    evidence = f"better by {_text(other.difference)}; champion {other.metrics[name].value:.4f}"
    return _gate("champion", _at_least(-margin, other.difference), rule, f"{evidence}. {other.note}".strip(), action)


def _business_cost(task: Task, found: Evaluation) -> Gate:
    """Not dearer than what is cheapest without a model; dearer within chance is inconclusive."""
    costs, currency = found.cost_per_case, task.success.cost.currency
    over = costs["over_trivial"]
    verdict: Verdict = "pass" if over.value <= 0 else "fail" if over.low > 0 else "inconclusive"
    if found.threshold is None:
        return _gate(
            "business_cost",
            verdict,
            "a case costs no more than under the training rows' median",
            f"{costs['model'].value:.4f} {currency} a case; median {costs['naive'].value:.4f}; over it {_text(over)}",
            "check success.cost against success.metric: the value is fitted to the metric, not to the prices",
        )
    return _gate(
        "business_cost",
        verdict,
        "a case costs no more than under the better of never and always acting",
        f"{costs['model'].value:.4f} {currency} a case at threshold {found.threshold:.4f}; "
        f"never {costs['never'].value:.4f}, always {costs['always'].value:.4f}; over the better {_text(over)}",
        "check success.cost, or give training.validation more rows to choose the threshold on",
    )


def _slice_gap(task: Task, found: Evaluation) -> Gate:
    """Best less worst value of a slice column within the allowed gap; beyond it within chance is inconclusive."""
    limit = task.fairness.max_gap
    verdicts, evidence = [], []
    for slices in found.slices:
        verdict, text = _gap(slices, limit)
        verdicts.append(verdict)
        evidence.append(text)
    worst: Verdict = "fail" if "fail" in verdicts else "inconclusive" if "inconclusive" in verdicts else "pass"
    return _gate(
        "slice_gap",
        worst,
        f"{task.success.metric} of the best and the worst slice at most {limit:g} apart",
        "; ".join(evidence) or "the task names no slices",
        "look at the worst slice's features and rows; fairness.min_rows says which slices are judged",
    )


def _gap(slices: Slices, limit: float) -> tuple[Verdict, str]:
    judged = slices.judged
    left_out = [f"{group.value or 'null'} ({group.note})" for group in slices.groups if group.metric is None]
    seen = f"{len(judged)} of {len(slices.groups)} groups judged"
    if left_out:
        more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        seen = f"{seen}, inconclusive: {', '.join(left_out[:_NAMED])}{more}"
    if len(judged) < 2:
        return ("pass" if len(slices.groups) < 2 else "inconclusive"), f"{slices.column}: {seen}"
    lowest, highest = judged[0], judged[-1]
    assert lowest.metric is not None
    assert highest.metric is not None
    gap = highest.metric.value - lowest.metric.value
    text = (
        f"{slices.column}: {gap:.4f} between {highest.value or 'null'} {_text(highest.metric)} and "
        f"{lowest.value or 'null'} {_text(lowest.metric)}, {seen}"
    )
    if gap <= limit:
        return "pass", text
    return ("fail" if highest.metric.low - lowest.metric.high > limit else "inconclusive"), text


def _parity(task: Task, found: Evaluation) -> Gate:
    limit = task.gates.parity_tolerance
    return _gate(
        "parity",
        "pass" if found.parity <= limit else "fail",
        f"packaged and native scores at most {limit:g} apart",
        f"largest difference {found.parity:.2e} over {found.rows:,} rows",
        "a defect of the packaging: report it with training.params",
    )


def _latency(task: Task, found: Evaluation) -> Gate:
    limit = task.gates.latency_share * task.budget.p99_ms
    one = found.latency[0]
    return _gate(
        "latency",
        "pass" if one.p99 <= limit else "fail",
        f"one row within {limit:g} ms at p99 ({task.gates.latency_share:g} of the budget)",
        f"p50 {one.p50:.3f} ms, p99 {one.p99:.3f} ms over {one.calls:,} calls",
        "a smaller model (training.params), another training.learner, or a larger budget",
    )


def _at_least(margin: float, advantage: Estimate) -> Verdict:
    if advantage.low >= margin:
        return "pass"
    return "fail" if advantage.high < margin else "inconclusive"


def _text(metric: Estimate) -> str:
    return f"{metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}]"
