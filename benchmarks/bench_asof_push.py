"""Push to readable: from the call of `store.push` until its values can be read, at 2,000 events a second.

    python benchmarks/bench_asof_push.py              # 20 pushes a second of 100 rows, for 30 s
    python benchmarks/bench_asof_push.py 100 20       # 100 pushes a second of 20 rows
    python benchmarks/bench_asof_push.py 2000 10      # single rows
    python benchmarks/bench_asof_push.py 20 30 plain  # a plain view on both sides, for the ratio to Feast's own push

A windowed view (16 features over an hour to a week) reads a year of departures and the pushed rows. The clock stands at
the end of the year and moves as the machine's does. Each side runs in its own process, pushes into SQLite on a schedule
that does not wait, and reads one of its keys back after every tenth push: `from_schedule` counts from when a push was
due, so that a stall shows in all that it held up; the others from when it began. Feast pushes only plain views.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sides import run_side

EVENTS_PER_SECOND = 2_000
YEAR_END = datetime(2014, 1, 1, 6, tzinfo=UTC)
WINDOWS = {"1h": 1, "3h": 3, "24h": 24, "7d": 168}
SIDES = {
    "asof": {
        "offline_store": {"type": "asof.offline_store.AsofOfflineStore"},
        "batch_engine": {"type": "asof.compute.AsofComputeEngine"},
    },
    "feast": {"offline_store": {"type": "duckdb"}, "batch_engine": {"type": "local"}},
}


def make(folder: Path) -> None:
    from feature_repo.ingest import ingest

    ingest(folder / "landed")
    rows = pq.read_table(folder / "landed/events/departures", partitioning=None)
    rows = rows.select(["event_timestamp", "created", "route", "dep_delay"])
    ids = pa.array([f"d{place}" for place in range(rows.num_rows)])
    (folder / "departures").mkdir()
    pq.write_table(rows.append_column("id", ids), folder / "departures/year.parquet")


def store_of(folder: Path, side: str, windowed: bool):
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig, StreamFeatureView
    from feast.aggregation import Aggregation
    from feast.types import Float64, Int64, String
    from feast.value_type import ValueType

    route = Entity(name="route", join_keys=["route"], value_type=ValueType.STRING)
    source = FileSource(
        name="departures",
        path=str(folder / "departures"),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
        tags={"asof.event_id": "id"},
    )
    push = PushSource(name="pushed", batch_source=source)
    if windowed:
        functions = {"count": Int64, "mean": Float64, "max": Float64, "std": Float64}
        named = {f"{f}_{w}": (f, timedelta(hours=h)) for w, h in WINDOWS.items() for f in functions}
        view = StreamFeatureView(
            name="view",
            entities=[route],
            timestamp_field="event_timestamp",
            schema=[Field(name=name, dtype=functions[f]) for name, (f, _) in named.items()],
            source=push,
            aggregations=[
                Aggregation(column="dep_delay", function=f, time_window=span, name=name)
                for name, (f, span) in named.items()
            ],
        )
    else:
        fields = [Field(name="route", dtype=String), Field(name="dep_delay", dtype=Int64)]
        view = FeatureView(name="view", entities=[route], ttl=timedelta(days=1), schema=fields, source=push)
    config = RepoConfig(
        project="bench",
        provider="local",
        registry=str(folder / f"registry_{side}_{windowed}.db"),
        online_store={"type": "sqlite", "path": str(folder / f"online_{side}_{windowed}.db")},
        entity_key_serialization_version=3,
        **SIDES[side],
    )
    store = FeatureStore(config=config, repo_path=str(folder))
    with contextlib.redirect_stdout(io.StringIO()):
        store.apply([route, view])
    return store


def run(folder: Path, side: str, kind: str, pushes_per_second: int, seconds: int) -> None:
    store = store_of(folder, side, kind == "windowed")
    rows = EVENTS_PER_SECOND // pushes_per_second
    routes = pq.read_table(folder / "departures")["route"].unique().to_pylist()
    rng = np.random.default_rng(9)
    began = time.perf_counter()

    def now() -> datetime:
        return YEAR_END + timedelta(seconds=time.perf_counter() - began)

    if side == "asof":
        from asof import hooks

        hooks._now = now

    def frame(number: int) -> pd.DataFrame:
        moments = [now() - timedelta(milliseconds=int(ms)) for ms in rng.integers(0, 2_000, rows)]
        return pd.DataFrame(
            {
                "route": rng.choice(routes, rows),
                "event_timestamp": pd.to_datetime(moments, utc=True),
                "created": pd.to_datetime([now()] * rows, utc=True),
                "dep_delay": rng.integers(-10, 120, rows),
                "id": [f"p{number}_{place}" for place in range(rows)],
            }
        )

    feature = "view:count_1h" if kind == "windowed" else "view:dep_delay"
    for number in range(5):
        store.push("pushed", frame(-1 - number))
    taken, late, unread = [], [], 0
    start = time.perf_counter()
    for number in range(pushes_per_second * seconds):
        due = start + number / pushes_per_second
        pushed = frame(number)
        while (left := due - time.perf_counter()) > 0:
            time.sleep(left)
        before = time.perf_counter()
        store.push("pushed", pushed)
        taken.append(time.perf_counter() - before)
        late.append(time.perf_counter() - due)
        if number % 10 == 0:
            name = feature.partition(":")[2]
            read = store.get_online_features([feature], entity_rows={"route": [pushed["route"][0]]}).to_dict()[name][0]
            unread += not read if kind == "windowed" else read is None
    milliseconds = {f"p{q}_ms": round(float(np.percentile(taken, q)) * 1e3, 1) for q in (50, 99)}
    from_due = {f"from_schedule_p{q}_ms": round(float(np.percentile(late, q)) * 1e3, 1) for q in (50, 99)}
    reached = round(len(taken) * rows / (time.perf_counter() - start))
    print(
        json.dumps({"pushes": len(taken), **milliseconds, **from_due, "events_per_second": reached, "unread": unread})
    )


def main(pushes_per_second: int = 20, seconds: int = 30, *kinds: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        print(f"{EVENTS_PER_SECOND // pushes_per_second} rows a push, {pushes_per_second} pushes a second")
        sides = {}
        for kind, side in (("windowed", "asof"), ("plain", "asof"), ("plain", "feast")):
            if not kinds or kind in kinds:
                arguments = (str(folder), side, kind, str(pushes_per_second), str(seconds))
                sides[kind, side] = run_side(__file__, "side", *arguments)
                print(f"  {kind:8} {side:5} {sides[kind, side]}")
        ours, theirs = sides.get(("plain", "asof"), {}), sides.get(("plain", "feast"), {})
        if "p50_ms" in ours and "p50_ms" in theirs:
            print(f"  plain view, Feast's own push: {theirs['p50_ms'] / ours['p50_ms']:.1f} times the time at p50")


if __name__ == "__main__":
    if sys.argv[1:2] == ["side"]:
        run(Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
    else:
        main(*map(int, sys.argv[1:3]), *sys.argv[3:])
