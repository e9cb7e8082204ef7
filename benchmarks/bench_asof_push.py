"""Push to readable: from the call of `store.push` until its values can be read, at 2,000 events a second.

    python benchmarks/bench_asof_push.py                     # 2,000 pushes of 100, of 10 and of 1 row
    python benchmarks/bench_asof_push.py windowed 100        # one view, one size
    python benchmarks/bench_asof_push.py plain 100 500       # 500 pushes

A windowed view (16 features over an hour to a week) and a plain one read a year of departures and the pushed rows; the
clock stands at the end of the year and moves as the machine's does. Each side runs in its own process and pushes into
SQLite on a schedule that does not wait for it: `from_schedule` counts from when a push was due, so that a stall shows
in all that it holds up; `taken` from when it began. A pushed key is read back after every tenth push. Feast's own push,
which takes plain views only and computes no windows, gets the same rows.

Warm-up, outside the schedule: a push without rows (asof), a read, twenty pushes. The first push of a process that has
not been warmed up is measured beside it, in another process. Then a hundred pushes, one after the other, say what rate
a side sustains; where that is not 2,000 events a second with some room, the schedule runs at 70 % of it.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sides import run_side

EVENTS_PER_SECOND = 2_000
SIZES = (100, 10, 1)
PUSHES = 2_000
PROBES = 100
"""Pushes one after the other, which say what rate a side sustains."""
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


def store_of(folder: Path, state: Path, side: str, windowed: bool):
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
        registry=str(state / "registry.db"),
        online_store={"type": "sqlite", "path": str(state / "online.db")},
        entity_key_serialization_version=3,
        **SIDES[side],
    )
    store = FeatureStore(config=config, repo_path=str(folder))
    with contextlib.redirect_stdout(io.StringIO()):
        store.apply([route, view])
    return store


class Side:
    """One system with one view, and a source of rows for it.

    Args:
        folder: with the departures.
        side: asof or feast.
        kind: windowed or plain.
        size: rows of a push.
    """

    def __init__(self, folder: Path, side: str, kind: str, size: int) -> None:
        self._state = tempfile.TemporaryDirectory(dir=folder)
        self.store = store_of(folder, Path(self._state.name), side, kind == "windowed")
        self._feature = "count_1h" if kind == "windowed" else "dep_delay"
        self._side, self._size = side, size
        self._routes = pq.read_table(folder / "departures")["route"].unique().to_pylist()
        self._rng = np.random.default_rng(9)
        self._began = time.perf_counter()
        if side == "asof":
            from asof import hooks

            hooks._now = self._now

    def _now(self) -> datetime:
        return YEAR_END + timedelta(seconds=time.perf_counter() - self._began)

    def frame(self, number: int) -> pd.DataFrame:
        """The rows of one push."""
        rng, now, size = self._rng, self._now(), self._size
        moments = pd.DatetimeIndex([now] * size) - pd.to_timedelta(rng.integers(0, 2_000, size), unit="ms")
        return pd.DataFrame(
            {
                "route": rng.choice(self._routes, size),
                "event_timestamp": moments,
                "created": pd.DatetimeIndex([now] * size),
                "dep_delay": rng.integers(-10, 120, size),
                "id": [f"p{number}_{place}" for place in range(size)],
            }
        )

    def push(self, number: int) -> float:
        """Push once; seconds."""
        frame = self.frame(number)
        before = time.perf_counter()
        self.store.push("pushed", frame)
        return time.perf_counter() - before

    def reads(self, frame: pd.DataFrame) -> bool:
        """Whether a pushed key has a value."""
        rows = {"route": [frame["route"][0]]}
        read = self.store.get_online_features([f"view:{self._feature}"], entity_rows=rows).to_dict()
        return bool(read[self._feature][0]) or (self._feature == "dep_delay" and read[self._feature][0] is not None)

    def warm_up(self) -> dict[str, float]:
        """As the module says; milliseconds of each part."""
        empty = self.frame(0)[:0]
        parts: dict[str, Callable[[], Any]] = {
            "push_without_rows_ms": lambda: self.store.push("pushed", empty) if self._side == "asof" else None,
            "first_read_ms": lambda: self.reads(self.frame(0)),
            "twenty_pushes_ms": lambda: [self.push(-1 - number) for number in range(20)],
        }
        took = {}
        for name, part in parts.items():
            before = time.perf_counter()
            part()
            took[name] = round((time.perf_counter() - before) * 1e3, 1)
        return took


def run(folder: Path, side: str, kind: str, size: int, pushes: int) -> None:
    system = Side(folder, side, kind, size)
    warmed = system.warm_up()
    alone = float(np.mean([system.push(-1_000 - number) for number in range(PROBES)]))
    sustained = size / alone
    rate = EVENTS_PER_SECOND if sustained > 1.05 * EVENTS_PER_SECOND else 0.7 * sustained
    taken, late, unread = [], [], 0
    start = time.perf_counter()
    for number in range(pushes):
        due = start + number * size / rate
        frame = system.frame(number)
        while (left := due - time.perf_counter()) > 0:
            time.sleep(left)
        before = time.perf_counter()
        system.store.push("pushed", frame)
        done = time.perf_counter()
        taken.append(done - before)
        late.append(done - due)
        if number % 10 == 0:
            unread += not system.reads(frame)
    figures = {
        f"{name}_p{q}_ms": round(float(np.percentile(values, q)) * 1e3, 1)
        for name, values in (("taken", taken), ("from_schedule", late))
        for q in (50, 99)
    }
    reached = round(pushes * size / (time.perf_counter() - start))
    print(
        json.dumps({**figures, "events_per_second": reached, "sustained": round(sustained), "unread": unread, **warmed})
    )


def cold(folder: Path, side: str, kind: str, size: int) -> None:
    print(json.dumps({"first_push_ms": round(Side(folder, side, kind, size).push(0) * 1e3, 1)}))


def main(*chosen: str) -> None:
    kinds = [word for word in chosen if not word.isdigit()]
    sizes, count = [int(word) for word in chosen if word.isdigit()][:1], [int(w) for w in chosen if w.isdigit()][1:]
    pushes = (count or [PUSHES])[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        print("warm-up, outside the schedule: a push without rows, a read, twenty pushes")
        for kind, side in (("windowed", "asof"), ("plain", "asof"), ("plain", "feast")):
            if not kinds or kind in kinds:
                first = run_side(__file__, "cold", name, side, kind, "100")
                print(f"{kind:8} {side:5} not warmed up, 100 rows: {first}", flush=True)
        for size in sizes or SIZES:
            print(f"{pushes} pushes, {size} rows each", flush=True)
            sides = {}
            for kind, side in (("windowed", "asof"), ("plain", "asof"), ("plain", "feast")):
                if not kinds or kind in kinds:
                    sides[kind, side] = run_side(__file__, "side", name, side, kind, str(size), str(pushes))
                    print(f"  {kind:8} {side:5} {sides[kind, side]}", flush=True)
            ours, theirs = sides.get(("plain", "asof"), {}), sides.get(("plain", "feast"), {})
            if "taken_p50_ms" in ours and "taken_p50_ms" in theirs:
                ratio = theirs["taken_p50_ms"] / ours["taken_p50_ms"]
                print(f"  plain view, Feast's own push: {ratio:.2f} times the time at p50", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["side"]:
        run(Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
    elif sys.argv[1:2] == ["cold"]:
        cold(Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        main(*sys.argv[1:])
