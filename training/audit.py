"""The audit of a training frame: findings on its columns, on leakage, and on the sources behind it.

A blocking finding stops a training before anything is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from contracts.clock import as_utc
from contracts.errors import SkewlessError
from contracts.task import Task
from training.arrays import feature_of
from training.audit_columns import BUCKETS, Column, buckets, column_findings, evenly, read_columns
from training.audit_leakage import EARLIER, SAMPLE, leak_findings, outcome, powers
from training.audit_sources import SourceState, read_sources, source_findings, type_findings
from training.findings import Finding, settled
from training.frame import Frame
from training.retrieval import open_sources, read_earlier

_MICROSECOND = timedelta(microseconds=1)


class AuditBlocked(SkewlessError, ValueError):
    """The training data has a fault that no model should be fitted on."""

    exit_status = 1


@dataclass(frozen=True, slots=True)
class FeatureProfile:
    """What is known of one feature."""

    name: str
    view: str
    """Empty where the frame was put together by hand."""
    declared: str
    kind: str
    missing: float
    """Share of rows."""
    distinct: int
    auc: float | None
    """ROC AUC of the feature alone; None where it cannot be told."""
    auc_earlier: float | None
    """With its values `audit.shift` earlier; None where they were not read."""
    missing_by_bucket: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Everything an audit saw."""

    task: str
    start: datetime
    cutoff: datetime
    shift: timedelta
    rows: int
    rows_by_bucket: tuple[int, ...]
    label_by_bucket: tuple[float | None, ...]
    """Mean label."""
    features: tuple[FeatureProfile, ...]
    sources: tuple[SourceState, ...]
    findings: tuple[Finding, ...]
    """Worst first."""

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """What stops a training."""
        return tuple(finding for finding in self.findings if finding.severity == "blocking")

    def raise_if_blocked(self) -> None:
        """Raise AuditBlocked with every blocking finding; do nothing when there is none."""
        if not self.blocking:
            return
        told = "\n".join(f"  {each.rule} {each.subject}: {each.evidence}" for each in self.blocking)
        first = self.blocking[0]
        raise AuditBlocked(
            f"Task {self.task!r}: the audit of the training data blocks:\n{told}",
            hint=f"{first.action}. Looked into and harmless? audit.accepted = ['{first.rule}:{first.subject}'].",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "task": self.task,
            "start": self.start.isoformat(),
            "cutoff": self.cutoff.isoformat(),
            "shift_seconds": self.shift.total_seconds(),
            "rows": self.rows,
            "rows_by_bucket": list(self.rows_by_bucket),
            "label_by_bucket": list(self.label_by_bucket),
            "blocked": bool(self.blocking),
            "findings": [finding.to_dict() for finding in self.findings],
            "features": [_plain(feature) for feature in self.features],
            "sources": [source.to_dict() for source in self.sources],
        }


def audit(task: Task, frame: Frame, *, cutoff: datetime, progress: Callable[[str], None]) -> AuditReport:
    """Look at a frame and at what it was read from.

    Args:
        task: the thresholds, and the repository.
        frame: labelled rows in time order. One put together by hand is judged by its columns alone.
        cutoff: the instant training stands at; sources are seen as they were known then.
        progress: told what is being done.

    Raises:
        AsofError: a source behind the frame cannot be read.
    """
    cutoff = as_utc(cutoff)
    limits, start = task.audit, cutoff - task.training.window
    begin, end = _micros(start), _micros(cutoff)
    bucket = buckets(frame.event_timestamps, begin, end)
    columns = read_columns(frame, bucket)
    labels = frame.labels.astype(np.float64)
    target = outcome(labels)
    sample = evenly(frame.table.num_rows, SAMPLE)
    now = powers(columns, sample, target)
    found = list(column_findings(columns, limits))
    same: Mapping[str, float] = {}
    earlier: Mapping[str, float] = {}
    states: list[SourceState] = []
    if frame.origin is not None:
        rows = evenly(frame.table.num_rows, EARLIER)
        same, earlier = _earlier(task, frame, columns, rows, bucket, target)
        definitions = frame.origin.definitions
        with open_sources(task) as session:
            states = read_sources(definitions, session, columns, limits, start=begin, cutoff=end)
            found += type_findings(definitions, frame.origin.types, session)
        found += source_findings(states, limits)
    found += leak_findings(now, same, earlier, limits)
    report = AuditReport(
        task=task.name,
        start=start,
        cutoff=cutoff,
        shift=limits.shift,
        rows=frame.table.num_rows,
        rows_by_bucket=tuple(np.bincount(bucket, minlength=BUCKETS).tolist()),
        label_by_bucket=_means(bucket, labels),
        features=_profiles(frame, columns, now, earlier),
        sources=tuple(states),
        findings=settled(found, limits.accepted),
    )
    told = {severity: sum(f.severity == severity for f in report.findings) for severity in ("blocking", "warning")}
    progress(f"audit: {told['blocking']} blocking, {told['warning']} warnings in {len(columns)} features")
    return report


def _earlier(
    task: Task, frame: Frame, columns: list[Column], rows: np.ndarray, bucket: np.ndarray, target: np.ndarray
) -> tuple[dict[str, float], dict[str, float]]:
    """Power of each feature on the same rows, now and `audit.shift` earlier."""
    same = powers(columns, rows, target)
    if not same:
        return {}, {}
    before = read_columns(read_earlier(task, frame, rows, task.audit.shift), bucket[rows])
    return same, powers(before, np.arange(len(rows)), target[rows])


def _profiles(
    frame: Frame, columns: list[Column], now: Mapping[str, float], earlier: Mapping[str, float]
) -> tuple[FeatureProfile, ...]:
    features = frame.origin.definitions.features if frame.origin else ()
    defined = {feature.name: (feature.view, feature.declared) for feature in features}
    return tuple(
        FeatureProfile(
            column.name,
            *defined.get(feature_of(column.name), ("", "")),
            column.kind,
            column.missing_share,
            column.distinct,
            _number(now.get(column.name)),
            _number(earlier.get(column.name)),
            tuple(_number(share) for share in column.missing_by_bucket),
        )
        for column in columns
    )


def _plain(feature: FeatureProfile) -> dict[str, Any]:
    plain = {name: getattr(feature, name) for name in FeatureProfile.__slots__}
    return plain | {"missing_by_bucket": list(feature.missing_by_bucket)}


def _means(bucket: np.ndarray, values: np.ndarray) -> tuple[float | None, ...]:
    rows, sums = np.bincount(bucket, minlength=BUCKETS), np.bincount(bucket, values, BUCKETS)
    return tuple(float(total / count) if count else None for total, count in zip(sums, rows, strict=True))


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _micros(instant: datetime) -> int:
    return round(instant.timestamp() * 1_000_000)
