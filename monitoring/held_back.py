"""Why a retraining that decay calls for is not asked for: too soon, too often, or nothing new to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from contracts.clock import as_utc
from contracts.duration import show_duration
from contracts.task import Task
from monitoring.findings import Finding
from monitoring.report import MonitoringReport


@dataclass(frozen=True, slots=True)
class HeldBack:
    """What stands against it, and the alert that is raised instead."""

    rule: Literal["decay_in_cooldown", "decay_over_budget", "decay_labels_immature"]
    finding: Finding
    next_step: str


def held_back(
    task: Task,
    report: MonitoringReport,
    reason: str,
    *,
    last_training: datetime | None,
    spent: Sequence[datetime],
    allowed: datetime,
    now: datetime,
) -> HeldBack | None:
    """The first thing that stands against a retraining; None when nothing does.

    Args:
        task: the policy.
        report: what monitoring found.
        reason: the decay that was seen.
        last_training: with whatever outcome; None if never.
        spent: trainings within the budget's period, oldest first.
        allowed: when the cool-down is over.
        now: the instant of the decision.
    """
    if now < allowed:
        return _in_cooldown(task, reason, allowed)
    if len(spent) >= task.retraining.budget:
        return _over_budget(task, reason, spent)
    if last_training is not None and new_labels(report, last_training) < task.monitoring.min_rows:
        return _immature(task, report, reason, as_utc(last_training))
    return None


def new_labels(report: MonitoringReport, last_training: datetime) -> int:
    """Labelled predictions asked for since the last training: what a new one would learn that the last did not know."""
    return sum(chunk.labelled for chunk in report.chunks if chunk.end > as_utc(last_training))


def _in_cooldown(task: Task, reason: str, allowed: datetime) -> HeldBack:
    cooldown = show_duration(task.retraining.cooldown)
    finding = Finding(
        "decay",
        f"What: {reason}. Why: the last training is less than {cooldown} old, so another is not asked for before "
        f"{allowed:%FT%TZ}. Do: see what changed since; roll back if the version is at fault.",
        {"allowed_at": allowed.isoformat()},
    )
    step = f"wait until {allowed:%FT%TZ}, when a retraining is allowed, or roll back"
    return HeldBack("decay_in_cooldown", finding, step)


def _over_budget(task: Task, reason: str, spent: Sequence[datetime]) -> HeldBack:
    rules = task.retraining
    period, free = show_duration(rules.budget_period), spent[-rules.budget] + rules.budget_period
    finding = Finding(
        "decay",
        f"What: {reason}. Why: the task was trained {len(spent)} times within {period}, its budget is {rules.budget}: "
        "training again and again has not helped. Do: look for the cause; a person may still retrain, or roll back.",
        {"trained": [each.isoformat() for each in spent], "budget": rules.budget},
    )
    return HeldBack("decay_over_budget", finding, f"find the cause; the budget has room again on {free:%F}")


def _immature(task: Task, report: MonitoringReport, reason: str, last_training: datetime) -> HeldBack:
    found, least = new_labels(report, last_training), task.monitoring.min_rows
    finding = Finding(
        "decay",
        f"What: {reason}. Why: only {found} predictions since the last training have a label, fewer than {least}: "
        "a training now would learn nothing of what changed. Do: wait for labels; see whether their feed stalls.",
        {"since": last_training.isoformat()},
    )
    return HeldBack("decay_labels_immature", finding, f"wait for labels: {least - found} more")
