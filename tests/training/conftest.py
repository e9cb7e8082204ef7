"""A small world with known structure: parcels, of which the heavy ones and those of two depots come late."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.locations import Locations
from contracts.task import Task
from training.frame import Frame

CUTOFF = datetime(2024, 3, 1, tzinfo=UTC)
WINDOW = timedelta(days=30)
MICROSECOND = timedelta(microseconds=1)


def _micros(instant: datetime) -> int:
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // MICROSECOND


def parcels(rows: int = 6000, *, seed: int = 1, signal: float = 1.0) -> tuple[pa.Table, pa.Table]:
    """Spine and features of `rows` parcels asked about evenly over the window; a label takes one to two days.

    The log odds of being late are `signal` times (weight + 1.2 if the depot is c or d); `noise` carries nothing; a
    tenth of the weights are missing.
    """
    rng = np.random.default_rng(seed)
    begin, end = _micros(CUTOFF - WINDOW), _micros(CUTOFF)
    asked = np.sort(rng.integers(begin, end, rows))
    weight = rng.normal(size=rows)
    depot = rng.choice(list("abcd"), rows)
    odds = signal * (1.5 * weight + 1.2 * np.isin(depot, ["c", "d"])) - 0.8
    late = (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    known = asked + rng.integers(86_400_000_000, 2 * 86_400_000_000, rows)
    instant = pa.timestamp("us", tz="UTC")
    spine = pa.table(
        {
            "parcel": [f"p{number:06d}" for number in range(rows)],
            "asked_at": pa.array(asked, instant),
            "depot": depot,
            "late": late,
            "told_at": pa.array(known, instant),
        }
    )
    features = pa.table(
        {
            "weight": pa.array(np.where(rng.random(rows) < 0.1, np.nan, weight), from_pandas=True),
            "depot_name": pa.array(depot.tolist()),
            "noise": rng.integers(0, 50, rows),
            "fragile": rng.random(rows) < 0.3,
        }
    )
    return spine, features


@pytest.fixture(scope="session")
def cutoff() -> datetime:
    return CUTOFF


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., Task]:
    """A task over the parcels; keyword arguments replace whole sections."""

    def make(rows: int = 6000, signal: float = 1.0, **sections: Any) -> Task:
        spine, _ = parcels(rows, signal=signal)
        pq.write_table(spine, tmp_path / "parcels.parquet")
        (tmp_path / "late.sql").write_text("select * from parcels")
        raw: dict[str, Any] = {
            "name": "late_parcel",
            "kind": "binary",
            "feature_repo": tmp_path,
            "feature_service": "parcels_v1",
            "spine": {
                "sql": tmp_path / "late.sql",
                "tables": {"parcels": tmp_path / "parcels.parquet"},
                "id": "parcel",
                "event_timestamp": "asked_at",
                "keys": ["parcel"],
                "label": "late",
                "label_known_at": "told_at",
            },
            "success": {"metric": "roc_auc", "floor": 0.7, "cost": {"false_alarm": 1, "missed": 3}},
            "budget": {"p99_ms": 100, "requests_per_second": 10},
            "fairness": {"slices": ["depot"], "max_gap": 0.2, "min_rows": 50},
            "training": {
                "window": WINDOW,
                "validation": timedelta(days=5),
                "holdout": timedelta(days=7),
                "params": {"num_iterations": 60, "min_data_in_leaf": 20},
            },
            "gates": {"min_holdout_rows": 500},
            "monitoring": {"performance_floor": 0.6},
        }
        return Task.model_validate({**raw, **sections})

    return make


@pytest.fixture
def make_frame(make_task: Callable[..., Task]) -> Callable[..., Frame]:
    """The parcels' frame as known at the cutoff."""

    def make(task: Task | None = None, rows: int = 6000, **world: Any) -> Frame:
        spine, features = parcels(rows, **world)
        known = pa.array(spine["told_at"].cast(pa.int64()).to_numpy() <= _micros(CUTOFF))
        roles = (task or make_task(rows)).spine
        return Frame.of(
            spine.filter(known),
            features.filter(known),
            roles,
            unlabelled=rows - int(np.sum(known.to_numpy(zero_copy_only=False))),
            service_fingerprint="f" * 64,
            registry_hash="e" * 64,
        )

    return make


@pytest.fixture
def locations(tmp_path: Path) -> Locations:
    return Locations(tmp_path / "data")
