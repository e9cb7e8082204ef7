"""A small world to watch: a task about customers, its spine, a bundle with a reference, and a prediction log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine, insert

from contracts.bundle import Bundle, BundleMetadata, FeatureSpec, write_bundle
from contracts.locations import Locations
from contracts.predictions import PredictionRow, append, open_segment
from contracts.state import deployments, open_state
from contracts.task import Task, load_task
from monitoring.recompute import Recomputation

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START = datetime(2024, 3, 1, tzinfo=UTC)
"""The first day of the log; the reference is the two weeks before."""
DAY = timedelta(days=1)
WAIT = timedelta(hours=30)
"""From the question to its outcome, for every case."""
FEATURES = (FeatureSpec("visits", "number"), FeatureSpec("spend", "number"), FeatureSpec("plan", "text"))

TASK = """
name = "churn"
kind = "binary"
feature_repo = "../features"
feature_service = "churn_v1"
[spine]
sql = "churn.sql"
tables = { cases = "../cases.parquet" }
id = "case_id"
event_timestamp = "asked_at"
keys = ["customer"]
request_fields = ["basket"]
label = "churned"
label_known_at = "known_at"
[success]
metric = "METRIC"
floor = 0.6
cost = { false_alarm = 1, missed = 5 }
[budget]
p99_ms = 50
requests_per_second = 10
[monitoring]
chunk = "1d"
min_rows = 100
performance_floor = 0.7
consecutive = 2
drift_share = 0.5
multivariate = ["reconstruction"]
estimator_tolerance = 0.05
[retraining]
schedule = "60d"
cooldown = "7d"
"""


def micros(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(microseconds=1)


@dataclass
class Cases:
    """What was asked, with the vector it was answered on and the outcome. One row a case."""

    frame: pd.DataFrame

    @classmethod
    def make(
        cls, start: datetime, days: int, per_day: int, *, seed: int, shift: float = 0.0, slope: float = 1.0
    ) -> Cases:
        """`shift` moves every input; `slope` 1 is the world the score was made for, 0 is one where it says nothing."""
        random = np.random.default_rng(seed)
        size = days * per_day
        spaced = np.arange(size) * (86_400_000_000 // per_day) + seed  # no two cases at one instant
        visits, spend = random.normal(shift, 1, size), random.normal(2 * shift, 2, size)
        odds = np.array([0.6, 0.3, 0.1]) if shift == 0 else np.array([0.1, 0.3, 0.6])
        plan = random.choice(["basic", "plus", "pro"], size, p=odds)
        truth = 1.6 * visits + 0.4 * spend
        probability = 1 / (1 + np.exp(-truth))
        outcome = 1 / (1 + np.exp(-slope * truth))
        frame = pd.DataFrame(
            {
                "case_id": [f"c{seed}-{i}" for i in range(size)],
                "customer": np.arange(size) % 97,
                "basket": np.round(random.uniform(1, 50, size), 2),
                "asked_at": pd.to_datetime(micros(start) + spaced, unit="us", utc=True),
                "visits": visits.astype(np.float32),
                "spend": spend.astype(np.float32),
                "plan": plan,
                "score": probability.astype(np.float32),
                "churned": (random.uniform(size=size) < outcome).astype(np.int64),
            }
        )
        frame["known_at"] = frame["asked_at"] + WAIT
        return cls(frame)

    def reference(self) -> pa.Table:
        columns = ["visits", "spend", "plan", "score", "churned", "asked_at"]
        table = pa.Table.from_pandas(self.frame[columns], preserve_index=False)
        table = table.rename_columns(["visits", "spend", "plan", "score", "label", "event_timestamp"])
        return table.set_column(5, "event_timestamp", table["event_timestamp"].cast(pa.timestamp("us", tz="UTC")))

    def rows(self, *, version: int = 1, variant: str = "champion") -> list[PredictionRow]:
        return [
            PredictionRow(
                request_id=f"r-{row.case_id}",
                position=0,
                variant=variant,
                version=version,
                case_id=row.case_id,
                event_timestamp=row.asked_at.to_pydatetime(),
                answered_at=row.asked_at.to_pydatetime(),
                inputs={"customer": row.customer, "basket": row.basket},
                numbers=np.array([row.visits, row.spend], np.float32),
                texts=[row.plan if isinstance(row.plan, str) else ""],
                view_times={"habits": micros(row.asked_at.floor("1h").to_pydatetime()), "account": None},
                score=float(row.score),
                decision=int(row.score >= 0.5),
                latency_ms=1.0,
            )
            for row in self.frame.itertuples()
        ]


FINGERPRINT = "f" * 64


class FakeStore:
    """A Feast store's reading methods over the very vectors that were logged."""

    config = None

    def __init__(self, cases: Cases) -> None:
        self.vectors = cases.frame.set_index("asked_at")[["visits", "spend", "plan"]].copy()
        self.asked: list[pa.Table] = []

    def list_feature_services(self) -> list[SimpleNamespace]:
        views = [_projection("habits", "visits", "spend"), _projection("basket_view", "plan")]
        return [SimpleNamespace(name="churn_v1", feature_view_projections=views)]

    def list_batch_feature_views(self) -> list[SimpleNamespace]:
        day = SimpleNamespace(
            time_window=timedelta(hours=24),
            slide_interval=timedelta(hours=24),
            resolved_name=lambda _window: "visits",
        )
        key = [SimpleNamespace(name="customer", dtype="Int64")]
        return [
            _view("habits", key, {"asof.every": "1h"}, [day]),
            _view("account", key, {}, []),
            _view("elsewhere", [], {}, []),
        ]

    def list_stream_feature_views(self) -> list[SimpleNamespace]:
        return []

    def list_on_demand_feature_views(self) -> list[SimpleNamespace]:
        request = SimpleNamespace(schema=[SimpleNamespace(name="basket", dtype="Float64")])
        behind = {"account": _projection("account")}
        requests = {"request": request}
        return [
            SimpleNamespace(name="basket_view", source_feature_view_projections=behind, source_request_sources=requests)
        ]

    def get_historical_features(self, entity_df: pa.Table, features: Any) -> SimpleNamespace:
        self.asked.append(entity_df)
        table = entity_df
        at = entity_df["event_timestamp"].to_pandas()
        found = self.vectors.reindex(at)
        # Asked about the boundary before, it gives what nobody was ever answered.
        found.loc[~at.isin(self.vectors.index).to_numpy()] = [-1e9, -1e9, "before"]
        for name in found.columns:
            table = table.append_column(name, pa.array(found[name], from_pandas=True))
        backwards = table.take(pa.array(range(table.num_rows))[::-1])  # a store need not keep the order
        return SimpleNamespace(to_arrow=lambda: backwards)


def _view(name: str, key: list[Any], tags: dict[str, str], aggregations: list[Any]) -> SimpleNamespace:
    return SimpleNamespace(
        name=name, entity_columns=key, tags=tags, aggregations=aggregations, batch_source=None, ttl=timedelta(0)
    )


def _projection(view: str, *features: str) -> SimpleNamespace:
    return SimpleNamespace(
        name=view,
        name_to_use=lambda: view,
        join_key_map={},
        features=[SimpleNamespace(name=feature) for feature in features],
    )


@dataclass
class World:
    """A project with one task; logs and labels are added by the tests."""

    root: Path
    task: Task
    locations: Locations
    engine: Engine
    past: Cases
    bundle: Bundle
    cases: list[Cases] = field(default_factory=list)

    def log(self, cases: Cases, *, rows: Sequence[PredictionRow] | None = None) -> None:
        """Log the cases as answered, and let their outcomes happen."""
        self.cases.append(cases)
        path = self.locations.predictions("churn") / f"s{len(self.cases)}.sqlite"
        connection = open_segment(path, [(spec.name, spec.kind) for spec in FEATURES])
        append(connection, cases.rows() if rows is None else rows)
        connection.close()
        self.outcomes(self.everything)

    @property
    def everything(self) -> pd.DataFrame:
        """All cases, of the reference and of the log."""
        return pd.concat([self.past.frame, *(each.frame for each in self.cases)])

    def outcomes(self, frame: pd.DataFrame) -> None:
        """Make this the whole spine."""
        table = pa.Table.from_pandas(
            frame[["case_id", "customer", "basket", "asked_at", "churned", "known_at"]], preserve_index=False
        )
        pq.write_table(table, self.root / "cases.parquet", coerce_timestamps="us")

    def serve(self, champion: int, *, challenger: int | None = None) -> None:
        """Say that the bundle is served under these numbers."""
        path = str(self.bundle.path)
        with self.engine.begin() as connection:
            connection.execute(
                insert(deployments).values(
                    task="churn",
                    generation=1,
                    champion=champion,
                    champion_bundle=path,
                    challenger=challenger,
                    challenger_bundle=None if challenger is None else path,
                    stage="idle" if challenger is None else "canary",
                    share=0.0,
                    since=START,
                )
            )

    @property
    def store(self) -> FakeStore:
        return FakeStore(Cases(pd.concat([each.frame for each in self.cases])))


def make_bundle(
    path: Path, reference: pa.Table, features: Sequence[FeatureSpec] = FEATURES, task: str = "churn"
) -> Bundle:
    metadata = BundleMetadata(
        task=task,
        kind="binary",
        learner="lightgbm",
        feature_service="churn_v1",
        features=tuple(features),
        service_fingerprint=FINGERPRINT,
        threshold=0.5,
        fallback=0.5,
        trained_at=START.isoformat(),
        training_data={},
        metrics={},
        gates=(),
        seed=7,
        params={},
        task_as_trained={},
        provenance={"run_id": "run-7"},
    )
    return write_bundle(path, model=b"not a graph; monitoring never runs one", metadata=metadata, reference=reference)


def make_world(root: Path, *, metric: str = "roc_auc", past: Cases | None = None, text: str = TASK) -> World:
    (root / "tasks").mkdir(parents=True)
    (root / "tasks" / "churn.sql").write_text("select * from cases")
    (root / "tasks" / "churn.toml").write_text(text.replace("METRIC", metric))
    past = past or Cases.make(START - 14 * DAY, 14, 300, seed=1)
    locations = Locations(root / "data")
    world = World(
        root=root,
        task=load_task(root / "tasks" / "churn.toml"),
        locations=locations,
        engine=open_state(locations.state_url),
        past=past,
        bundle=make_bundle(root / "data" / "bundle", past.reference()),
    )
    world.outcomes(past.frame)
    return world


@pytest.fixture(autouse=True)
def _definitions_of_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake store has no registry to hash."""
    real = Recomputation.fingerprint.fget
    assert real is not None

    def fingerprint(self: Recomputation) -> str:
        return real(self) if hasattr(self._store, "registry") else FINGERPRINT

    monkeypatch.setattr(Recomputation, "fingerprint", property(fingerprint))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def new_world(tmp_path: Path) -> Callable[..., World]:
    def make(name: str = "world", **how: Any) -> World:
        return make_world(tmp_path / name, **how)

    return make
