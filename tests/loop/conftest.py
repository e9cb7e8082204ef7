"""A stranger's project: another Feast repository (on Feast's own file store) and another task, made from nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = 32
ORDERS_A_DAY = 700

YAML = """
project: kitchen
provider: local
registry: ../data/feast/registry.db
online_store:
  type: sqlite
  path: ../data/feast/online.db
offline_store:
  type: file
entity_key_serialization_version: 3
"""

DEFINITIONS = """
from datetime import timedelta

from feast import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    RequestSource,
    StreamFeatureView,
    ValueType,
)
from feast.aggregation import Aggregation
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String

courier = Entity(name="courier", join_keys=["courier_id"], value_type=ValueType.INT64)
city = Entity(name="city", join_keys=["city"], value_type=ValueType.STRING)

courier_facts = FeatureView(
    name="courier_facts",
    entities=[courier],
    ttl=timedelta(0),
    source=FileSource(path="../data/events/couriers.parquet", timestamp_field="hired_at"),
    schema=[
        Field(name="courier_id", dtype=Int64),
        Field(name="vehicle", dtype=String),
        Field(name="years", dtype=Float64),
    ],
)
deliveries = FileSource(path="../data/events/deliveries.parquet", timestamp_field="delivered_at")
courier_day = StreamFeatureView(
    name="courier_day",
    entities=[courier],
    ttl=timedelta(hours=6),
    source=PushSource(name="deliveries_push", batch_source=deliveries),
    timestamp_field="delivered_at",
    schema=[
        Field(name="late_share_24h", dtype=Float64),
        Field(name="deliveries_24h", dtype=Int64),
    ],
    aggregations=[
        Aggregation(column="late", function="mean", time_window=timedelta(hours=24), name="late_share_24h"),
        Aggregation(column="late", function="count", time_window=timedelta(hours=24), name="deliveries_24h"),
    ],
    tags={"asof.every": "1h"},
)


@on_demand_feature_view(
    sources=[RequestSource(name="order", schema=[Field(name="km", dtype=Float64)]), courier_facts[["years"]]],
    schema=[Field(name="km_per_year", dtype=Float64)],
    mode="python",
)
def experience(inputs):
    pairs = zip(inputs["km"], inputs["years"])
    return {"km_per_year": [None if km is None or y is None else km / (1.0 + y) for km, y in pairs]}


lateness = FeatureService(name="lateness", features=[courier_facts, courier_day, experience])
"""

TASK = """
name = "late_delivery"
kind = "binary"
feature_repo = "../definitions"
feature_service = "lateness"

[spine]
sql = "late_delivery.sql"
tables = { orders = "../data/events/orders.parquet" }
id = "order_id"
event_timestamp = "ordered_at"
keys = ["courier_id"]
request_fields = ["km"]
label = "late"
label_known_at = "known_at"

[success]
metric = "roc_auc"
floor = 0.6
cost = { false_alarm = 1, missed = 4, currency = "EUR" }

[budget]
p99_ms = 500
requests_per_second = 20

[fairness]
slices = ["city"]
max_gap = 0.3

[training]
window = "24d"
validation = "4d"
holdout = "4d"
params = { n_estimators = 60 }

[gates]
min_holdout_rows = 500

[rollout]
shadow_samples = 100
shadow_bake = "6h"
canary_steps = [0.2]
canary_samples = 10
canary_bake = "6h"
load_test_requests = 100

[serving]
refuse_unknown = ["courier_id"]

[monitoring]
chunk = "12h"
min_rows = 100
performance_floor = 0.55
"""


def build_project(root: Path, seed: int = 3) -> Path:
    """Write the project below `root` and return it."""
    random = np.random.default_rng(seed)
    (root / "definitions").mkdir(parents=True)
    (root / "definitions" / "feature_store.yaml").write_text(YAML)
    (root / "definitions" / "definitions.py").write_text(DEFINITIONS)
    (root / "tasks").mkdir()
    (root / "tasks" / "late_delivery.toml").write_text(TASK)
    (root / "tasks" / "late_delivery.sql").write_text("select * from orders")
    events = root / "data" / "events"
    events.mkdir(parents=True)
    couriers = np.arange(1, 31)
    slow = random.normal(0, 1.2, len(couriers))
    pl.DataFrame(
        {
            "courier_id": couriers,
            "vehicle": random.choice(["bike", "car", "scooter"], len(couriers)),
            "years": random.uniform(0, 8, len(couriers)),
            "hired_at": [START - timedelta(days=400)] * len(couriers),
        },
        schema_overrides={"hired_at": pl.Datetime("us", "UTC")},
    ).write_parquet(events / "couriers.parquet")
    count = DAYS * ORDERS_A_DAY
    seconds = np.sort(random.integers(0, DAYS * 86400, count))
    who = random.integers(0, len(couriers), count)
    km = random.gamma(2.0, 2.0, count)
    chance = 1 / (1 + np.exp(-(slow[who] + 0.3 * (km - 4) - 1.0)))
    orders = pl.DataFrame(
        {
            "order_id": [f"o{i}" for i in range(count)],
            "courier_id": couriers[who],
            "city": np.array(["North", "South"])[who % 2],
            "km": km,
            "late": (random.random(count) < chance).astype("int64"),
            "ordered_at": [START + timedelta(seconds=int(each)) for each in seconds],
        },
        schema_overrides={"ordered_at": pl.Datetime("us", "UTC")},
    ).with_columns(known_at=pl.col("ordered_at") + pl.duration(minutes=50))
    orders.write_parquet(events / "orders.parquet")
    orders.select("courier_id", "late", delivered_at=pl.col("known_at")).write_parquet(events / "deliveries.parquet")
    return root


@pytest.fixture(scope="session")
def make_stranger() -> Callable[[Path], Path]:
    """Write the project into a folder, the same every time."""
    return build_project


@pytest.fixture(scope="session")
def stranger(tmp_path_factory) -> Path:
    """The project, before anything was done with it."""
    return build_project(tmp_path_factory.mktemp("stranger") / "kitchen")


SKEWLESS = str(Path(sys.executable).with_name("skewless"))


@pytest.fixture(scope="session")
def skewless() -> Callable[..., Any]:
    """Run a command in a project as a person would; returns what it printed as JSON."""

    def call(project: Path, *args: str) -> Any:
        done = subprocess.run([SKEWLESS, "-C", str(project), *args, "--json"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return call


@pytest.fixture(scope="session")
def run_until() -> Callable[..., list[psutil.Process]]:
    """Start `skewless run`, end its process group with SIGKILL as soon as it prints a line, return all it had started.

    With `host`, the process it has started to hold Ray is killed with it.
    """

    def kill(project: Path, line: str, *args: str, host: bool = False) -> list[psutil.Process]:
        command = [SKEWLESS, "-C", str(project), "run", *args]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            assert process.stderr is not None
            said = []
            for each in process.stderr:
                said.append(each)
                if line in each:
                    break
            else:
                pytest.fail(f"{line!r} was never printed:\n{''.join(said)}")
            run = psutil.Process(process.pid)
            started = run.children(recursive=True)
            for child in run.children() if host else ():
                child.kill()
            os.killpg(process.pid, signal.SIGKILL)
        return started

    return kill


KILLED_AT = {
    "==> apply feature definitions": False,
    "held out": False,
    "==> start serving": False,
    "rollback drill": False,
    "==> monitor": True,
    "==> retrain on the latest window": False,
}
"""When the stranger's run is killed: as it prints this; and whether the process that holds Ray is killed with it, which
is in a group of its own and otherwise ends by itself."""


@pytest.fixture(scope="session")
def killed(stranger: Path, run_until: Callable[..., list[psutil.Process]]) -> list[psutil.Process]:
    """All that ran when the stranger's run was killed, at one moment after another, with no pause in between."""
    return [each for line, host in KILLED_AT.items() for each in run_until(stranger, line, "--days", "1", host=host)]


@pytest.fixture(scope="session")
def finished(stranger: Path, killed: list[psutil.Process], skewless: Callable[..., Any]) -> Any:
    """The report of the run after those; the project is then as a finished run leaves it."""
    return skewless(stranger, "run", "--days", "2")


class Serving:
    """Stands in for `serving.start.ServingHandle`: the same replica, in a thread."""

    def __init__(self, project: Path, data: Path, *, port: int, clock: Any, tasks: Any = None, **_: Any) -> None:
        import uvicorn

        from contracts.clock import SystemClock
        from serving.replica import Replica

        self.url = f"http://127.0.0.1:{port}"
        self._replica = Replica(project, data, tasks or (), SystemClock(), clock)
        config = uvicorn.Config(self._replica.asgi, port=port, log_level="error", lifespan="off", timeout_keep_alive=75)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._replica.close()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
