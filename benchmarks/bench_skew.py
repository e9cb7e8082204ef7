"""The skew audit over a large log: all values of a million logged predictions of the flights example.

    python benchmarks/bench_skew.py            # 1,000,000 rows
    python benchmarks/bench_skew.py 200000

The log holds what serving would have logged: flights of the whole year, each asked about at some minutes of the six
hours before it departs, computed through the offline path and written as compacted segments. Some values are then
changed by hand: the audit must find those and no others. Beside it, on a part of the log: one retrieval compared cell
by cell, and one retrieval a row.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from sides import measured, ratio, run_side

ROOT = Path(__file__).resolve().parent.parent
HOUR = 3_600_000_000
WHOLE_WINDOWS = int(np.datetime64("2013-01-09", "us").astype(np.int64))
KEYS = ("origin", "dest", "carrier", "tailnum", "route")
INSTANT = pa.timestamp("us", tz="UTC")
SEGMENT = 250_000
FAULTS = 3
"""Values changed in each feature."""


def make_log(project: Path, rows: int) -> None:
    from asof.repository import apply_repository
    from contracts.locations import Locations
    from contracts.task import load_task
    from feature_repo.ingest import ingest
    from monitoring.recompute import open_recomputation

    for part in ("feature_repo", "tasks"):
        shutil.copytree(ROOT / part, project / part)
    ingest(project / "data")
    apply_repository(project / "feature_repo")
    task = load_task(project / "tasks" / "late_arrival.toml")
    recompute = open_recomputation(task.feature_repo, task.feature_service)
    log = Locations(project / "data").predictions(task.name)
    log.mkdir(parents=True)
    schedules = pq.read_table(project / "data/events/schedules", partitioning=None).sort_by("scheduled_departure")
    random = np.random.default_rng(11)
    flights = np.sort(random.integers(0, schedules.num_rows, rows))
    faults = []
    starts = range(0, rows, SEGMENT)
    for number, start in enumerate(starts):
        asked = schedules.take(pa.array(flights[start : start + SEGMENT]))
        segment, wrong = make_segment(asked, start, recompute, random, faults=FAULTS if start == starts[-1] else 0)
        account = {"answered": str(segment.num_rows), "lost": "0", "logged": str(segment.num_rows)}
        pq.write_table(segment.replace_schema_metadata(account), log / f"s{number:03}.parquet", compression="zstd")
        faults += wrong
    (project / "faults.json").write_text(json.dumps(faults))


def make_segment(asked: pa.Table, start: int, recompute, random: np.random.Generator, faults: int):
    count = asked.num_rows
    departs = asked["scheduled_departure"].cast(pa.int64()).to_numpy()
    at = departs - random.integers(0, 360, count) * 60_000_000 - random.integers(0, 60_000_000, count)
    fields = {key: asked[key].to_pylist() for key in KEYS}
    for name in ("scheduled_departure", "scheduled_arrival"):
        stamps = asked[name].cast(pa.int64()).to_numpy().astype("datetime64[us]")
        fields[name] = [f"{each}+00:00" for each in stamps.astype(str)]
    inputs = [orjson.dumps(dict(zip(fields, row, strict=True))).decode() for row in zip(*fields.values(), strict=True)]
    instants = pa.chunked_array([pa.array(at).cast(INSTANT)])
    vectors = recompute(pa.chunked_array([pa.array(inputs)]), instants)
    times = [orjson.dumps(dict.fromkeys(recompute.views, each)).decode() for each in (at // HOUR * HOUR).tolist()]
    columns = {
        "request_id": pa.array([f"auto-{start + i:09}" for i in range(count)]),
        "position": pa.array(np.zeros(count, np.int32)),
        "variant": pa.array(["champion"] * count),
        "version": pa.array(np.ones(count, np.int32)),
        "case_id": asked["flight_id"],
        "event_timestamp": instants,
        "answered_at": instants,
        "inputs": pa.array(inputs),
        "view_times": pa.array(times),
        "score": pa.array(random.uniform(size=count)),
        "decision": pa.array(np.zeros(count, np.int8)),
        "latency_ms": pa.array(np.full(count, 3.0)),
        "degraded": pa.array([""] * count),
    }
    # In the first week the sources do not reach back as far as the longest window: nothing there can be called wrong.
    judged = np.flatnonzero(at >= WHOLE_WINDOWS)
    wrong = []
    for name in vectors.column_names:
        places = random.choice(judged, faults, replace=False)
        if pa.types.is_string(vectors[name].type) or pa.types.is_large_string(vectors[name].type):
            values = vectors[name].cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False).astype(object)
            values[places] = "changed"
            columns[f"feature.{name}"] = pa.array(values, pa.string())
        else:
            values = vectors[name].cast(pa.float64(), safe=False).to_numpy().astype(np.float32)
            values[places] = -123_456.0
            columns[f"feature.{name}"] = pa.array(values, from_pandas=True)
        wrong += [(name, f"auto-{start + int(place):09}") for place in places]
    return pa.table(columns), wrong


def audit_log(project: Path) -> dict:
    from contracts.locations import Locations
    from contracts.prediction_batches import prediction_batches
    from contracts.predictions import balance
    from contracts.task import load_task
    from monitoring import skew
    from monitoring.recompute import Recomputation

    task, locations = load_task(project / "tasks" / "late_arrival.toml"), Locations(project / "data")
    spent = {"recompute": 0.0}
    recompute = Recomputation.__call__

    def timed(self, *given):
        began = time.perf_counter()
        answer = recompute(self, *given)
        spent["recompute"] += time.perf_counter() - began
        return answer

    Recomputation.__call__ = timed
    store = skew._open(task, None)._store  # Feast's import is not the audit's time
    assert balance(locations.predictions(task.name)).balanced
    began, used = time.perf_counter(), time.process_time()
    report = skew.audit(task, locations, store=store)
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    began = time.perf_counter()
    for _ in prediction_batches(locations.predictions(task.name)):
        pass
    spent["read"] = time.perf_counter() - began
    planted = {tuple(each) for each in json.loads((project / "faults.json").read_text())}
    found = {(feature.name, each.request_id) for feature in report.features for each in feature.examples}
    assert found == planted, (len(found), len(planted), sorted(found ^ planted)[:5])
    assert report.mismatches == len(planted), report.mismatches
    assert not report.not_judged, report.not_judged
    spent["compare"] = seconds - sum(spent.values())
    return {
        "seconds": seconds,
        "processor": processor,
        "rows": report.rows,
        "checked": report.checked,
        "found": len(found),
        **spent,
    }


def naive(project: Path, rows: int, at_once: int) -> dict:
    """The same verdicts as a first version would reach them: `at_once` rows a retrieval, values as Python objects."""
    from asof.repository import open_store
    from contracts.locations import Locations
    from contracts.predictions import read_predictions
    from contracts.task import load_task

    task = load_task(project / "tasks" / "late_arrival.toml")
    store = open_store(task.feature_repo)
    service = store.get_feature_service(task.feature_service)
    log = read_predictions(Locations(project / "data").predictions(task.name)).slice(0, rows)
    names = [name.removeprefix("feature.") for name in log.column_names if name.startswith("feature.")]
    began = time.perf_counter()
    wrong = 0
    for start in range(0, rows, at_once):
        part = log.slice(start, at_once).to_pylist()
        asked = pa.Table.from_pylist(
            [orjson.loads(row["inputs"]) | {"event_timestamp": row["event_timestamp"]} for row in part]
        )
        for name in ("scheduled_departure", "scheduled_arrival"):
            asked = asked.set_column(asked.column_names.index(name), name, asked[name].cast(INSTANT))
        offline = store.get_historical_features(entity_df=asked, features=service).to_arrow().to_pylist()
        for row, fresh in zip(part, offline, strict=True):
            for name in names:
                wrong += not _same(row[f"feature.{name}"], fresh[name])
    return {"seconds": time.perf_counter() - began, "rows": rows, "wrong": wrong}


def _same(a, b) -> bool:
    null = [each is None or each == "" or each != each for each in (a, b)]
    if any(null):
        return all(null)
    if isinstance(a, str):
        return a == b
    a, b = np.float32(a), np.float32(b)
    return bool(a == b or np.nextafter(a, b) == b)


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = run_side(__file__, "make", folder, str(rows))
        print(made.get("failed") or f"a log of {rows:,} rows made in {made['seconds']:.0f} s", flush=True)
        side = run_side(__file__, "audit", folder)
        print(
            side.get("failed")
            or f"audit: {side['rows']:,} rows, {side['checked']:,} values in {side['seconds']:.1f} s "
            f"(reading {side['read']:.1f}, recomputing {side['recompute']:.1f}, comparing {side['compare']:.1f}; "
            f"{side['processor']:.1f} s of processor), "
            f"peak memory {side['peak_mb']:,.0f} MB; all {side['found']} changed values found, no other",
            flush=True,
        )
        for label, count, at_once in (("cell by cell", 20_000, 20_000), ("row by row", 40, 1)):
            other = run_side(__file__, "naive", folder, str(count), str(at_once))
            if "failed" not in side and "failed" not in other:
                other["seconds"] *= side["rows"] / other["rows"]
            print(ratio(f"{label}, by {count:,} rows of it", other, side), flush=True)


def one_side(role: str, folder: str, *numbers: str) -> None:
    project = Path(folder)
    work = {"make": make_log, "audit": audit_log, "naive": naive}[role]
    found, cost = measured(lambda: work(project, *map(int, numbers)))
    print(json.dumps(cost | (found or {})))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        one_side(*sys.argv[1:])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
