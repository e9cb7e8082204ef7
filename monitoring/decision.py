"""What to do about a monitoring report: one table, pure and explained; and its record in the shared state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Engine, insert, select

from contracts.clock import as_utc
from contracts.duration import show_duration
from contracts.state import create_missing, retrain_requests
from contracts.task import LOWER_IS_BETTER, Task
from monitoring.alerts import open_alert, open_review, resolve_what_passed
from monitoring.findings import Finding, standing_findings
from monitoring.held_back import held_back
from monitoring.report import ChunkReport, MonitoringReport

Action = Literal["retrain", "alert_and_review", "alert", "none"]
Rule = Literal[
    "decay",
    "decay_in_cooldown",
    "decay_over_budget",
    "decay_labels_immature",
    "schedule",
    "drift_performance_holds",
    "drift_performance_unknown",
    "skew",
    "data_quality",
    "freshness",
    "nothing",
]


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done, by which rule, on what evidence."""

    task: str
    action: Action
    rule: Rule
    """The rule that chose the action; findings may stand beside it."""
    reasons: tuple[str, ...]
    evidence: dict[str, Any]
    next_step: str
    findings: tuple[Finding, ...] = ()
    request: Literal["decay", "schedule"] | None = None
    """The reason of the retraining asked for."""
    review_due: datetime | None = None
    """When a person looks whether performance still holds."""
    looked_at: tuple[datetime, datetime] | None = None
    """The time of the chunks that had to agree; None where no chunk could be judged."""

    @property
    def blocks_promotion(self) -> bool:
        """Whether a person must look before any version climbs: every open alert does that."""
        return bool(self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "task": self.task,
            "action": self.action,
            "rule": self.rule,
            "reasons": list(self.reasons),
            "evidence": self.evidence,
            "next_step": self.next_step,
            "alerts": [{"kind": each.kind, "message": each.message} for each in self.findings],
            "review_due": self.review_due.isoformat() if self.review_due else None,
            "blocks_promotion": self.blocks_promotion,
        }


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a decision changed in the state; a decision taken again changes nothing."""

    alerts: tuple[int, ...] = ()
    """Opened."""
    request: int | None = None
    resolved: tuple[int, ...] = ()
    """Alerts whose cause is no longer seen."""
    review: int | None = None


@dataclass(frozen=True, slots=True)
class _Measured:
    """Performance of one judged chunk that may be relied on."""

    chunk: ChunkReport
    value: float
    source: Literal["realized", "estimated"]

    def to_dict(self) -> dict[str, Any]:
        return {"chunk": self.chunk.start.isoformat(), "value": self.value, "source": self.source}


@dataclass(frozen=True, slots=True)
class _View:
    """The report as the rules look at it."""

    latest: tuple[ChunkReport, ...]
    """The last `consecutive` judged chunks, or all if there are fewer: one alone may be chance."""
    measured: tuple[_Measured, ...]
    below: bool
    """The last `consecutive` reliable figures are all beyond the floor."""
    holds: bool
    """Every latest chunk has a reliable figure, and none is beyond the floor."""
    drifted: bool
    """Every latest chunk has drifted."""
    reasons: tuple[str, ...] = field(default=())


def decide(
    task: Task,
    report: MonitoringReport,
    *,
    last_training: datetime | None,
    now: datetime,
    trained: Sequence[datetime] = (),
) -> Decision:
    """Choose what is done about a report. The same arguments give the same decision.

    Skew, data quality and freshness are always raised, beside whatever else is done. Of the other rules the first that
    holds acts:

    | seen | done |
    |---|---|
    | performance below the floor in `consecutive` chunks | retrain; an alert instead within the cool-down (not while
      the naive baseline answers), beyond the budget, or while there are no new labels to learn from |
    | the schedule is due, within the budget | retrain |
    | drift, performance holds | alert, and a review; no retraining |
    | drift, performance unknown | alert |
    | skew, data quality, freshness | alert |
    | nothing | nothing |

    Args:
        task: the policy.
        report: what monitoring found.
        last_training: when the task was last trained, with whatever outcome; None if never.
        now: the instant of the decision.
        trained: when it was trained before; only those within the budget's period count.
    """
    now = as_utc(now)
    view, rules = _look(task, report), task.retraining
    allowed = now if last_training is None else max(now, as_utc(last_training) + rules.cooldown)
    due = last_training is None or now - as_utc(last_training) >= rules.schedule
    spent = sorted(each for each in map(as_utc, trained) if now - rules.budget_period < each <= now)
    affordable = len(spent) < rules.budget
    beside = standing_findings(task, report, view.latest)
    evidence = _evidence(report, view) | {"trained_in_period": len(spent), "budget": rules.budget}
    looked_at = (view.latest[0].start, view.latest[-1].end) if view.latest else None

    def done(action: Action, rule: Rule, reason: str, next_step: str, **more: Any) -> Decision:
        findings = (*beside, *more.pop("findings", ()))
        reasons = (reason, *view.reasons, *(f"What: {each.what}" for each in beside))
        return Decision(report.task, action, rule, reasons, evidence, next_step, findings, looked_at=looked_at, **more)

    retrain = f"run `skewless retrain {report.task}`"
    if view.below:
        reason = _decay(task, view)
        held = held_back(task, report, reason, last_training=last_training, spent=spent, allowed=allowed, now=now)
        if held is None:
            return done("retrain", "decay", reason, retrain, request="decay")
        if not (report.version == 0 and held.rule == "decay_in_cooldown"):
            return done("alert", held.rule, reason, held.next_step, findings=(held.finding,))
        # The naive baseline: nothing has decayed, and an alert would hold up the very version that is to replace it.
        waits = f"{reason}: the naive baseline answers, and another training is not asked for before {allowed:%FT%TZ}"
        view = replace(view, reasons=(*view.reasons, waits))
    if due and now >= allowed and affordable:
        since = (
            "the task was never trained" if last_training is None else f"last trained {as_utc(last_training):%FT%TZ}"
        )
        reason = f"the schedule of {show_duration(rules.schedule)} is due: {since}"
        return done("retrain", "schedule", reason, retrain, request="schedule")
    if view.drifted:
        return _about_drift(task, view, done)
    if beside:
        kinds = {each.kind for each in beside}
        rule: Rule = "skew" if "skew" in kinds else "data_quality" if "data_quality" in kinds else "freshness"
        return done("alert", rule, "what is below needs a person", "read the alert and acknowledge it with a note")
    return done("none", "nothing", "no skew, no decay, no drift, no schedule due", "nothing to do")


def record(engine: Engine, decision: Decision, now: datetime) -> Recorded:
    """Write a decision's alerts, its review and its retraining request in one transaction; an open one is never
    doubled. Alerts whose cause the chunks that were looked at no longer show are resolved.
    """
    now = as_utc(now)
    create_missing(engine)
    requests = retrain_requests.c
    with engine.begin() as connection:
        opened: list[int] = []
        review: int | None = None
        for each in decision.findings:
            number = open_alert(
                connection, task=decision.task, kind=each.kind, message=each.message, evidence=each.evidence, now=now
            )
            if number is not None:
                opened.append(number)
                if each.kind == "drift" and decision.review_due is not None:
                    review = open_review(connection, alert=number, due=decision.review_due, now=now)
        resolved: list[int] = []
        if decision.looked_at is not None:
            seen = {each.kind for each in decision.findings}
            resolved = resolve_what_passed(connection, decision.task, seen, since=decision.looked_at[0], now=now)
        request: int | None = None
        waiting = select(requests.id).where((requests.task == decision.task) & requests.finished_at.is_(None))
        if decision.request is not None and connection.execute(waiting).first() is None:
            row = insert(retrain_requests).values(
                task=decision.task, reason=decision.request, evidence=decision.evidence, requested_at=now
            )
            (request,) = connection.execute(row).inserted_primary_key or (None,)
    return Recorded(tuple(opened), request, tuple(resolved), review)


def _look(task: Task, report: MonitoringReport) -> _View:
    rules = task.monitoring
    latest = report.judged[-rules.consecutive :]
    measured = tuple(found for chunk in report.judged if (found := _reliable(report, chunk)) is not None)
    bad = {each.chunk.start for each in measured if _beyond(task, each.value)}
    tail = measured[-rules.consecutive :]
    good = {each.chunk.start for each in measured} - bad
    reasons = []
    if report.estimator.trusted is False:
        reasons.append(
            f"the estimator was off by {report.estimator.mean_error:.4f} on average where labels settled, tolerance "
            f"{report.estimator.tolerance}: its estimates do not count"
        )
    elif report.estimator.trusted is None and report.chunks:
        reasons.append("no chunk's labels have settled: the estimator is unproven and its estimates do not count")
    if not latest:
        reasons.append("no chunk is complete and large enough to judge")
    return _View(
        latest=latest,
        measured=measured,
        below=len(tail) == rules.consecutive and all(each.chunk.start in bad for each in tail),
        holds=bool(latest) and all(chunk.start in good for chunk in latest),
        drifted=bool(latest) and all(_has_drifted(task, chunk) for chunk in latest),
        reasons=tuple(reasons),
    )


def _has_drifted(task: Task, chunk: ChunkReport) -> bool:
    return (chunk.drift_share or 0.0) >= task.monitoring.drift_share or chunk.drifted_together


def _reliable(report: MonitoringReport, chunk: ChunkReport) -> _Measured | None:
    if chunk.settled and chunk.realized is not None and chunk.realized.value is not None:
        return _Measured(chunk, chunk.realized.value, "realized")
    comparable = report.estimated_metric == report.metric and report.estimator.trusted is True
    if comparable and chunk.estimated is not None and chunk.estimated.value is not None:
        return _Measured(chunk, chunk.estimated.value, "estimated")
    return None


def _beyond(task: Task, value: float) -> bool:
    floor = task.monitoring.performance_floor
    return value > floor if task.success.metric in LOWER_IS_BETTER else value < floor


def _decay(task: Task, view: _View) -> str:
    tail = view.measured[-task.monitoring.consecutive :]
    values = ", ".join(f"{each.value:.4f} ({each.source}, {each.chunk.start:%F %H:%M})" for each in tail)
    floor = task.monitoring.performance_floor
    return f"{task.success.metric} is beyond the floor {floor} in {len(tail)} chunks: {values}"


def _about_drift(task: Task, view: _View, done: Callable[..., Decision]) -> Decision:
    shares = ", ".join(f"{chunk.drift_share or 0:.0%} ({chunk.start:%F %H:%M})" for chunk in view.latest)
    features = sorted(set.intersection(*(set(chunk.drifted_features) for chunk in view.latest)))
    detectors = sorted({each.column for chunk in view.latest for each in chunk.together if each.drifted})
    what = (
        f"inputs drifted in each latest chunk: the share of drifted features is {shares}, "
        f"{task.monitoring.drift_share:.0%} counts"
    )
    if detectors:
        what += f"; features together have changed by {', '.join(detectors)}"
    seen: dict[str, Any] = {"features": features, "detectors": detectors}
    if view.holds:
        review = view.latest[-1].end + (view.latest[-1].end - view.latest[0].start)
        finding = Finding(
            "drift",
            f"What: {what}. Why: inputs changed, and performance holds all the same, so a retraining would only chase "
            f"noise. Do: review by {review:%FT%TZ} whether performance still holds.",
            seen,
        )
        return done(
            "alert_and_review",
            "drift_performance_holds",
            f"{what}; performance holds",
            f"review by {review:%FT%TZ}",
            findings=(finding,),
            review_due=review,
        )
    finding = Finding(
        "drift",
        f"What: {what}. Why: nothing reliable says how well the model does on the changed inputs. "
        "Do: look at the drifted features; retrain by hand if the change will last.",
        seen,
    )
    reason = f"{what}; performance is not known"
    return done("alert", "drift_performance_unknown", reason, "look at the drifted features", findings=(finding,))


def _evidence(report: MonitoringReport, view: _View) -> dict[str, Any]:
    return {
        "version": report.version,
        "as_of": report.as_of.isoformat(),
        "judged_chunks": len(report.judged),
        "performance": [each.to_dict() for each in view.measured[-5:]],
        "drift_share": [chunk.drift_share for chunk in view.latest],
        "drifted_together": [chunk.drifted_together for chunk in view.latest],
        "skew_mismatches": report.skew.mismatches if report.skew else None,
        "estimator": report.estimator.to_dict(),
    }
