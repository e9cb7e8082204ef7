"""A task's policy in sentences: what a version must show, how it climbs, how it is watched, when it is made again."""

from __future__ import annotations

from contracts.duration import show_duration
from contracts.task import Task

Rows = list[tuple[str, str]]


def policy(task: Task) -> dict[str, Rows]:
    """Part of the policy to (what, rule), every number taken from the task."""
    return {
        "serving": _serving(task),
        "audit": _audit(task),
        "gates": _gates(task),
        "rollout": _rollout(task),
        "monitoring": _monitoring(task),
        "retraining": _retraining(task),
    }


def _serving(task: Task) -> Rows:
    mode, reason = task.serving_mode
    if mode == "online":
        return [("mode", f"online, computed when asked: {reason}")]
    batch = task.batch
    return [
        ("mode", f"batch, read where it was computed before: {reason}"),
        (
            "job",
            f"every {show_duration(batch.every)} (`skewless predict {task.name}`): cases asked about within "
            f"{show_duration(batch.horizon)}",
        ),
        ("answer", f"at most {show_duration(batch.good_for)} old; without one the bundle's fallback, which says so"),
    ]


def _bound(task: Task) -> str:
    return "at least" if task.is_better(1.0, 0.0) else "at most"


def _audit(task: Task) -> Rows:
    limits = task.audit
    shift = show_duration(limits.shift)
    return [
        ("leakage", f"blocks: a feature alone at ROC AUC {limits.perfect_auc:g}"),
        (
            "leakage",
            f"blocks: a feature alone at ROC AUC {limits.vanishing_auc:g} that keeps less than "
            f"{limits.vanishing_keeps:.0%} of its power when read {shift} earlier",
        ),
        ("sources", "blocks: stale, gone, without any row for the spine, or of a type that loses values"),
        ("accepted", ", ".join(limits.accepted) or "nothing"),
    ]


def _gates(task: Task) -> Rows:
    gates, metric = task.gates, task.success.metric
    rows = [
        ("holdout size", f"at least {gates.min_holdout_rows:,} labelled rows"),
        ("floor", f"{metric} {_bound(task)} {task.success.floor:g}"),
        ("baseline", f"{metric} better than the naive baseline's by {gates.baseline_margin:g}, whole interval"),
        ("champion", f"{metric} not worse than the champion's by more than {gates.champion_margin:g}"),
        ("cost", f"no dearer than the better naive policy, in {task.success.cost.currency} a case"),
        ("parity", f"packaged and native answers at most {gates.parity_tolerance:g} apart"),
        ("latency", f"one row within {gates.latency_share * task.budget.p99_ms:g} ms at p99"),
    ]
    tolerance = gates.coverage_tolerance
    rows += [
        (f"coverage {level:g}", f"that share of outcomes at or below it, within {tolerance:g}")
        for level in task.quantiles
    ]
    if task.fairness.slices:
        slices = ", ".join(task.fairness.slices)
        rows.append(("slices", f"{metric} by {slices} at most {task.fairness.max_gap:g} apart"))
    return rows


def _rollout(task: Task) -> Rows:
    ladder = task.rollout
    rows = [("shadow", f"{ladder.shadow_samples:,} requests and {show_duration(ladder.shadow_bake)} at least")]
    bake = show_duration(ladder.canary_bake)
    rows += [
        (f"canary {share:.0%}", f"{ladder.canary_samples:,} answers of its own and {bake} at least")
        for share in ladder.canary_steps
    ]
    soonest = show_duration(ladder.shadow_bake + ladder.canary_bake * len(ladder.canary_steps))
    return [
        *rows,
        ("champion", f"{soonest} after it entered shadow at the soonest"),
        (
            "every step",
            f"errors at most {ladder.max_error_rate:.1%}, divergence at most {ladder.max_divergence:g}, no skew; "
            f"paused for a person after {show_duration(ladder.deadline)} without a verdict",
        ),
    ]


def _monitoring(task: Task) -> Rows:
    watch, metric = task.monitoring, task.success.metric
    below = "below" if task.is_better(1.0, 0.0) else "above"
    return [
        ("chunk", f"{show_duration(watch.chunk)} of log, {watch.min_rows:,} rows at least"),
        ("decay", f"{metric} {below} {watch.performance_floor:g} in {watch.consecutive} chunks in a row: retrain"),
        ("drift", f"{watch.drift_share:.0%} of features in {watch.consecutive} chunks in a row: review"),
        ("estimator", f"off by more than {watch.estimator_tolerance:g} on average: its estimates do not count"),
    ]


def _retraining(task: Task) -> Rows:
    schedule, cooldown = show_duration(task.retraining.schedule), show_duration(task.retraining.cooldown)
    return [("schedule", f"every {schedule} at the latest"), ("cooldown", f"not within {cooldown} of the last one")]
