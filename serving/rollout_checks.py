"""The checks a challenger must pass at each stage: small pure functions from evidence to a verdict with its reason.

Three verdicts. `pass` needs evidence, never its absence. `fail` drops the challenger at once. `inconclusive` waits.

Looking often must not roll back a good version, so a version is only convicted by bounds that hold however often one
looks (`serving.sequential`), counted from the stage's beginning on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from contracts.duration import show_duration
from contracts.operations_policy import Rollout
from contracts.task import Task
from serving.evidence import Evidence, Traffic
from serving.load_tests import LoadTest
from serving.rollout_state import Verdict
from serving.sequential import ALPHA, Excess, excess, share_bounds

WAIVABLE = frozenset({"latency", "load_test", "divergence", "performance", "decision_rate"})
"""Inconclusive checks a person may accept; samples, bake, errors, skew, alerts and the drill are nobody's to waive."""

_SLOW_SHARE = 0.01  # what a 99th percentile leaves over
_LEAST_FOR_QUANTILE = (
    20  # below this, one slow request in a hundred cannot be told from a slow version: none may be slow
)
_RATE_FACTOR = 3.0
_RATE_POINTS = 0.10
_LEAST_FOR_RATE = 30


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer."""

    name: str
    verdict: Verdict
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def judge(task: Task, evidence: Evidence) -> tuple[Check, ...]:
    """Every check that the evidence alone answers, in a fixed order."""
    rules = task.rollout
    return (
        exposure(rules, evidence),
        errors(rules, evidence),
        latency(task.budget.p99_ms, evidence),
        divergence(rules, evidence),
        skew(evidence),
        performance(evidence),
        decision_rate(evidence),
    )


def overall(checks: Sequence[Check]) -> Verdict:
    """Fail if any fails, else inconclusive if any is, else pass. No checks at all prove nothing."""
    verdicts = {check.verdict for check in checks}
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts == {"pass"} else "inconclusive"


def exposure(rules: Rollout, evidence: Evidence) -> Check:
    """Enough rows of the challenger's own, over enough time."""
    shadow = evidence.stage == "shadow"
    least, bake = (rules.shadow_samples, rules.shadow_bake) if shadow else (rules.canary_samples, rules.canary_bake)
    age, rows = evidence.until - evidence.since, evidence.challenger.rows
    found = {"rows": rows, "least_rows": least, "age_s": age.total_seconds(), "bake_s": bake.total_seconds()}
    over = show_duration(timedelta(seconds=int(age.total_seconds())))
    if rows >= least and age >= bake:
        return Check("exposure", "pass", f"{rows} rows over {over}", found)
    return Check("exposure", "inconclusive", f"{rows} of {least} rows over {over} of {show_duration(bake)}", found)


def errors(rules: Rollout, evidence: Evidence) -> Check:
    """The rate of failed requests the challenger had a part in, answered or mirrored, is at most the task's.

    Fails when the rate is shown to exceed both the task's and the champion's own over the same time.
    """
    count = evidence.errors
    if count is None:
        return Check("errors", "inconclusive", "how requests ended was not counted")
    beside = (count.champion_failed, count.champion_requests)
    over = excess(count.failed, count.requests, rules.max_error_rate, beside=beside)
    found = {**asdict(count), "max_error_rate": rules.max_error_rate, **_shown(over)}
    told = f"{count.failed} of {count.requests} requests failed, at most {rules.max_error_rate:.2%} may"
    if over.convicted:
        return Check("errors", "fail", told, found)
    if count.requests and count.failed <= rules.max_error_rate * count.requests:
        return Check("errors", "pass", told, found)
    return Check("errors", "inconclusive", told, found)


def latency(budget_ms: float, evidence: Evidence) -> Check:
    """Requests holding a row of the challenger's keep the p99 budget.

    Passes when at most 1 % of them are slower. Below 100 requests a p99 is the slowest one and one accident would
    decide, so one may be slower from 20 on, and none below that. Fails when the share of slow requests is shown to
    exceed both 1 % and the champion's own share over the same time: a slow machine is not the version's fault.
    """
    if evidence.stage == "shadow":
        return _not_needed("latency", "nobody waits for a shadow")
    ours, held = evidence.challenger, evidence.champion
    allowed = 0 if ours.requests < _LEAST_FOR_QUANTILE else max(1, int(ours.requests * _SLOW_SHARE))
    over = excess(ours.over_budget, ours.requests, _SLOW_SHARE, beside=(held.over_budget, held.requests))
    found = {
        "budget_ms": budget_ms,
        "p50_ms": ours.p50_ms,
        "p99_ms": ours.p99_ms,
        "requests": ours.requests,
        "over_budget": ours.over_budget,
        "champion": asdict(held),
        **_shown(over),
    }
    if not ours.requests:
        return Check("latency", "inconclusive", "the challenger has answered no request", found)
    told = f"{ours.over_budget} of {ours.requests} requests took over {budget_ms:g} ms, {allowed} may"
    if over.convicted:
        return Check("latency", "fail", told, found)
    return Check("latency", "pass" if ours.over_budget <= allowed else "inconclusive", told, found)


def divergence(rules: Rollout, evidence: Evidence) -> Check:
    """Scores on identical vectors are distributed as the champion's, by population stability index.

    Every request is compared in shadow, and in canary every one that the champion answers. Fails when even the least
    index that the pairs leave possible is above the task's.
    """
    compared = evidence.comparison
    if evidence.champion_is_baseline:
        return _not_needed("divergence", "the champion is the naive baseline, whose score is constant")
    if compared is None:
        return Check("divergence", "inconclusive", "no request was scored by both versions")
    least = rules.shadow_samples if evidence.stage == "shadow" else rules.canary_samples
    found = {"psi": compared.psi, "psi_low": compared.psi_low, "max": rules.max_divergence, "pairs": compared.pairs}
    told = f"PSI {compared.psi:.3f} on {compared.pairs} pairs, at most {rules.max_divergence:g}"
    if compared.psi_low > rules.max_divergence:
        return Check("divergence", "fail", f"{told}; it is no less than {compared.psi_low:.3f}", found)
    if compared.pairs < least:
        return Check("divergence", "inconclusive", f"{told}; judged from {least} pairs on", found)
    return Check("divergence", "pass" if compared.psi <= rules.max_divergence else "inconclusive", told, found)


def skew(evidence: Evidence) -> Check:
    """Every logged value that was recomputed offline is the same."""
    count = evidence.skew
    if count is None or not count.checked:
        return Check("skew", "inconclusive", "no logged value was recomputed offline")
    told = f"{count.mismatches} of {count.checked} values differ from their offline recomputation"
    return Check("skew", "fail" if count.mismatches else "pass", told, asdict(count))


def performance(evidence: Evidence) -> Check:
    """The primary metric, realized or estimated, reaches its floor; fails when even its optimistic bound does not."""
    found = evidence.performance
    if found is None or found.value is None:
        if evidence.stage == "shadow":
            return _not_needed("performance", "not needed before anybody is answered")
        why = f": {found.note}" if found is not None and found.note else ""
        return Check("performance", "inconclusive", f"performance is neither realized nor estimated{why}")
    sign = 1 if found.higher_is_better else -1
    bounds = [found.value, *(bound for bound in (found.low, found.high) if bound is not None)]
    hopeful = max(sign * bound for bound in bounds)
    told = f"{found.kind} {found.metric} {found.value:.4f} on {found.rows:,} rows, floor {found.floor:g}"
    if not np.isfinite(bounds).all():
        return Check("performance", "inconclusive", f"{found.kind} {found.metric} is not a number", asdict(found))
    if sign * found.value >= sign * found.floor:
        return Check("performance", "pass", told, asdict(found))
    return Check("performance", "fail" if hopeful < sign * found.floor else "inconclusive", told, asdict(found))


def decision_rate(evidence: Evidence) -> Check:
    """Business proxy: the share of rows acted on is sane, since every act costs and every omission may.

    Sane is within a factor of three or ten percentage points of a yardstick, whichever is wider. The yardstick is the
    champion on the same requests or, where none was scored by both, over the same time: being shown to be outside what
    that allows fails. Where there is no champion model it is the challenger's own holdout: another time, so that
    leaving the band only waits.
    """
    ours, held, yardstick, whose = _rates(evidence)
    if not ours.rows or yardstick is None:
        why = "the challenger has scored no row" if not ours.rows else "there is no rate to compare with"
        return Check("decision_rate", "inconclusive", why)
    low, high = _sane(yardstick)
    rate = ours.acted / ours.rows
    found = {"rate": rate, "rows": ours.rows, "yardstick": yardstick, "of": whose, "low": low, "high": high}
    told = f"acts on {rate:.1%} of {ours.rows} rows; {whose} on {yardstick:.1%}, sane is {low:.1%} to {high:.1%}"
    if low <= rate <= high:
        return Check("decision_rate", "pass", told, found)
    if whose == _HOLDOUT:
        return Check("decision_rate", "inconclusive", told, found)
    least, most = share_bounds(ours.acted, ours.rows, ALPHA / 2)
    least_held, most_held = share_bounds(held.acted, held.rows, ALPHA / 2)
    convicted = least > _sane(most_held)[1] or most < _sane(least_held)[0]
    found |= {"least": float(least), "most": float(most)}
    return Check("decision_rate", "fail" if convicted else "inconclusive", told, found)


def alerts(open_ids: Sequence[int]) -> Check:
    """No finding of monitoring waits for a person."""
    if open_ids:
        told = f"{len(open_ids)} open alerts are not acknowledged"
        return Check("alerts", "inconclusive", told, {"open": list(open_ids)})
    return Check("alerts", "pass", "no open alert waits for a person")


def drill(passed: bool | None, at: datetime | None) -> Check:
    """The latest rollback drill of the task passed; None when there was none."""
    if passed is None:
        return Check("drill", "inconclusive", "no rollback drill is on record")
    found = {"at": at.isoformat()} if at else {}
    if passed:
        return Check("drill", "pass", f"rollback was rehearsed at {at}", found)
    return Check("drill", "inconclusive", f"the latest rollback drill, at {at}, failed", found)


def drift_drill(passed: bool | None, at: datetime | None) -> Check:
    """Before a task first goes live its detectors saw drift that was put into copies of real rows."""
    if passed is None:
        return Check("drift_drill", "inconclusive", "no drift drill is on record: `skewless drill drift`")
    found = {"at": at.isoformat()} if at else {}
    if passed:
        return Check("drift_drill", "pass", f"drift detection was rehearsed at {at}", found)
    return Check("drift_drill", "inconclusive", f"the latest drift drill, at {at}, failed", found)


_HOLDOUT = "its own holdout"


def load_test(task: Task, found: LoadTest | None) -> Check:
    """99 of 100 requests were answered within the budget at the traffic the task expects, the version answering too."""
    least, budget = task.rollout.load_test_requests, task.budget
    if not least:
        return _not_needed("load_test", "the task asks for none (rollout.load_test_requests = 0)")
    if found is None:
        return Check("load_test", "inconclusive", "no load test of this version in canary is on record")
    p99, low, high = found.quantiles["p99"]
    told = f"p99 {p99:.1f} ms ({low:.1f} to {high:.1f}) of {found.requests} requests at {found.rate:g}/s"
    for short, why in (
        (found.requests < least, f"{least} requests are needed"),
        (found.rate < budget.requests_per_second, f"{budget.requests_per_second:g}/s is expected"),
        (found.failed > task.rollout.max_error_rate * found.requests, f"{found.failed} failed"),
        (found.refused > 0, f"{found.refused} were refused: they were not real questions"),
        (p99 > budget.p99_ms, f"the budget is {budget.p99_ms:g} ms"),
    ):
        if short:
            return Check("load_test", "inconclusive", f"{told}; {why}", found.to_dict())
    return Check("load_test", "pass", f"{told}, within {budget.p99_ms:g} ms", found.to_dict())


def _rates(evidence: Evidence) -> tuple[Traffic, Traffic, float | None, str]:
    compared, ours, held = evidence.comparison, evidence.challenger, evidence.champion
    if compared is not None:
        acting, acted = (
            Traffic(compared.pairs, compared.pairs, 0, None, None, count)
            for count in (compared.challenger_acted, compared.champion_acted)
        )
        return acting, acted, acted.action_rate, "the champion on the same requests"
    if not evidence.champion_is_baseline and held.rows >= _LEAST_FOR_RATE:
        return ours, held, held.action_rate, "the champion over the same time"
    return ours, held, evidence.holdout_action_rate, _HOLDOUT


def _sane(yardstick: float) -> tuple[float, float]:
    low = max(0.0, min(yardstick / _RATE_FACTOR, yardstick - _RATE_POINTS))
    return low, min(1.0, max(yardstick * _RATE_FACTOR, yardstick + _RATE_POINTS))


def _shown(over: Excess) -> dict[str, float]:
    return {"at_least": over.low, "excused": over.excused}


def _not_needed(name: str, why: str) -> Check:
    return Check(name, "pass", f"not applicable: {why}", {"applies": False})
