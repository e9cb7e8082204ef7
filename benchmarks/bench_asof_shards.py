"""The same windows in one process and in shards on a Ray of this machine: seconds and peak memory, both in one run.

    python benchmarks/bench_asof_shards.py [events] [shards]      # default 10,000,000 8

One machine has no more cores than one process can use: this shows what sharding costs, and how much memory a worker
needs, which is what decides how large a machine has to be. Answers are compared byte for byte.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from bench_asof_windows import HOUR, HOURS, make
from sides import run_side

FUNCTIONS = ("count", "sum", "mean", "max", "std", "percentile_50")


class Peaks:
    """The most memory each worker had, sampled while something runs (MB)."""

    def __init__(self) -> None:
        self.by_pid: dict[int, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::"):
                        memory = process.memory_info()
                        own = (memory.rss - memory.shared) >> 20  # what is shared is the object store
                        self.by_pid[process.pid] = max(self.by_pid.get(process.pid, 0), own)
                except psutil.Error:
                    continue


def view_and_spine(folder: Path):
    from asof.definition import Feature, Key, View, Window
    from asof.engine import Spine
    from asof.source import Source

    windows = tuple(
        Window(Feature(f"{function}_{h}", None, None), function, "v", h * HOUR, 0)
        for h in HOURS
        for function in FUNCTIONS
    )
    source = Source("bench", str(folder / "events.parquet"), "ts", None)
    key = Key("k", "k", pa.int64(), None)
    asked = pq.read_table(folder / "spine.parquet")
    at = asked["t"].cast(pa.int64()).to_numpy()
    view = View("bench", (key,), tuple(w.feature for w in windows), (), windows, source, 0, 0)
    return view, Spine(asked, at, np.ones(len(at), bool))


def one(folder: Path) -> None:
    from asof.engine import as_of
    from asof.session import Session

    view, spine = view_and_spine(folder)
    began = time.perf_counter()
    with Session() as session:
        (answer,) = as_of([view], spine, session)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    pq.write_table(answer.features, folder / "one.parquet")
    print(json.dumps({"seconds": round(seconds, 2), "peak_mb": peak}))


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        one(Path(sys.argv[2]))
        return
    from asof.cluster import Cluster, disconnect
    from asof.engine import as_of
    from asof.session import Session
    from asof.shards import Shards

    events, shards = (int(each) for each in (sys.argv[1:3] or (10_000_000, 8)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, events, 1_000, events // 10, 0.0)
        print(f"{events:,} events, 1,000 keys, {events // 10:,} rows, {len(HOURS) * len(FUNCTIONS)} features")
        print("one process      ", run_side(__file__, "--one", name))
        began = time.perf_counter()
        cluster = Cluster("local")
        print(f"starting Ray       {time.perf_counter() - began:.1f} s, once per process")
        view, spine = view_and_spine(folder)
        for attempt in ("first, with imports", "again"):
            with Peaks() as peaks, Session(elsewhere=Shards(shards, cluster, {"threads": 1})) as session:
                began = time.perf_counter()
                (answer,) = as_of([view], spine, session)
                seconds = time.perf_counter() - began
            worker = max(peaks.by_pid.values(), default=0)
            print(f"{shards} shards on Ray    {seconds:.2f} s ({attempt}), peak of a worker {worker} MB")
        print("equal byte for byte:", answer.features.equals(pq.read_table(folder / "one.parquet")))
        disconnect()


if __name__ == "__main__":
    main()
