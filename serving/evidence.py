"""What the prediction log says about a challenger since its stage began: the evidence a rollout is decided on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.bundle import BundleError, load_bundle
from contracts.predictions import read_predictions
from contracts.task import Task
from serving.comparison import Comparison, compare
from serving.rollout_state import Deployment


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one version scored since the stage began."""

    rows: int
    requests: int
    """Requests that hold at least one of the rows. A request is waited for once, whatever its number of rows."""
    over_budget: int
    """Requests slower than the task's p99 budget."""
    p50_ms: float | None
    p99_ms: float | None
    acted: int
    """Rows whose decision was to act."""

    @property
    def action_rate(self) -> float | None:
        """Share of rows acted on; None without rows."""
        return self.acted / self.rows if self.rows else None


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """Requests in which the challenger had a part, answered or mirrored, and how many of them failed on our side."""

    requests: int
    failed: int
    champion_requests: int = 0
    """Of the champion over the same time."""
    champion_failed: int = 0


@dataclass(frozen=True, slots=True)
class SkewCount:
    """Values the skew audit judged, and how many differed."""

    checked: int
    mismatches: int
    share: float = 1.0
    """Share of entity keys that was audited."""
    not_judged: int = 0
    """Values beside them that differed and prove nothing."""
    rows_set_aside: int = 0
    """Rows that could not be compared at all."""


@dataclass(frozen=True, slots=True)
class Performance:
    """The primary metric of the challenger on what it scored, and the least that is acceptable."""

    metric: str
    value: float | None
    """None where there is no figure; `note` says why."""
    floor: float
    low: float | None = None
    high: float | None = None
    higher_is_better: bool = True
    kind: Literal["realized", "estimated", "none"] = "none"
    """Realized on labels that had the time to come, or estimated without labels."""
    rows: int = 0
    """That the figure rests on."""
    note: str = ""
    """What became of the labels."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything known about one stage of one challenger. A part that is None was not measured."""

    task: str
    generation: int
    """The deployment it was gathered for; evidence of another generation decides nothing."""
    stage: str
    version: int
    champion_is_baseline: bool
    since: datetime
    until: datetime
    challenger: Traffic
    champion: Traffic
    comparison: Comparison | None
    """None when the champion is the naive baseline, or when no request was scored by both."""
    holdout_action_rate: float | None
    """Share of its own holdout rows the challenger would act on."""
    errors: ErrorCount | None = None
    skew: SkewCount | None = None
    performance: Performance | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, instants in ISO 8601."""
        return asdict(self) | {"since": self.since.isoformat(), "until": self.until.isoformat()}


def gather(log: Path, task: Task, deployment: Deployment, now: datetime) -> Evidence:
    """Read the stage's part of the prediction log: rows asked for between the stage's beginning and `now`.

    Only rows of the two versions that climb and hold now are counted. Errors, skew and performance are not in
    the log: add them with `dataclasses.replace`.

    Raises:
        ValueError: the deployment has no challenger.
    """
    if deployment.challenger is None:
        raise ValueError(f"Task {task.name!r} has no challenger in generation {deployment.generation}: no evidence.")
    rows = read_predictions(
        log,
        start=deployment.since,
        end=now + timedelta(microseconds=1),  # the reader's end is exclusive
        variants=("champion", "canary", "shadow"),
        vectors=False,
    )
    champion = _of(rows, ("champion",), deployment.champion)
    shadowed = _of(rows, ("shadow",), deployment.challenger)
    own = shadowed if deployment.stage == "shadow" else _of(rows, ("canary",), deployment.challenger)
    return Evidence(
        task=task.name,
        generation=deployment.generation,
        stage=deployment.stage,
        version=deployment.challenger,
        champion_is_baseline=deployment.champion == 0,
        since=deployment.since,
        until=now,
        challenger=_traffic(own, task.budget.p99_ms),
        champion=_traffic(champion, task.budget.p99_ms),
        comparison=compare(log, task, deployment, champion, shadowed) if deployment.champion else None,
        holdout_action_rate=_holdout_action_rate(Path(deployment.challenger_bundle or "")),
    )


def nothing_yet(task: Task, deployment: Deployment, now: datetime) -> Evidence:
    """Evidence of a challenger's stage of which the log was not read: the counts of `serving.outcomes` go in here."""
    nobody = Traffic(0, 0, 0, None, None, 0)
    return Evidence(
        task=task.name,
        generation=deployment.generation,
        stage=deployment.stage,
        version=deployment.challenger or 0,
        champion_is_baseline=deployment.champion == 0,
        since=deployment.since,
        until=now,
        challenger=nobody,
        champion=nobody,
        comparison=None,
        holdout_action_rate=None,
    )


def _of(rows: pa.Table, variants: Sequence[str], version: int) -> pa.Table:
    named = pc.is_in(rows["variant"], value_set=pa.array(variants, pa.string()))
    own = pc.equal(pc.fill_null(rows["degraded"], ""), "")  # a fallback is no work of the version
    return rows.filter(pc.and_(pc.and_(named, own), pc.equal(rows["version"], version)))


def _traffic(rows: pa.Table, budget_ms: float) -> Traffic:
    by_request = rows.group_by("request_id").aggregate([("latency_ms", "max")])
    latency = by_request["latency_ms_max"].to_numpy()
    quantiles = np.quantile(latency, [0.5, 0.99]) if len(latency) else (None, None)
    return Traffic(
        rows=rows.num_rows,
        requests=len(latency),
        over_budget=int((latency > budget_ms).sum()),
        p50_ms=None if quantiles[0] is None else float(quantiles[0]),
        p99_ms=None if quantiles[1] is None else float(quantiles[1]),
        acted=int(pc.sum(rows["decision"]).as_py() or 0),
    )


def _holdout_action_rate(bundle: Path) -> float | None:
    """None when the bundle cannot be read: the check that needs it then says so, and does not pass."""
    try:
        loaded = load_bundle(bundle)
    except BundleError:
        return None
    scores, threshold = loaded.reference()["score"].to_numpy(), loaded.metadata.threshold
    if threshold is None:
        return 0.0  # a regression answers a value and acts on nothing, on its holdout as in service
    return float((scores >= threshold).mean()) if len(scores) else None
