"""What an audit finds: a rule, how bad it is, what was seen, what to do."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Severity = Literal["blocking", "warning", "info"]
RULES: dict[str, str] = {
    "empty": "A feature without a single value.",
    "constant": "A feature that never varies.",
    "categories": "A text feature with too many different texts.",
    "missing": "A feature that is missing almost everywhere.",
    "missing_change": "A feature whose share of missing values changes towards the end of the window.",
    "stopped": "A feature that was there and no longer comes.",
    "precision": "Whole numbers too large for a float32.",
    "near_duplicate": "Two features that say the same.",
    "type": "A feature that is not of the type its definition declares.",
    "leak_perfect": "A feature that alone predicts the label almost perfectly.",
    "leak_vanishing": "A strong feature that knows nothing when it is read somewhat earlier.",
    "stale": "A source whose newest row is too old.",
    "late": "A source whose rows become known long after they happen.",
    "coverage": "A view that has nothing for many rows.",
}
"""Every rule of the audit, in a sentence."""
_ORDER = {"blocking": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule's complaint about one feature or view."""

    rule: str
    subject: str
    """The feature, or the view."""
    severity: Severity
    evidence: str
    action: str
    """What to do about it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def settled(found: Iterable[Finding], accepted: Collection[str]) -> tuple[Finding, ...]:
    """Findings with the worst first; a blocking one that the task accepts is a warning, and says so."""
    judged = [
        replace(each, severity="warning", evidence=f"{each.evidence}; accepted by the task")
        if each.severity == "blocking" and f"{each.rule}:{each.subject}" in accepted
        else each
        for each in found
    ]
    return tuple(sorted(judged, key=lambda each: _ORDER[each.severity]))
