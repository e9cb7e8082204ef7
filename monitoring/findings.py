"""Alerts that a report calls for: each says what was seen, why it matters and what to do, and what it rests on.

Evidence names what was seen and not how often one looked: the same finding seen again has the same evidence, so that an
alert which a person has dealt with does not come back for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from contracts.duration import show_duration
from contracts.operations_policy import Monitoring
from contracts.task import Task
from monitoring.report import ChunkReport, MonitoringReport
from monitoring.skew_report import SkewReport

Kind = Literal["skew", "drift", "decay", "data_quality", "freshness"]


@dataclass(frozen=True, slots=True)
class Finding:
    """An alert to open: what was seen, why it matters, what to do."""

    kind: Kind
    message: str
    evidence: dict[str, Any]

    @property
    def what(self) -> str:
        """The fact alone."""
        return self.message.partition(" Why: ")[0].removeprefix("What: ")


def standing_findings(task: Task, report: MonitoringReport, latest: Sequence[ChunkReport]) -> tuple[Finding, ...]:
    """What is raised beside whatever else is done: skew, data quality, freshness.

    Args:
        task: the policy.
        report: what monitoring found.
        latest: the judged chunks that must agree.
    """
    return (
        *report_skew(report),
        *quality_findings(task.monitoring, latest),
        *freshness_findings(task.monitoring, report, latest),
    )


def report_skew(report: MonitoringReport) -> tuple[Finding, ...]:
    """Skew that the run's own audits found; else what the latest audit on record found."""
    found = skew_findings(report.skew)
    if found or report.audit_on_record is None or not report.audit_on_record["mismatches"]:
        return found
    audit = report.audit_on_record
    return (
        Finding(
            "skew",
            f"What: the audit of {audit['at']:%FT%TZ} found {audit['mismatches']} of {audit['checked']} served feature "
            "values that are not what training would compute. Why: the model answers on inputs it was not trained on. "
            "Do: read its record, mend the cause, and audit again: a clean audit closes this.",
            {"audit": audit["id"], "mismatches": audit["mismatches"]},
        ),
    )


def skew_findings(skew: SkewReport | None) -> tuple[Finding, ...]:
    """The alert that an audit asks for; none where every value is equal."""
    if skew is None or not skew.mismatches:
        return ()
    worst = sorted((each for each in skew.features if each.mismatches), key=lambda each: (-each.mismatches, each.name))
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
                "mismatches": skew.mismatches,
                "share": skew.share,
                "features": {each.name: each.mismatches for each in worst},
                "causes": causes,
            },
        ),
    )


def quality_findings(rules: Monitoring, latest: Sequence[ChunkReport]) -> tuple[Finding, ...]:
    """Features that vanished, go missing or repeat a value more than usual, or hold what the reference never showed."""
    seen: list[dict[str, str]] = []
    for chunk in latest:
        told = {}
        for each in chunk.quality:
            if each.vanished:
                told[each.feature] = "no value at all"
            elif each.missing - each.missing_reference >= rules.missing_change:
                told[each.feature] = "missing more than usual"
            elif each.unseen >= rules.max_unseen:
                told[each.feature] = "values the reference never showed"
            elif each.repeated >= rules.max_repeated:
                told[each.feature] = "one value far more often than usual"
        seen.append(told)
    if not seen:
        return ()
    always = {name: seen[-1][name] for name in sorted(set.intersection(*(set(each) for each in seen)))}
    if not always:
        return ()
    shown = ", ".join(f"{name} ({what})" for name, what in list(always.items())[:8])
    return (
        Finding(
            "data_quality",
            f"What: {len(always)} features are not as they were in training, in each latest chunk: {shown}. "
            "Why: the model learned from them and now guesses without. "
            "Do: look at the source of the view that holds them.",
            {"features": always},
        ),
    )


def freshness_findings(
    rules: Monitoring, report: MonitoringReport, latest: Sequence[ChunkReport]
) -> tuple[Finding, ...]:
    """Views that answer with rows older than the task allows, or no longer at all."""
    if not latest:
        return ()
    before = [chunk for chunk in report.judged if chunk.start < latest[0].start]
    answered = {age.view for chunk in before for age in chunk.freshness if age.absent < 1}
    always = set.intersection(*(_stale(rules, chunk, answered) for chunk in latest))
    if not always:
        return ()
    ages = {age.view: age for age in latest[-1].freshness}
    shown = ", ".join(f"{view} ({_age(ages[view].median_age, rules, view)})" for view in sorted(always))
    return (
        Finding(
            "freshness",
            f"What: views answer with old rows, or with none, in each latest chunk: {shown}. Why: the features say "
            "what was, not what is. Do: see whether materialization runs, and whether its sources still land.",
            {"views": sorted(always)},
        ),
    )


def _stale(rules: Monitoring, chunk: ChunkReport, answered: set[str]) -> set[str]:
    found = set()
    for age in chunk.freshness:
        limit = rules.max_age.get(age.view)
        too_old = limit is not None and age.median_age is not None and age.median_age > limit.total_seconds()
        if too_old or (age.absent == 1 and age.view in answered):
            found.add(age.view)
    return found


def _age(median: float | None, rules: Monitoring, view: str) -> str:
    if median is None:
        return "no row any more"
    return f"half of the answers older than {median / 3600:.1f} h, {show_duration(rules.max_age[view])} allowed"
