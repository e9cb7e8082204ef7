"""What to do about a monitoring report: one table, pure and explained; and its record in the shared state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Engine, insert, select

from contracts.clock import as_utc
from contracts.state import retrain_requests
from contracts.task import LOWER_IS_BETTER, Task
from monitoring.alerts import open_alert
from monitoring.report import ChunkReport, MonitoringReport
from monitoring.skew_report import SkewReport

Action = Literal["retrain", "alert_and_review", "alert", "none"]
Rule = Literal[
    "decay",
    "decay_in_cooldown",
    "schedule",
    "drift_performance_holds",
    "drift_performance_unknown",
    "skew",
    "vanished_feature",
    "nothing",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """An alert to open: what was seen, why it matters, what to do."""

    kind: Literal["skew", "drift", "decay", "data_quality"]
    message: str
    evidence: dict[str, Any]


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
            "blocks_promotion": self.blocks_promotion,
        }


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a decision added to the state; a decision taken again adds nothing."""

    alerts: tuple[int, ...] = ()
    request: int | None = None


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
    vanished: tuple[str, ...]
    """Features without a single value in every latest chunk."""
    reasons: tuple[str, ...] = field(default=())


def decide(task: Task, report: MonitoringReport, *, last_training: datetime | None, now: datetime) -> Decision:
    """Choose what is done about a report. The same arguments give the same decision.

    Skew is always raised, beside whatever else is done. Of the other rules the first that holds acts:

    | seen | done |
    |---|---|
    | performance below the floor in `consecutive` chunks | retrain; within the cool-down an alert that says when |
    | the schedule is due | retrain |
    | drift, performance holds | alert, and a review; no retraining |
    | drift, performance unknown | alert |
    | skew, or a feature that vanished | alert |
    | nothing | nothing |

    Args:
        task: the policy.
        report: what monitoring found.
        last_training: when the task was last trained, with whatever outcome; None if never.
        now: the instant of the decision.
    """
    now = as_utc(now)
    view = _look(task, report)
    allowed = now if last_training is None else max(now, as_utc(last_training) + task.retraining.cooldown)
    due = last_training is None or now - as_utc(last_training) >= task.retraining.schedule
    beside = (*skew_findings(report.skew), *_vanished(view))
    evidence = _evidence(report, view)

    def done(action: Action, rule: Rule, reason: str, next_step: str, **more: Any) -> Decision:
        findings = (*beside, *more.pop("findings", ()))
        reasons = (reason, *view.reasons, *(each.message.partition(" Why: ")[0] for each in beside))
        return Decision(report.task, action, rule, reasons, evidence, next_step, findings, **more)

    if view.below:
        tail = view.measured[-task.monitoring.consecutive :]
        values = ", ".join(f"{each.value:.4f} ({each.source}, {each.chunk.start:%F %H:%M})" for each in tail)
        reason = (
            f"{report.metric} is beyond the floor {task.monitoring.performance_floor} in {len(tail)} chunks: {values}"
        )
        if now >= allowed:
            return done("retrain", "decay", reason, f"run `skewless retrain {report.task}`", request="decay")
        finding = Finding(
            "decay",
            f"What: {reason}. Why: the last training is less than {task.retraining.cooldown} old, so another is not "
            f"asked for before {allowed:%FT%TZ}. Do: see what changed since; roll back if the version is at fault.",
            {"chunks": [each.to_dict() for each in tail], "allowed_at": allowed.isoformat()},
        )
        step = f"wait until {allowed:%FT%TZ}, when a retraining is allowed, or roll back"
        return done("alert", "decay_in_cooldown", reason, step, findings=(finding,))
    if due and now >= allowed:
        since = (
            "the task was never trained" if last_training is None else f"last trained {as_utc(last_training):%FT%TZ}"
        )
        reason = f"the schedule of {task.retraining.schedule} is due: {since}"
        return done("retrain", "schedule", reason, f"run `skewless retrain {report.task}`", request="schedule")
    if view.drifted:
        return _about_drift(task, view, done)
    if beside:
        rule: Rule = "skew" if any(each.kind == "skew" for each in beside) else "vanished_feature"
        return done("alert", rule, "what is below needs a person", "read the alert and acknowledge it with a note")
    return done("none", "nothing", "no skew, no decay, no drift, no schedule due", "nothing to do")


def record(engine: Engine, decision: Decision, now: datetime) -> Recorded:
    """Write a decision's alerts and its retraining request in one transaction; an open one is never doubled."""
    now = as_utc(now)
    requests = retrain_requests.c
    with engine.begin() as connection:
        opened = [
            open_alert(
                connection, task=decision.task, kind=each.kind, message=each.message, evidence=each.evidence, now=now
            )
            for each in decision.findings
        ]
        request: int | None = None
        waiting = select(requests.id).where((requests.task == decision.task) & requests.finished_at.is_(None))
        if decision.request is not None and connection.execute(waiting).first() is None:
            row = insert(retrain_requests).values(
                task=decision.task, reason=decision.request, evidence=decision.evidence, requested_at=now
            )
            (request,) = connection.execute(row).inserted_primary_key or (None,)
    return Recorded(tuple(number for number in opened if number is not None), request)


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
    missing = [{each.feature for each in chunk.quality if each.vanished} for chunk in latest]
    return _View(
        latest=latest,
        measured=measured,
        below=len(tail) == rules.consecutive and all(each.chunk.start in bad for each in tail),
        holds=bool(latest) and all(chunk.start in good for chunk in latest),
        drifted=bool(latest) and all((chunk.drift_share or 0.0) >= rules.drift_share for chunk in latest),
        vanished=tuple(sorted(set.intersection(*missing))) if missing else (),
        reasons=tuple(reasons),
    )


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


def _about_drift(task: Task, view: _View, done: Callable[..., Decision]) -> Decision:
    shares = ", ".join(f"{chunk.drift_share:.0%} ({chunk.start:%F %H:%M})" for chunk in view.latest)
    features = sorted(set.intersection(*(set(chunk.drifted_features) for chunk in view.latest)))
    what = f"the share of drifted features reached {task.monitoring.drift_share:.0%} in each latest chunk: {shares}"
    seen: dict[str, Any] = {"chunks": [chunk.start.isoformat() for chunk in view.latest], "features": features}
    if view.holds:
        review = view.latest[-1].end + task.monitoring.consecutive * task.monitoring.chunk
        finding = Finding(
            "drift",
            f"What: {what}. Why: inputs changed, and performance holds all the same, so a retraining would only chase "
            f"noise. Do: review by {review:%FT%TZ} whether performance still holds.",
            seen | {"review_due": review.isoformat()},
        )
        reason = f"{what}; performance holds"
        step = f"review by {review:%FT%TZ}"
        return done("alert_and_review", "drift_performance_holds", reason, step, findings=(finding,))
    finding = Finding(
        "drift",
        f"What: {what}. Why: nothing reliable says how well the model does on the changed inputs. "
        "Do: look at the drifted features; retrain by hand if the change will last.",
        seen,
    )
    reason = f"{what}; performance is not known"
    return done("alert", "drift_performance_unknown", reason, "look at the drifted features", findings=(finding,))


def skew_findings(skew: SkewReport | None) -> tuple[Finding, ...]:
    """The alert that an audit asks for; none where every value is equal."""
    if skew is None or not skew.mismatches:
        return ()
    worst = sorted((each for each in skew.features if each.mismatches), key=lambda each: -each.mismatches)
    shown = ", ".join(f"{each.name} {each.mismatches}" for each in worst[:5])
    causes: dict[str, int] = {}
    for each in worst:
        for cause, count in each.causes.items():
            causes[cause] = causes.get(cause, 0) + count
    return (
        Finding(
            "skew",
            f"What: {skew.mismatches} of {skew.checked} served feature values are not what training would compute: "
            f"{shown}. Why: the model answers on inputs it was not trained on, and no metric can be trusted. "
            f"Do: causes seen {causes}; stale or absent values ask for a materialization, others for the examples.",
            {
                "checked": skew.checked,
                "mismatches": skew.mismatches,
                "share": skew.share,
                "features": {each.name: each.mismatches for each in worst},
                "causes": causes,
            },
        ),
    )


def _vanished(view: _View) -> tuple[Finding, ...]:
    if not view.vanished:
        return ()
    names = ", ".join(view.vanished)
    return (
        Finding(
            "data_quality",
            f"What: no value at all of {names} in each latest chunk. Why: the model learned from it and now guesses "
            "without. Do: look at the source of the view that holds it.",
            {"features": list(view.vanished), "chunks": [chunk.start.isoformat() for chunk in view.latest]},
        ),
    )


def _evidence(report: MonitoringReport, view: _View) -> dict[str, Any]:
    return {
        "version": report.version,
        "as_of": report.as_of.isoformat(),
        "judged_chunks": len(report.judged),
        "performance": [each.to_dict() for each in view.measured[-5:]],
        "drift_share": [chunk.drift_share for chunk in view.latest],
        "skew_mismatches": report.skew.mismatches if report.skew else None,
        "estimator": report.estimator.to_dict(),
    }
