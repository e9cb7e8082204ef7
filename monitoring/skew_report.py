"""What a skew audit found: per feature, with examples and causes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class SkewExample:
    """One value that differs."""

    request_id: str
    position: int
    case_id: str | None
    version: int
    event_timestamp: datetime
    online: float | str | None
    offline: float | str | None
    cause: str
    view_times: dict[str, datetime | None]
    """What each view behind the feature answered with online: the time of its row."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        times = {view: None if at is None else at.isoformat() for view, at in self.view_times.items()}
        return {
            "request_id": self.request_id,
            "position": self.position,
            "case_id": self.case_id,
            "version": self.version,
            "event_timestamp": self.event_timestamp.isoformat(),
            "online": self.online,
            "offline": self.offline,
            "cause": self.cause,
            "view_times": times,
        }


@dataclass(slots=True)
class FeatureSkew:
    """What the audit found of one feature."""

    name: str
    checked: int = 0
    different: int = 0
    """Both have a value, and the values differ."""
    missing: int = 0
    """Null online, a value offline."""
    extra: int = 0
    """A value online, null offline."""
    largest: float = 0.0
    """Largest difference between two numbers."""
    causes: Counter[str] = field(default_factory=Counter)
    """`stale`: the view answered with an older boundary than was due. `absent`: the online store had no row of the
    view. `unexplained`: neither."""
    examples: list[SkewExample] = field(default_factory=list)

    @property
    def mismatches(self) -> int:
        """Values that differ in any way."""
        return self.different + self.missing + self.extra

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "name": self.name,
            "checked": self.checked,
            "mismatches": self.mismatches,
            "different": self.different,
            "missing": self.missing,
            "extra": self.extra,
            "largest": self.largest,
            "causes": dict(self.causes),
            "examples": [example.to_dict() for example in self.examples],
        }


@dataclass(frozen=True, slots=True)
class SkewReport:
    """What the audit found in all."""

    rows: int
    """Logged rows compared."""
    declared: int
    """Rows left out because they were answered with declared stand-ins (degraded); they never claimed to be equal."""
    features: tuple[FeatureSkew, ...]
    unknown: tuple[str, ...]
    """Logged features that the feature service no longer computes: nothing to compare with."""

    @property
    def checked(self) -> int:
        """Values compared."""
        return sum(feature.checked for feature in self.features)

    @property
    def mismatches(self) -> int:
        """Values that differ; a healthy system has none."""
        return sum(feature.mismatches for feature in self.features)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "rows": self.rows,
            "checked": self.checked,
            "mismatches": self.mismatches,
            "declared": self.declared,
            "unknown": list(self.unknown),
            "features": [feature.to_dict() for feature in self.features],
        }
