"""What a skew audit found: per feature, with examples and causes, and what it could not judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from math import isfinite
from typing import Any

EXAMPLES = 5
"""Kept for each feature: the mismatches asked about earliest."""


@dataclass(frozen=True, slots=True)
class SkewExample:
    """One value that differs."""

    request_id: str
    position: int
    case_id: str | None
    version: int
    event_timestamp: datetime
    """When it was asked about."""
    answered_at: datetime
    keys: dict[str, Any]
    """The entity keys it was asked about."""
    online: float | str | None
    offline: float | str | None
    cause: str
    view_times: dict[str, datetime | None]
    """What each view behind the feature answered with online: the time of its row."""

    @property
    def order(self) -> tuple[datetime, str, int]:
        """Earliest first, whatever order the log is read in."""
        return self.event_timestamp, self.request_id, self.position

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; the age of a view's answer in seconds."""
        return {
            "request_id": self.request_id,
            "position": self.position,
            "case_id": self.case_id,
            "version": self.version,
            "keys": self.keys,
            "event_timestamp": self.event_timestamp.isoformat(),
            "answered_at": self.answered_at.isoformat(),
            "online": _plain(self.online),
            "offline": _plain(self.offline),
            "cause": self.cause,
            "view_times": {view: None if at is None else at.isoformat() for view, at in self.view_times.items()},
            "view_ages": {
                view: None if at is None else (self.event_timestamp - at).total_seconds()
                for view, at in self.view_times.items()
            },
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> SkewExample:
        """What `to_dict` made."""
        named = {each.name: plain[each.name] for each in fields(cls)}
        for name in ("event_timestamp", "answered_at"):
            named[name] = datetime.fromisoformat(named[name])
        times = named["view_times"].items()
        named["view_times"] = {view: at and datetime.fromisoformat(at) for view, at in times}
        return cls(**named)


@dataclass(slots=True)
class FeatureSkew:
    """What the audit found of one feature."""

    name: str
    checked: int = 0
    """Values judged."""
    different: int = 0
    """Two values that are not equal."""
    missing: int = 0
    """Null online, a value offline."""
    extra: int = 0
    """A value online, null offline."""
    largest: float = 0.0
    """Largest difference between two numbers."""
    causes: Counter[str] = field(default_factory=Counter)
    """Of the mismatches. `stale`: the view answered with an older boundary than was due. `absent`: the online store had
    no row of the view. `expired`: a value was served past its TTL. `unexplained`: none of these."""
    not_judged: Counter[str] = field(default_factory=Counter)
    """Values that differ and prove nothing. `settling`: the boundary before, asked about before the task's
    `monitoring.settling` was over. `source gone`: the source no longer reaches back to what the view answered with."""
    examples: list[SkewExample] = field(default_factory=list)

    @property
    def mismatches(self) -> int:
        """Values that differ in any way."""
        return self.different + self.missing + self.extra

    def keep(self, examples: list[SkewExample]) -> None:
        """Keep the earliest of what was kept and what is new."""
        self.examples = sorted([*self.examples, *examples], key=lambda example: example.order)[:EXAMPLES]

    def add(self, other: FeatureSkew) -> None:
        """Count another part of the log's in."""
        self.checked += other.checked
        self.different += other.different
        self.missing += other.missing
        self.extra += other.extra
        self.largest = max(self.largest, other.largest)
        self.causes.update(other.causes)
        self.not_judged.update(other.not_judged)
        self.keep(other.examples)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> FeatureSkew:
        """What `to_dict` made."""
        return cls(
            name=plain["name"],
            checked=plain["checked"],
            different=plain["different"],
            missing=plain["missing"],
            extra=plain["extra"],
            largest=float(plain["largest"]),
            causes=Counter(plain["causes"]),
            not_judged=Counter(plain["not_judged"]),
            examples=[SkewExample.from_dict(each) for each in plain["examples"]],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "name": self.name,
            "checked": self.checked,
            "mismatches": self.mismatches,
            "different": self.different,
            "missing": self.missing,
            "extra": self.extra,
            "largest": _plain(self.largest),
            "causes": dict(self.causes),
            "not_judged": dict(self.not_judged),
            "examples": [example.to_dict() for example in self.examples],
        }


@dataclass(frozen=True, slots=True)
class SkewReport:
    """What the audit found in all."""

    rows: int
    """Logged rows compared."""
    features: tuple[FeatureSkew, ...]
    unknown: tuple[str, ...] = ()
    """Logged features that the feature service no longer computes: nothing to compare with."""
    set_aside: Counter[str] = field(default_factory=Counter)
    """Rows not compared at all. `degraded`: answered with declared stand-ins, they never claimed to be equal.
    `other definitions`: answered by a version that was compiled from other feature definitions than today's."""
    share: float = 1.0
    """Share of entity keys that was looked at."""
    first: datetime | None = None
    """The earliest instant a compared row was asked about; None without rows."""
    last: datetime | None = None
    """The latest."""

    @property
    def checked(self) -> int:
        """Values judged."""
        return sum(feature.checked for feature in self.features)

    @property
    def mismatches(self) -> int:
        """Values that differ; a healthy system has none."""
        return sum(feature.mismatches for feature in self.features)

    @property
    def not_judged(self) -> Counter[str]:
        """Values that differ and prove nothing, by reason."""
        return sum((feature.not_judged for feature in self.features), Counter[str]())

    @classmethod
    def merged(cls, parts: Sequence[SkewReport]) -> SkewReport:
        """Audits of several parts of a log as one; at least one of them."""
        features: dict[str, FeatureSkew] = {}
        for part in parts:
            for each in part.features:
                features.setdefault(each.name, FeatureSkew(each.name)).add(each)
        bounds = [at for part in parts for at in (part.first, part.last) if at is not None]
        return cls(
            rows=sum(part.rows for part in parts),
            features=tuple(features.values()),
            unknown=tuple(sorted({name for part in parts for name in part.unknown})),
            set_aside=sum((part.set_aside for part in parts), Counter[str]()),
            share=min(part.share for part in parts),
            first=min(bounds, default=None),
            last=max(bounds, default=None),
        )

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> SkewReport:
        """What `to_dict` made."""
        first, last = (at and datetime.fromisoformat(at) for at in (plain["first"], plain["last"]))
        return cls(
            rows=plain["rows"],
            features=tuple(FeatureSkew.from_dict(each) for each in plain["features"]),
            unknown=tuple(plain["unknown"]),
            set_aside=Counter(plain["set_aside"]),
            share=plain["share"],
            first=first or None,
            last=last or None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; docs/skew-audit.md says what each part means."""
        return {
            "share": self.share,
            "first": self.first.isoformat() if self.first else None,
            "last": self.last.isoformat() if self.last else None,
            "rows": self.rows,
            "set_aside": dict(self.set_aside),
            "checked": self.checked,
            "mismatches": self.mismatches,
            "not_judged": dict(self.not_judged),
            "unknown": list(self.unknown),
            "features": [feature.to_dict() for feature in self.features],
        }


def _plain(value: float | str | None) -> float | str | None:
    """JSON has no infinity."""
    return str(value) if isinstance(value, float) and not isfinite(value) else value
