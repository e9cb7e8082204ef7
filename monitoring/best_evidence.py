"""The best evidence there is of how well one version does: its outcomes, once enough have come, else an estimate.

A realized figure is a fact about the very rows it names, an estimate a fact about the reference: so outcomes go first.
Only matured cases count, those asked about at least the usual wait for a label ago. Of younger ones the outcomes that
come early would speak for all: a delay is known later than an arrival on time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.bundle import Bundle
from contracts.clock import as_utc
from contracts.segment_rows import micros
from contracts.spine import SpineReader, labels_known, read_spine
from contracts.task import Task
from monitoring.log_frame import LABEL, to_frame
from monitoring.maturity import usual_wait
from monitoring.outcomes import join_labels
from monitoring.report import Performance
from monitoring.usual import Usual, estimated_metric

LEAST_LABELLED = 0.9
"""Of matured cases so many must have a label as of the reference's, times this: a stalled feed of outcomes is no
sample of them."""
_MOMENT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class BestEvidence:
    """A figure of the task's primary metric, or why there is none."""

    performance: Performance | None
    kind: Literal["realized", "estimated", "none"]
    rows: int
    """That the figure rests on."""
    note: str
    """What became of the outcomes; where there is no figure, why."""


@dataclass(frozen=True, slots=True)
class _Outcomes:
    """What is known by now of the rows of a version."""

    label: np.ndarray
    """[N], NaN where the case has not matured or has no label."""
    enough: bool
    note: str


def best_evidence(
    task: Task, bundle: Bundle, scored: pa.Table, *, as_of: datetime, read: SpineReader = read_spine
) -> BestEvidence:
    """How well a version does on what it scored, by `success.metric`.

    Realized where at least `monitoring.min_rows` matured rows have a label, and about as many of them as usual. Else
    estimated, where the metric can be estimated and there are as many rows at all.

    Args:
        task: the policy.
        bundle: of the version; its reference says what is usual.
        scored: logged rows of the version, vectors included.
        as_of: labels known later are not looked at.
        read: reads the spine, for labels.
    """
    least, metric = task.monitoring.min_rows, task.success.metric
    if scored.num_rows < least:
        return BestEvidence(None, "none", scored.num_rows, f"{scored.num_rows:,} of {least:,} rows scored")
    outcomes = _outcomes(task, bundle, scored, as_utc(as_of), read)
    one_chunk = np.zeros(scored.num_rows, np.int64)  # a version is judged as a whole
    frame, _ = to_frame(scored, bundle.metadata.features, chunks=one_chunk)
    usual = Usual.of(task, bundle)
    if outcomes.enough:
        found = _only(usual.realize(frame.assign(**{LABEL: outcomes.label}), metric))
        if found is not None:
            return BestEvidence(found, "realized", int(np.isfinite(outcomes.label).sum()), outcomes.note)
        outcomes = replace(outcomes, note=f"{outcomes.note}, all the same one: their {metric} does not exist")
    if estimated_metric(metric) != metric:
        return BestEvidence(None, "none", 0, f"{metric} cannot be estimated without labels; {outcomes.note}")
    found = _only(usual.estimate(frame))
    if found is not None:
        return BestEvidence(found, "estimated", len(frame), outcomes.note)
    return BestEvidence(None, "none", 0, f"the reference teaches no estimate of {metric}; {outcomes.note}")


def _outcomes(task: Task, bundle: Bundle, scored: pa.Table, as_of: datetime, read: SpineReader) -> _Outcomes:
    unknown, past = np.full(scored.num_rows, np.nan), bundle.reference()["event_timestamp"]
    start, end = pc.min(past).as_py(), pc.max(past).as_py()
    cases = read(task, start=start, end=end + _MOMENT, known_at=as_of).num_rows if start else 0
    usual = labels_known(task, start=start, end=end + _MOMENT, known_at=as_of, read=read) if cases else None
    wait = None if usual is None else usual_wait(usual)
    if usual is None or wait is None:
        return _Outcomes(unknown, False, "no label of the reference's time is in the spine: the usual wait is unknown")
    # A precomputed answer carries the instant its features are of; its case was asked about when it was answered.
    stamps, answered = (scored[name].cast(pa.int64()).to_numpy() for name in ("event_timestamp", "answered_at"))
    due = np.maximum(stamps, answered) <= micros(as_of - wait)
    matured = due & pc.is_valid(scored["case_id"]).to_numpy(zero_copy_only=False)
    first, last = pc.min(scored["event_timestamp"]).as_py(), pc.max(scored["answered_at"]).as_py()
    labels = labels_known(task, start=first, end=max(last, as_of) + _MOMENT, known_at=as_of, read=read)
    label = np.where(matured, join_labels(scored, labels, as_of=as_of, binary=task.kind == "binary").label, np.nan)
    found, old, least = int(np.isfinite(label).sum()), int(matured.sum()), task.monitoring.min_rows
    share = LEAST_LABELLED * usual.num_rows / cases
    note = f"{found:,} of {old:,} cases asked about at least {wait} ago have a label"
    if found < least:
        return _Outcomes(label, False, f"{note}, judged from {least:,} on")
    if found < share * old:
        return _Outcomes(label, False, f"{note}, fewer than the {share:.0%} that must")
    return _Outcomes(label, True, note)


def _only(found: dict[int, Performance]) -> Performance | None:
    """The one chunk's figure, if it has one."""
    return next((each for each in found.values() if each.value is not None), None)
