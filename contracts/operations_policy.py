"""How a version in operation is governed: its release, its watching and its replacement, as sections of a task file."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

from contracts.duration import Duration
from contracts.serving_policy import Section

Share = Annotated[float, Field(gt=0, lt=1)]


class Rollout(Section):
    """How a version climbs: shadow, the canary steps, champion."""

    shadow_samples: int = Field(default=500, ge=1)
    """Requests mirrored to the version before it may leave shadow."""
    shadow_bake: Duration = timedelta(hours=24)
    """Least time in shadow."""
    canary_steps: tuple[Share, ...] = Field(default=(0.05, 0.10), min_length=1)
    """Shares of the entity keys it answers for, rising; at least one, since nothing skips the canary."""
    canary_samples: int = Field(default=30, ge=1)
    """Predictions the challenger itself must have answered at each step."""
    canary_bake: Duration = timedelta(hours=24)
    """Least time at each step."""
    deadline: Duration = timedelta(days=7)
    """A step that is still inconclusive by then is paused for a person."""
    max_error_rate: float = Field(default=0.01, ge=0, lt=1)
    """Share of a step's requests that may meet a server error."""
    max_divergence: float = Field(default=0.25, gt=0)
    """Largest population stability index between challenger and champion scores on the same requests."""
    load_test_requests: int = Field(default=1000, ge=0)
    """Requests that a load test at the expected traffic must have made, before the last step; 0: none is needed."""


class Monitoring(Section):
    """How the log is watched."""

    chunk: Duration = timedelta(days=1)
    """Length of the stretches of log that are judged one by one."""
    chunk_rows: int | None = Field(default=None, ge=1)
    """Judge stretches of this many predictions instead, in the order they were asked for."""
    min_rows: int = Field(default=200, ge=1)
    """A smaller chunk is reported as too small and decides nothing."""
    performance_floor: float
    """Estimated or realized primary metric below this, in `consecutive` chunks, is decay."""
    consecutive: int = Field(default=2, ge=1)
    """Chunks in a row that must agree before anything is done."""
    drift_share: float = Field(default=0.3, gt=0, le=1)
    """Share of drifted features from which a chunk counts as drifted."""
    multivariate: tuple[Literal["reconstruction", "domain_classifier"], ...] = ("reconstruction", "domain_classifier")
    """Detectors that look at all features together; a chunk counts as drifted as well when one of them says so."""
    missing_change: Share = 0.3
    """Rise of a feature's share of missing values over the reference's from which it is a finding."""
    max_unseen: Share = 0.5
    """Share of a feature's values that the reference never showed from which it is a finding."""
    max_repeated: Share = 0.15
    """Share of the rows by which one number may be more frequent than is usual; from there on it is a finding."""
    max_age: dict[str, Duration] = Field(default_factory=dict)
    """View to the median age of its answers beyond which it is a finding; a view that is not named has no limit."""
    estimator_tolerance: float = Field(default=0.05, gt=0)
    """Mean distance of estimated from realized performance beyond which the estimator may not trigger."""
    settling: Duration = timedelta(minutes=5)
    """How long after a view's boundary its materialization may take: until then the skew audit does not hold an answer
    of the boundary before against the system."""


class Retraining(Section):
    """When a new version is trained."""

    schedule: Duration = timedelta(days=30)
    """Longest time between two trainings, whatever monitoring says."""
    cooldown: Duration = timedelta(days=7)
    """Least time between two trainings of the task."""
    budget: int = Field(default=6, ge=1)
    """Most trainings within `budget_period` that monitoring may ask for."""
    budget_period: Duration = timedelta(days=90)
    """The time the budget is for, counted back from now."""
