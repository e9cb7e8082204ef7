"""Every legal move, as a pure function from what serves now to the event that changes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from contracts.bundle import load_bundle
from contracts.errors import SkewlessError
from serving.rollout_state import Deployment, RolloutEvent, Verdict

ROLLOUT = "rollout"
"""The actor of moves that evidence made."""


class NothingToRollBack(SkewlessError, LookupError):
    """No challenger is climbing and no champion came before this one."""


class NotDeployable(SkewlessError, ValueError):
    """A version that its own gates, or common sense, keep from any rollout."""


def check_deployable(task: str, version: int, path: Path) -> None:
    """Raise NotDeployable, or BundleError, unless a version's bundle is whole, the task's own and passed its gates."""
    bundle = load_bundle(path)
    if version < 1:
        raise NotDeployable(f"Version {version} cannot be submitted: versions are numbered from 1.")
    if bundle.metadata.task != task:
        raise NotDeployable(f"Bundle {path} is of task {bundle.metadata.task!r}, not {task!r}.")
    gates = {str(gate["name"]): str(gate["verdict"]) for gate in bundle.metadata.gates}
    not_passed = [f"{name} {verdict}" for name, verdict in gates.items() if verdict != "pass"]
    if not_passed or not gates:
        told = ", ".join(not_passed) or "none ran"
        raise NotDeployable(
            f"Version {version} of task {task!r} has not passed its gates: {told}.",
            hint=f"read the gate report in {path / 'metadata.json'}, then train again.",
        )


def entered(
    task: str, before: Deployment | None, version: int, bundle: str, *, at: datetime, actor: str
) -> RolloutEvent:
    """registered -> shadow. A task's first version gets the naive baseline, 0, of its own bundle for its champion."""
    return RolloutEvent(
        task=task,
        generation=before.generation + 1 if before else 1,
        at=at,
        from_stage="registered",
        to_stage="shadow",
        version=version,
        share=0.0,
        champion=before.champion if before else 0,
        champion_bundle=before.champion_bundle if before else bundle,
        challenger=version,
        challenger_bundle=bundle,
        verdict=None,
        actor=actor,
        reason="submitted",
        evidence={},
    )


def climbed(before: Deployment, share: float | None, *, at: datetime, evidence: dict[str, Any]) -> RolloutEvent:
    """shadow -> canary, canary -> the next step, or (`share` None: no step is left) canary -> champion."""
    if share is not None:
        reason = f"every check passed; the challenger answers {share:.0%} of the keys"
        return _moved(before, "canary", share, at=at, verdict="pass", reason=reason, evidence=evidence)
    event = _moved(before, "champion", 0.0, at=at, verdict="pass", reason="every check passed", evidence=evidence)
    return replace(
        event,
        champion=event.version,
        champion_bundle=before.challenger_bundle or "",
        challenger=None,
        challenger_bundle=None,
    )


def dropped(
    before: Deployment,
    *,
    at: datetime,
    reason: str,
    actor: str = ROLLOUT,
    verdict: Verdict | None = None,
    evidence: dict[str, Any] | None = None,
) -> RolloutEvent:
    """shadow, canary or paused -> rolled back: the champion answers everything."""
    event = _moved(
        before, "rolled_back", 0.0, at=at, actor=actor, verdict=verdict, reason=reason, evidence=evidence or {}
    )
    return replace(event, challenger=None, challenger_bundle=None)


def paused(
    before: Deployment,
    *,
    at: datetime,
    reason: str,
    actor: str = ROLLOUT,
    verdict: Verdict | None = None,
    evidence: dict[str, Any] | None = None,
) -> RolloutEvent:
    """shadow or canary -> paused: kept, but off all traffic, since nobody has vouched for it."""
    return _moved(before, "paused", 0.0, at=at, actor=actor, verdict=verdict, reason=reason, evidence=evidence or {})


def resumed(
    before: Deployment, history: Sequence[RolloutEvent], *, at: datetime, note: str, actor: str, accepted: list[str]
) -> RolloutEvent:
    """paused -> the very step it was paused at, from its beginning."""
    step = next(event for event in reversed(history) if event.to_stage in ("shadow", "canary"))
    return _moved(before, step.to_stage, step.share, at=at, actor=actor, reason=note, evidence={"accepted": accepted})


def restored(
    before: Deployment, history: Sequence[RolloutEvent], *, at: datetime, reason: str, actor: str
) -> RolloutEvent:
    """champion -> rolled back: the champion before it reigns again.

    The history is a stack of reigns: a promotion pushes one, a restoration pops one. So that rolling back twice goes
    back two champions, and never forward to one that was rolled back.

    Raises:
        NothingToRollBack: the present champion is the first.
    """
    reigns: list[tuple[int, str]] = []
    for each in history:
        if each.from_stage == "champion":
            reigns.pop()
        elif not reigns or each.to_stage == "champion":
            reigns.append((each.champion, each.champion_bundle))
    if len(reigns) < 2:
        raise NothingToRollBack(
            f"Task {before.task!r}: no version is climbing and champion {before.champion} has no predecessor.",
            hint=f"train another version: `skewless train {before.task}`.",
        )
    champion, bundle = reigns[-2]
    event = _moved(before, "rolled_back", 0.0, at=at, actor=actor, reason=reason, evidence={})
    return replace(event, from_stage="champion", version=before.champion, champion=champion, champion_bundle=bundle)


def _moved(
    before: Deployment,
    to_stage: str,
    share: float,
    *,
    at: datetime,
    reason: str,
    evidence: dict[str, Any],
    actor: str = ROLLOUT,
    verdict: Verdict | None = None,
) -> RolloutEvent:
    """A move of the challenger that leaves both versions in place."""
    return RolloutEvent(
        task=before.task,
        generation=before.generation + 1,
        at=at,
        from_stage=before.stage,
        to_stage=to_stage,
        version=before.challenger or 0,
        share=share,
        champion=before.champion,
        champion_bundle=before.champion_bundle,
        challenger=before.challenger,
        challenger_bundle=before.challenger_bundle,
        verdict=verdict,
        actor=actor,
        reason=reason,
        evidence=evidence,
    )
