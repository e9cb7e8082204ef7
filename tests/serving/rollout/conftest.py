"""A small task, its state and its bundles, for everything about releases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import Engine, insert

from contracts.bundle import BundleMetadata, FeatureSpec, write_bundle
from contracts.state import drills
from contracts.task import Task
from serving.comparison import Comparison
from serving.evidence import (
    ErrorCount,
    Evidence,
    Performance,
    SkewCount,
    Traffic,
)
from serving.outcomes import Outcomes
from serving.rollout import Rollouts
from serving.rollout_state import Deployment

START = datetime(2024, 1, 1, tzinfo=UTC)


def make_task(**rollout: Any) -> Task:
    return Task.model_validate(
        {
            "name": "churn",
            "kind": "binary",
            "feature_repo": "repo",
            "feature_service": "churn_v1",
            "spine": {
                "sql": "churn.sql",
                "tables": {},
                "id": "case_id",
                "event_timestamp": "asked_at",
                "keys": ["user", "shop"],
                "label": "churned",
                "label_known_at": "known_at",
            },
            "success": {"metric": "roc_auc", "floor": 0.6, "cost": {"false_alarm": 1, "missed": 3}},
            "budget": {"p99_ms": 50, "requests_per_second": 100},
            "monitoring": {"performance_floor": 0.6},
            "rollout": {
                "shadow_samples": 100,
                "shadow_bake": "2h",
                "canary_steps": [0.1, 0.5],
                "canary_samples": 50,
                "canary_bake": "1h",
                "deadline": "2d",
                "load_test_requests": 0,
            }
            | rollout,
        }
    )


def make_bundle(path: Path, *, task: str = "churn", gates: tuple[dict[str, Any], ...] | None = None) -> Path:
    """Ten holdout rows, three of them at or above the threshold."""
    metadata = BundleMetadata(
        task=task,
        kind="binary",
        learner="none",
        feature_service="churn_v1",
        features=(FeatureSpec("visits", "number"),),
        service_fingerprint="f",
        threshold=0.7,
        fallback=0.25,
        trained_at=START.isoformat(),
        training_data={},
        metrics={},
        gates=({"name": "floor", "verdict": "pass"},) if gates is None else gates,
        seed=1,
        params={},
        task_as_trained={},
    )
    reference = pa.table({"visits": pa.array(range(10), pa.float32()), "score": [i / 10 for i in range(10)]})
    return write_bundle(path, model=b"graph", metadata=metadata, reference=reference).path


def good_evidence(deployment: Deployment, *, hours: float = 3, **changes: Any) -> Evidence:
    """Evidence with which every check passes; `changes` replace fields."""
    assert deployment.challenger is not None
    traffic = Traffic(rows=400, requests=400, over_budget=0, p50_ms=3.0, p99_ms=9.0, acted=120)
    compared = Comparison(
        pairs=400,
        psi=0.02,
        champion_acted=118,
        challenger_acted=120,
        flips=6,
        mean_difference=0.01,
        max_difference=0.1,
        worst=(),
    )
    evidence = Evidence(
        task=deployment.task,
        generation=deployment.generation,
        stage=deployment.stage,
        version=deployment.challenger,
        champion_is_baseline=deployment.champion == 0,
        since=deployment.since,
        until=deployment.since + timedelta(hours=hours),
        challenger=traffic,
        champion=traffic,
        comparison=compared if deployment.champion else None,
        holdout_action_rate=0.3,
        errors=ErrorCount(400, 0),
        skew=SkewCount(1000, 0),
        performance=Performance("roc_auc", 0.74, 0.6, 0.70, 0.78),
    )
    return replace(evidence, **changes)


def drill_on_record(engine: Engine, *, passed: bool = True, kinds: Sequence[str] = ("rollback", "drift")) -> None:
    common = {"task": "churn", "passed": passed, "at": START, "evidence": {}}
    with engine.begin() as connection:
        connection.execute(insert(drills), [common | {"kind": kind} for kind in kinds])


def count(engine: Engine, generation: int, **variants: tuple[int, int, int]) -> None:
    """Put (requests, failed, slow) of variants on record, as one replica tells them."""
    outcomes = Outcomes(engine, every=3600)
    for variant, (requests, failed, slow) in variants.items():
        for i in range(requests):
            outcomes.count("churn", generation, variant, failed=i < failed, slow=i >= requests - slow)
    outcomes.close()


@pytest.fixture
def engine(state_engine: Engine) -> Engine:
    return state_engine


@pytest.fixture
def task() -> Task:
    return make_task()


@pytest.fixture
def rollouts(engine: Engine, task: Task) -> Rollouts:
    return Rollouts(engine, task)


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[[int], Path]:
    """The bundle of a version, made when it is first asked for."""

    def of(version: int) -> Path:
        path = tmp_path / "bundles" / str(version)
        return path if path.exists() else make_bundle(path)

    return of


@pytest.fixture
def promote(rollouts: Rollouts, engine: Engine, bundle: Callable[[int], Path]) -> Callable[[int, datetime], datetime]:
    """Let a version climb all the way; returns the instant at which it became champion."""

    def climb(version: int, at: datetime) -> datetime:
        drill_on_record(engine)
        deployment = rollouts.submit(version, bundle(version), at).deployment
        while deployment.challenger is not None:
            at += timedelta(hours=3)
            move = rollouts.advance(good_evidence(deployment), at)
            assert move.moved, move.reason
            deployment = move.deployment
        return at

    return climb


@pytest.fixture
def support() -> Any:
    """The plain functions above, since test modules cannot import each other."""

    class Support:
        start = START
        make_task = staticmethod(make_task)
        make_bundle = staticmethod(make_bundle)
        good_evidence = staticmethod(good_evidence)
        drill_on_record = staticmethod(drill_on_record)
        count = staticmethod(count)

    return Support
