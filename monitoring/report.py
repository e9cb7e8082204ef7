"""What a monitoring run found: plain frozen values, which the decision reads and the results store keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from monitoring.log_frame import LabelAccount
from monitoring.skew_report import SkewReport


@dataclass(frozen=True, slots=True)
class Drift:
    """Jensen-Shannon distance of one column of a chunk from the reference."""

    column: str
    value: float | None
    """0 is the same distribution, 1 nothing in common; None when the chunk has no values."""
    threshold: float | None
    drifted: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"column": self.column, "value": self.value, "threshold": self.threshold, "drifted": self.drifted}


@dataclass(frozen=True, slots=True)
class Performance:
    """A metric of one chunk with its confidence band."""

    metric: str
    value: float | None
    """None when it cannot be computed, for example when all labels of the chunk agree."""
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"metric": self.metric, "value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Quality:
    """Shares of a chunk's values that are missing, or that the reference never showed."""

    feature: str
    missing: float
    missing_reference: float
    unseen: float
    """Share of present values outside the reference's range (numbers) or not among its values (texts)."""

    @property
    def vanished(self) -> bool:
        """Whether the chunk has no value at all of a feature that the reference has values of."""
        return self.missing == 1.0 and self.missing_reference < 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "feature": self.feature,
            "missing": self.missing,
            "missing_reference": self.missing_reference,
            "unseen": self.unseen,
            "vanished": self.vanished,
        }


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old a view's values were when they were used, in seconds."""

    view: str
    median_age: float | None
    max_age: float | None
    absent: float
    """Share of rows for which the view had no row at all."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"view": self.view, "median_age": self.median_age, "max_age": self.max_age, "absent": self.absent}


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """One chunk of the log."""

    start: datetime
    end: datetime
    rows: int
    state: Literal["judged", "too small", "open"]
    """Only a judged chunk decides anything: it has enough rows, and its end has passed."""
    drift: tuple[Drift, ...] = ()
    """Every feature, in the bundle's order; empty when the reference is too small to say what is usual."""
    score_drift: Drift | None = None
    estimated: Performance | None = None
    realized: Performance | None = None
    counterpart: Performance | None = None
    """Realized performance in the estimator's metric: what `estimated` is scored against."""
    labelled: int = 0
    settled: bool = False
    """Whether labels had the time they usually take since the chunk's end, and enough rows have one. Before that the
    known ones are the quick ones, and realized performance decides nothing."""
    quality: tuple[Quality, ...] = ()
    freshness: tuple[Freshness, ...] = ()

    @property
    def maturity(self) -> float:
        """Share of rows whose label is known."""
        return self.labelled / self.rows if self.rows else 0.0

    @property
    def drifted_features(self) -> tuple[str, ...]:
        """Features beyond their threshold."""
        return tuple(each.column for each in self.drift if each.drifted)

    @property
    def drift_share(self) -> float | None:
        """Share of features that drifted; None when drift was not measured."""
        return len(self.drifted_features) / len(self.drift) if self.drift else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "start": self.start.isoformat(),
            "end": self.end.isoformat(),
            "rows": self.rows,
            "state": self.state,
            "drift": [each.to_dict() for each in self.drift],
            "drift_share": self.drift_share,
            "drifted_features": list(self.drifted_features),
            "score_drift": self.score_drift.to_dict() if self.score_drift else None,
            "estimated": self.estimated.to_dict() if self.estimated else None,
            "realized": self.realized.to_dict() if self.realized else None,
            "counterpart": self.counterpart.to_dict() if self.counterpart else None,
            "labelled": self.labelled,
            "maturity": self.maturity,
            "settled": self.settled,
            "quality": [each.to_dict() for each in self.quality],
            "freshness": [each.to_dict() for each in self.freshness],
        }


@dataclass(frozen=True, slots=True)
class EstimatorTrust:
    """The estimator, scored on chunks whose labels have settled."""

    trusted: bool | None
    """None: nothing has settled yet, nobody knows. Only True may trigger."""
    mean_error: float | None
    """Mean distance of estimated from realized performance."""
    chunks: int
    tolerance: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "trusted": self.trusted,
            "mean_error": self.mean_error,
            "chunks": self.chunks,
            "tolerance": self.tolerance,
        }


@dataclass(frozen=True, slots=True)
class MonitoringReport:
    """One run over the log of one version."""

    task: str
    version: int
    bundle_hash: str
    as_of: datetime
    metric: str
    """The task's primary metric: realized performance is measured in it."""
    estimated_metric: str
    """The metric the estimator gives; another one than `metric` cannot be held against the task's floor."""
    rows: int
    chunks: tuple[ChunkReport, ...]
    estimator: EstimatorTrust
    labels: LabelAccount | None
    skew: SkewReport | None
    notes: tuple[str, ...] = field(default=())
    """What could not be done, and why."""

    @property
    def judged(self) -> tuple[ChunkReport, ...]:
        """The chunks that may decide, oldest first."""
        return tuple(chunk for chunk in self.chunks if chunk.state == "judged")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "task": self.task,
            "version": self.version,
            "bundle_hash": self.bundle_hash,
            "as_of": self.as_of.isoformat(),
            "metric": self.metric,
            "estimated_metric": self.estimated_metric,
            "rows": self.rows,
            "chunks": [chunk.to_dict() for chunk in self.chunks],
            "estimator": self.estimator.to_dict(),
            "labels": self.labels.to_dict() if self.labels else None,
            "skew": self.skew.to_dict() if self.skew else None,
            "notes": list(self.notes),
        }
