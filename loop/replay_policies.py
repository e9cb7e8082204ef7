"""Retraining policies that a replay compares: what each lets a decision ask for. One table, and the real decision.

Every policy sees the same monitoring report through `monitoring.decision.decide`; it differs in which rules it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from contracts.clock import as_utc
from contracts.errors import SkewlessError
from contracts.mistakes import nearest
from contracts.operations_policy import Monitoring
from contracts.task import LOWER_IS_BETTER, Task

if TYPE_CHECKING:
    from monitoring.decision import Decision
    from monitoring.report import MonitoringReport

_NEVER_DUE = timedelta(days=36500)
_DRIFT = ("drift_performance_holds", "drift_performance_unknown")


class UnknownPolicy(SkewlessError, ValueError):
    """A policy that a replay does not know, or one named twice."""


@dataclass(frozen=True, slots=True)
class Policy:
    """When a version is trained again."""

    name: str
    description: str
    decay: bool = False
    """Whether performance below the floor, realized or estimated and trusted, retrains."""
    drift: bool = False
    """Whether drift alone retrains; no production decision does that."""
    every: timedelta | None = None
    """Longest time between two trainings; None is for ever."""
    own_schedule: bool = False
    """Whether the task's own schedule holds."""

    def reason(
        self,
        task: Task,
        report: MonitoringReport,
        *,
        last_training: datetime,
        now: datetime,
        trained: Sequence[datetime] = (),
    ) -> tuple[str, Decision] | None:
        """Why a version is to be trained now, and the decision that says so; None when it is not.

        Args:
            task: the rules of monitoring and retraining.
            report: what monitoring found as of `now`.
            last_training: with whatever outcome.
            now: the instant of the decision. Whatever the reason, `retraining.cooldown` is kept.
            trained: when it was trained before: `retraining.budget` is for what performance asks for.
        """
        from monitoring.decision import decide

        every = task.retraining.schedule if self.own_schedule else self.every or _NEVER_DUE
        decision = decide(
            task.model_copy(
                update={
                    "monitoring": task.monitoring if self.decay else _without_floor(task),
                    "retraining": task.retraining.model_copy(update={"schedule": every}),
                }
            ),
            report,
            last_training=last_training,
            now=now,
            trained=trained if self.decay else (),
        )
        if decision.request is not None:
            return decision.request, decision
        rested = now - as_utc(last_training) >= task.retraining.cooldown
        return ("drift", decision) if self.drift and rested and decision.rule in _DRIFT else None


def watched(task: Task) -> Task:
    """The task as a replay's watch decides by it: every alert of its own rules, but no schedule in front of them."""
    return task.model_copy(update={"retraining": task.retraining.model_copy(update={"schedule": _NEVER_DUE})})


def parse_policies(names: Sequence[str]) -> tuple[Policy, ...]:
    """Policies by their names, in that order.

    Raises:
        UnknownPolicy: a name that is none, or is there twice.
    """
    for name in names:
        if name not in POLICIES:
            raise UnknownPolicy(
                f"There is no policy {name!r}{nearest(name, list(POLICIES))}",
                hint=f"known are {', '.join(POLICIES)}.",
            )
        if list(names).count(name) > 1:
            raise UnknownPolicy(f"Policy {name!r} is named twice.", hint="name each once.")
    return tuple(POLICIES[name] for name in names)


def _without_floor(task: Task) -> Monitoring:
    """Monitoring rules under which no performance is too bad."""
    anything = float("inf") if task.success.metric in LOWER_IS_BETTER else float("-inf")
    return task.monitoring.model_copy(update={"performance_floor": anything})


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("never", "the first version serves to the end"),
        Policy("weekly", "a training every 7 days", every=timedelta(days=7)),
        Policy("monthly", "a training every 30 days", every=timedelta(days=30)),
        Policy("quarterly", "a training every 90 days", every=timedelta(days=90)),
        Policy("drift", "a training when the inputs have drifted, whatever performance does", drift=True),
        Policy("decay", "a training when performance is below the floor", decay=True),
        Policy("task", "the task's own rules: decay, and its schedule", decay=True, own_schedule=True),
    )
}
"""What `--policies` may name."""
