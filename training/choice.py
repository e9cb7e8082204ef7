"""What a task's own numbers decide: how it is served and what learns it, with the reason that goes on record.

The rules choose; what does not exist yet is not used. A decision then says both, so that nobody reads the one for the
other.

    choose(task, {"km": "number", "city": "text"}, rows=40_000).learner.used      # "lightgbm"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from contracts.task import Task
from training.learners import catalogue

SERVING_MODES = ("online", "batch")
"""Ways of serving that exist: "online" answers each request from a compiled model, "batch" reads what was
precomputed."""
LEARNERS = tuple(catalogue.LEARNERS)
"""Learners that exist, the one that stands in for a missing one first."""

TABULAR = frozenset({"number", "text"})
"""Kinds of features a tree reads; a text is one of some number of categories."""
TINY_ROWS = 1_000
"""Fewer labelled rows than this are too few for boosted trees."""
MEMORY_BYTES = 8 * 1024**3
"""What a frame may take while trees are grown."""
_BYTES_A_VALUE = 12
"""A float32 in the frame, one in the learner's matrix, and its bins."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One question a rule answers."""

    chosen: str
    """What the rule says."""
    used: str
    """What is done; another than `chosen` only where that does not exist yet."""
    reason: str
    """The rule with the task's own numbers in it, and what stands in for what is missing."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a task is served and learned."""

    serving: Decision
    learner: Decision

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def to_tags(self) -> dict[str, str]:
        """What is used and why, by names a run keeps them under."""
        decisions = {"serving": self.serving, "learner": self.learner}
        used = {f"choice.{name}": decision.used for name, decision in decisions.items()}
        return used | {f"choice.{name}.reason": decision.reason for name, decision in decisions.items()}


def choose(task: Task, features: Mapping[str, str], rows: int) -> Choice:
    """Apply the rules.

    Args:
        task: the budget, and a learner it may name itself.
        features: kind of each feature: "number", "text", or anything no tree reads ("array", "bytes").
        rows: labelled cases of the training window.
    """
    return Choice(_serving(task), _learner(task, features, rows))


def _serving(task: Task) -> Decision:
    mode, reason = task.serving_mode
    return _decision(mode, reason, SERVING_MODES)


def _learner(task: Task, features: Mapping[str, str], rows: int) -> Decision:
    if task.training.learner != "auto":
        return _decision(task.training.learner, "training.learner names it", LEARNERS)
    other = sorted(name for name, kind in features.items() if kind not in TABULAR)
    if other:
        kinds = ", ".join(sorted({features[name] for name in other}))
        return _decision(
            "torch_sequence", f"{other[0]!r} and {len(other) - 1} more features are of kind {kinds}", LEARNERS
        )
    if rows < TINY_ROWS:
        return _decision("sklearn_linear", f"{rows:,} labelled rows are fewer than {TINY_ROWS:,}", LEARNERS)
    size = rows * len(features) * _BYTES_A_VALUE
    shape = f"{rows:,} rows of {len(features)} tabular features take about {size / 1024**2:,.0f} MB"
    limit = f"{MEMORY_BYTES / 1024**2:,.0f} MB"
    if size > MEMORY_BYTES:
        return _decision("torch_sequence", f"{shape}, more than {limit}: it learns in batches", LEARNERS)
    return _decision("lightgbm", f"{shape}, within {limit}", LEARNERS)


def _decision(chosen: str, reason: str, existing: tuple[str, ...]) -> Decision:
    if chosen in existing:
        return Decision(chosen, chosen, reason)
    return Decision(chosen, existing[0], f"{reason}; {chosen} does not exist here yet, {existing[0]} is used instead")
