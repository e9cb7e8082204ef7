"""What a training costs over the fit alone, how fast frames come, what ten million rows need, what packaging costs.

    python benchmarks/bench_training.py flights     # the shipped task late_arrival, raw data to registered version
    python benchmarks/bench_training.py large       # ten million synthetic rows: split, fit, package, judge

The bare fit is LightGBM alone on the same rows with the same parameters and early stopping, its matrices already in
memory; everything else that a training does (join, audit, packaging, evaluation with bootstraps, gates, card, tracking)
is what the ratio is about. Sides run one after the other in processes of their own.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from sides import ROOT, measured, run_side

CUTOFF = datetime(2013, 4, 1, tzinfo=UTC)
LARGE_ROWS, NUMBERS = 10_000_000, 10
ROUNDS = 100
REPEATS = {1: 2000, 32: 1000, 1000: 200}


def project_side(folder: Path) -> dict[str, Any]:
    """Land and apply, in a process of its own: a child begins with its parent's peak memory."""
    from asof.repository import apply_repository
    from loop.project import Project

    for name in ("feature_repo", "tasks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    project = Project(folder)
    task = project.task("late_arrival")
    project.ingest(task, lambda _: None)
    apply_repository(task.feature_repo)
    return {}


def whole_side(folder: Path) -> dict[str, Any]:
    """A training as `skewless train` does it."""
    from contracts.clock import VirtualClock
    from loop.project import Project
    from training.pipeline import train

    project = Project(folder)
    task = project.task("late_arrival")
    result, cost = measured(
        lambda: train(task, project.locations, cutoff=CUTOFF, clock=VirtualClock(CUTOFF), champion=None)
    )
    rows = sum(result.split["rows"].values())
    steps = {name: round(spent, 2) for name, spent in result.seconds.items()}
    return cost | {"rows": rows, "steps": steps, "bundle": str(result.bundle), "snapshot": str(result.snapshot)}


def bare_side(folder: Path, bundle: str, snapshot: str) -> dict[str, Any]:
    """LightGBM alone on the frame that the training left."""
    import lightgbm as lgb
    import pyarrow.parquet as pq

    from contracts.bundle import load_bundle

    kept = load_bundle(Path(bundle)).metadata
    file = Path(snapshot)
    table = pq.read_table(file if file.is_file() else next(file.rglob("*.parquet")))
    numbers = [each.name for each in kept.features if each.kind == "number"]
    texts = [each.name for each in kept.features if each.kind == "text"]
    columns = [table[f"feature.{name}"].to_numpy() for name in numbers]
    columns += [table[f"feature.{name}"].combine_chunks().dictionary_encode().indices.to_numpy() for name in texts]
    matrix = np.column_stack([column.astype(np.float32) for column in columns])
    task = kept.task_as_trained["spine"]
    labels = table[task["label"]].to_numpy().astype(np.int8)
    asked, known = (
        table[task[name]].to_numpy().astype("datetime64[us]") for name in ("event_timestamp", "label_known_at")
    )
    edges = [
        np.datetime64(kept.training_data["split"]["bounds"][name][:19]) for name in ("start", "validation", "holdout")
    ]
    train = (asked >= edges[0]) & (asked < edges[1]) & (known <= edges[1])
    stop = (asked >= edges[1]) & (asked < edges[2]) & (known <= edges[2])
    params = {name: value for name, value in kept.params.items() if name != "num_iterations"}
    places = list(range(len(numbers), matrix.shape[1]))

    def work() -> Any:
        data = lgb.Dataset(matrix[train], labels[train], categorical_feature=places, params=params)
        return lgb.train(
            params, data, int(kept.params["num_iterations"]), valid_sets=[data.create_valid(matrix[stop], labels[stop])]
        )

    booster, cost = measured(work)
    rows = matrix[stop][:1000]
    return cost | {"trees": booster.best_iteration, "rows": int(train.sum()), **_latency(booster, Path(bundle), rows)}


def _latency(booster: Any, bundle: Path, matrix: np.ndarray) -> dict[str, Any]:
    """p50 ms of one call, packaged and native, by rows in the call; sizes in KB."""
    from contracts.bundle import load_bundle
    from contracts.scorer import Scorer

    kept = load_bundle(bundle)
    reference, scorer = kept.reference(), Scorer(kept.model_path)
    specs = kept.metadata.features
    numbers = np.column_stack(
        [reference[each.name].to_numpy().astype(np.float32) for each in specs if each.kind == "number"]
    )
    texts = [reference[each.name].fill_null("").to_numpy(zero_copy_only=False) for each in specs if each.kind == "text"]
    words = np.column_stack(texts).astype(object) if texts else np.empty((len(numbers), 0), object)
    found: dict[str, Any] = {}
    for rows, repeats in REPEATS.items():
        sides = {
            "packaged": lambda rows=rows: scorer.score(numbers[:rows], words[:rows]),
            "native": lambda rows=rows: booster.predict(matrix[:rows], num_threads=1),
        }
        found[str(rows)] = {name: _p50(call, repeats) for name, call in sides.items()}
    size = {"packaged": kept.model_path.stat().st_size, "native": len(booster.model_to_string().encode())}
    return {"latency_ms": found, "kilobytes": {name: round(each / 1024) for name, each in size.items()}}


def _p50(call: Any, repeats: int) -> float:
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return round(median(spent) * 1000, 4)


def large_table(rows: int) -> tuple[Any, Any]:
    import pyarrow as pa

    rng = np.random.default_rng(1)
    end = int(CUTOFF.timestamp() * 1e6)
    asked = np.sort(rng.integers(end - 90 * 86_400_000_000, end - 86_400_000_000, rows))
    columns = {f"n{number}": rng.random(rows, np.float32) for number in range(NUMBERS)}
    odds = 3 * columns["n0"] + columns["n1"] - 2.5
    label = (rng.random(rows, np.float32) < 1 / (1 + np.exp(-odds))).astype(np.int8)
    instant = pa.timestamp("us", tz="UTC")
    city = pa.DictionaryArray.from_arrays(pa.array(rng.integers(0, 50, rows, np.int32)), [f"c{i}" for i in range(50)])
    spine = {"case": np.arange(rows), "at": pa.array(asked, instant), "label": label}
    spine |= {"known": pa.array(asked + 3_600_000_000, instant), "group": pa.array(rng.integers(0, 3, rows, np.int8))}
    return pa.table(spine), pa.table(columns | {"city": city.cast(pa.string())})


def large_task(folder: Path) -> Any:
    from contracts.task import Task

    (folder / "large.sql").write_text("select * from cases")
    spine = {"sql": folder / "large.sql", "tables": {"cases": folder}, "id": "case", "event_timestamp": "at"}
    return Task.model_validate(
        {
            "name": "large",
            "kind": "binary",
            "feature_repo": folder,
            "feature_service": "large_v1",
            "spine": spine | {"keys": ["case"], "label": "label", "label_known_at": "known"},
            "success": {"metric": "roc_auc", "floor": 0.6, "cost": {"false_alarm": 1, "missed": 3}},
            "budget": {"p99_ms": 50, "requests_per_second": 10},
            "fairness": {"slices": ["group"]},
            "training": {"learner": "lightgbm", "params": {"num_iterations": ROUNDS, "early_stopping_round": ROUNDS}},
            "monitoring": {"performance_floor": 0.6},
        }
    )


def large_side(folder: Path, rows: str, what: str) -> dict[str, Any]:
    """`frame`: the rows as a frame and nothing else. `version`: split, fit, package, evaluate, judge."""
    from training.frame import Frame
    from training.making import make_version

    task = large_task(folder)
    frame = Frame.of(*large_table(int(rows)), task.spine)
    steps: dict[str, float] = {}
    began = time.perf_counter()

    def lap(name: str) -> None:
        steps[name] = round(time.perf_counter() - began - sum(steps.values()), 1)

    def work() -> Any:
        return make_version(task, frame, CUTOFF, None, lap=lap, say=lambda _: None) if what == "version" else None

    made, cost = measured(work)
    auc = {"roc_auc": round(made.evaluation.metrics["roc_auc"].value, 4)} if made else {}
    return cost | {"table_mb": round(frame.table.nbytes / 1e6), "steps": steps} | auc


SIDES = {"project": project_side, "whole": whole_side, "bare": bare_side, "large": large_side}


def flights(folder: Path) -> None:
    run_side(__file__, "side", "project", str(folder))
    whole = run_side(__file__, "side", "whole", str(folder))
    print(json.dumps({"whole training": {k: v for k, v in whole.items() if k not in ("bundle", "snapshot")}}))
    bare = run_side(__file__, "side", "bare", str(folder), whole["bundle"], whole["snapshot"])
    print(json.dumps({"bare LightGBM": bare}))
    print(f"a training takes {whole['seconds'] / bare['seconds']:.1f} times the bare fit")
    print(f"frame: {whole['rows'] / whole['steps']['frame']:,.0f} labelled rows/s, spine to frame")
    for rows, each in bare["latency_ms"].items():
        packaged, native = each["packaged"], each["native"]
        print(f"{rows} rows: packaged {packaged} ms, native {native} ms: {packaged / native:.2f}")


def large(folder: Path, rows: int = LARGE_ROWS) -> None:
    for what in ("frame", "version"):
        print(json.dumps({what: run_side(__file__, "side", "large", str(folder), str(rows), what)}), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["side"]:
        print(json.dumps(SIDES[sys.argv[2]](Path(sys.argv[3]), *sys.argv[4:])))
        return
    for name in sys.argv[1:2] or ("flights", "large"):
        with tempfile.TemporaryDirectory() as folder:
            {"flights": flights, "large": large}[name](Path(folder), *map(int, sys.argv[2:3]))


if __name__ == "__main__":
    main()
