"""Online features of one request: the compiled plan against Feast's own `get_online_features(...).to_dict()`.

    python benchmarks/bench_plan.py                 # SQLite, Redis and PostgreSQL
    python benchmarks/bench_plan.py sqlite redis    # these

The flights example, materialized; two services: three of its views and the on-demand one (which reads two more), and
all of the task's. Both sides answer the same requests in turn, in one process; every flight is asked about once. The
plan does more: it applies TTLs, says what it found, and hands out the model's float32 matrix. Milliseconds.
"""

from __future__ import annotations

import gc
import json
import random
import shutil
import sys
import tempfile
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
from stores import STORES, asked_for

NOW = datetime(2013, 7, 10, 12, 30, tzinfo=UTC)
THREE_VIEWS = """

three_views_v1 = FeatureService(name="three_views_v1", features=[weather, aircraft_facts, origin_airport, flight_plan])
"""
SERVICES = {"three_views_v1": "3 views + on-demand", "late_arrival_v1": "the task's, 9 views + on-demand"}
SAMPLES = {1: 600, 100: 150}


def main(stores: list[str]) -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        from feature_repo.ingest import ingest

        ingest(folder / "landed")
        flights = pq.read_table(folder / "landed/events/schedules", partitioning=None).to_pylist()
        flights = [flight for flight in flights if flight["tailnum"] is not None]  # Feast takes no null key
        random.Random(1).shuffle(flights)
        print(f"{'store':10} {'service':34} {'rows':>4}  {'plan p50/p99':>15}  {'Feast p50/p99':>17}  Feast/plan p50")
        for kind in stores:
            with STORES[kind](folder / f"{kind}_files") as online_store:
                store = prepare(folder, kind, online_store)
                for service in SERVICES:
                    for rows in SAMPLES:
                        report(kind, service, rows, measure(store, service, rows, flights))


def prepare(folder: Path, kind: str, online_store: dict[str, str]):
    """The example's repository on an online store, materialized."""
    from asof.materialize import materialize
    from asof.repository import apply_repository, open_store

    repo = folder / kind / "feature_repo"
    shutil.copytree(Path(__file__).parents[1] / "feature_repo", repo, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / kind / "data").mkdir()
    (folder / kind / "data" / "events").symlink_to(folder / "landed" / "events")
    with (repo / "definitions.py").open("a") as definitions:
        definitions.write(THREE_VIEWS)
    yaml = repo / "feature_store.yaml"
    before, _, after = yaml.read_text().partition("online_store:\n  type: sqlite\n  path: ../data/online.db\n")
    assert after, "feature_store.yaml names another online store than this script replaces"
    yaml.write_text(f"{before}online_store: {json.dumps(online_store)}\n{after}")
    apply_repository(repo)
    store = open_store(repo)
    materialize(store, datetime(1970, 1, 2, tzinfo=UTC), NOW.replace(minute=0))
    return store


def measure(store, service_name: str, rows: int, flights: list[dict]) -> tuple[list[float], list[float]]:
    """Seconds a request takes: the plan, Feast."""
    from serving.plan import compile_plan

    plan = compile_plan(store, service_name)
    service = store.get_feature_service(service_name)
    names = [each.name for each in plan.inputs]
    at = [NOW] * rows
    times: tuple[list[float], list[float]] = [], []
    warm_up = 10
    gc.collect()
    for sample in range(SAMPLES[rows] + warm_up):
        batch = flights[sample * rows : (sample + 1) * rows]
        columns = {name: [flight[name] for flight in batch] for name in names}
        asked = [{name: flight[name] for name in names} for flight in batch]
        sides = [
            (times[0], lambda: plan.vectors(columns, at)),  # noqa: B023  # called before the next turn
            (times[1], lambda: store.get_online_features(features=service, entity_rows=asked).to_dict()),  # noqa: B023
        ]
        for into, ask in sides if sample % 2 else reversed(sides):
            began = time.perf_counter()
            ask()
            taken = time.perf_counter() - began
            if sample >= warm_up:
                into.append(taken)
    return times


def report(kind: str, service: str, rows: int, times: tuple[list[float], list[float]]) -> None:
    def quantile(values: list[float], share: float) -> float:
        return 1000 * sorted(values)[int(share * len(values))]

    (plan, plan_99), (feast, feast_99) = [(quantile(side, 0.5), quantile(side, 0.99)) for side in times]
    print(
        f"{kind:10} {SERVICES[service]:34} {rows:4}  {plan:7.2f}/{plan_99:7.2f}  {feast:8.2f}/{feast_99:8.2f}  "
        f"{feast / plan:6.1f} x",
        flush=True,
    )


if __name__ == "__main__":
    main(asked_for(sys.argv[1:]))
