"""What a monitoring run found: plain frozen values, which the decision reads and the results store keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from monitoring.outcomes import LabelAccount
from monitoring.skew_report import SkewReport

State = Literal["judged", "too small", "open"]


@dataclass(frozen=True, slots=True)
class Drift:
    """Distance of one column of a chunk, or of all of them together, from the reference."""

    column: str
    """A feature, or the multivariate detector."""
    value: float | None
    """In the method's own measure; None when the chunk has no values."""
    threshold: float | None
    drifted: bool
    method: str = "jensen_shannon"

    @property
    def mute(self) -> bool:
        """Whether nothing could exceed the threshold: the area under a classifier's curve ends at 1."""
        return self.method == "domain_classifier" and self.threshold is not None and self.threshold >= 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


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
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Quality:
    """Shares of a chunk's values that are missing, that the reference never showed, or that are one and the same."""

    feature: str
    missing: float
    missing_reference: float
    unseen: float
    """Share of present values outside the reference's range (numbers) or not among its values (texts)."""
    repeated: float = 0.0
    """By which share of the rows one number is more frequent than it is usual for one to be; 0 where none is."""

    @property
    def vanished(self) -> bool:
        """Whether the chunk has no value at all of a feature that the reference has values of."""
        return self.missing == 1.0 and self.missing_reference < 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"vanished": self.vanished}


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
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Slice:
    """Labelled rows of one group of a chunk."""

    column: str
    value: str
    rows: int
    realized: Performance | None
    """The primary metric; None where the group has fewer rows than the task's `fairness.min_rows`."""
    mean_score: float
    mean_label: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """One chunk of the log."""

    start: datetime
    end: datetime
    rows: int
    state: State
    """Only a judged chunk decides anything: it has enough rows, and no more are to come."""
    number: int = 0
    drift: tuple[Drift, ...] = ()
    """Every feature, in the bundle's order; empty when the reference is too small to say what is usual."""
    score_drift: Drift | None = None
    together: tuple[Drift, ...] = ()
    """Drift of all features together, a detector each; of complete chunks only."""
    estimated: Performance | None = None
    realized: Performance | None = None
    counterpart: Performance | None = None
    """Realized performance in the estimator's metric: what `estimated` is scored against."""
    cost: Performance | None = None
    """What a labelled case cost the business on average."""
    slices: tuple[Slice, ...] = ()
    labelled: int = 0
    settled: bool = False
    """Whether labels had the time they usually take since the chunk's end, and enough rows have one. Before that the
    known ones are the quick ones, and realized performance decides nothing."""
    quality: tuple[Quality, ...] = ()
    freshness: tuple[Freshness, ...] = ()
    skew: SkewReport | None = None

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

    @property
    def drifted_together(self) -> bool:
        """Whether a multivariate detector says that the features as a whole have drifted."""
        return any(each.drifted for each in self.together)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_dict` reads it back."""
        parts = ("score_drift", "estimated", "realized", "counterpart", "cost", "skew")
        lists = ("drift", "together", "slices", "quality", "freshness")
        return {
            "number": self.number,
            "start": self.start.isoformat(),
            "end": self.end.isoformat(),
            "rows": self.rows,
            "state": self.state,
            **{name: None if (part := getattr(self, name)) is None else part.to_dict() for name in parts},
            **{name: [each.to_dict() for each in getattr(self, name)] for name in lists},
            "drift_share": self.drift_share,
            "drifted_features": list(self.drifted_features),
            "drifted_together": self.drifted_together,
            "labelled": self.labelled,
            "maturity": self.maturity,
            "settled": self.settled,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ChunkReport:
        """What `to_dict` made."""

        def performance(name: str) -> Performance | None:
            return None if plain[name] is None else Performance(**plain[name])

        return cls(
            number=plain["number"],
            start=datetime.fromisoformat(plain["start"]),
            end=datetime.fromisoformat(plain["end"]),
            rows=plain["rows"],
            state=plain["state"],
            drift=tuple(Drift(**each) for each in plain["drift"]),
            score_drift=None if plain["score_drift"] is None else Drift(**plain["score_drift"]),
            together=tuple(Drift(**each) for each in plain["together"]),
            estimated=performance("estimated"),
            realized=performance("realized"),
            counterpart=performance("counterpart"),
            cost=performance("cost"),
            slices=tuple(
                Slice(**each | {"realized": None if each["realized"] is None else Performance(**each["realized"])})
                for each in plain["slices"]
            ),
            labelled=plain["labelled"],
            settled=plain["settled"],
            quality=tuple(_quality(each) for each in plain["quality"]),
            freshness=tuple(Freshness(**each) for each in plain["freshness"]),
            skew=None if plain["skew"] is None else SkewReport.from_dict(plain["skew"]),
        )


def _quality(plain: Mapping[str, Any]) -> Quality:
    return Quality(plain["feature"], plain["missing"], plain["missing_reference"], plain["unseen"], plain["repeated"])


@dataclass(frozen=True, slots=True)
class EstimatorTrust:
    """The estimator, scored on chunks whose labels have settled."""

    trusted: bool | None
    """None: nothing has settled yet, nobody knows. Only True may trigger."""
    mean_error: float | None
    """Mean distance of estimated from realized performance."""
    chunks: int
    tolerance: float
    largest_error: float | None = None
    inside_band: float | None = None
    """Share of those chunks whose realized performance was within the estimate's confidence band."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Work:
    """What a run had to do; a chunk that is neither was taken from the runs before."""

    measured: int
    """Chunks whose rows were read and measured."""
    realized: int
    """Chunks of which only the labels were looked at again."""
    kept: int
    """Chunks taken as they were."""


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
    """Of all chunks together."""
    notes: tuple[str, ...] = field(default=())
    """What could not be done, and why."""
    run_id: str = ""
    """The training run that made the version."""
    audit_on_record: dict[str, Any] | None = None
    """The latest skew audit that was asked for by itself: `id`, `at`, `checked`, `mismatches`."""
    work: Work = field(default=Work(0, 0, 0), compare=False)

    @property
    def judged(self) -> tuple[ChunkReport, ...]:
        """The chunks that may decide, oldest first."""
        return tuple(chunk for chunk in self.chunks if chunk.state == "judged")

    def summary(self) -> dict[str, Any]:
        """Plain JSON, without the chunks."""
        audit = self.audit_on_record
        return {
            "task": self.task,
            "version": self.version,
            "bundle_hash": self.bundle_hash,
            "run_id": self.run_id,
            "as_of": self.as_of.isoformat(),
            "metric": self.metric,
            "estimated_metric": self.estimated_metric,
            "rows": self.rows,
            "estimator": self.estimator.to_dict(),
            "labels": self.labels.to_dict() if self.labels else None,
            "skew": self.skew.to_dict() if self.skew else None,
            "audit_on_record": None if audit is None else audit | {"at": audit["at"].isoformat()},
            "notes": list(self.notes),
            "work": asdict(self.work),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return self.summary() | {"chunks": [chunk.to_dict() for chunk in self.chunks]}


def merged_skew(chunks: Sequence[ChunkReport]) -> SkewReport | None:
    """The audits of all chunks as one; None when none was audited."""
    audits = [chunk.skew for chunk in chunks if chunk.skew is not None]
    return SkewReport.merged(audits) if audits else None
