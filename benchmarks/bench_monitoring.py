"""Monitoring a large log against calling NannyML on the same frame, and what a second run costs.

    python benchmarks/bench_monitoring.py            # 1,000,000 logged predictions
    python benchmarks/bench_monitoring.py 100000

The log is compacted segments of a synthetic task with 12 numbers and 3 texts, 30 days, labels known a day later; the
reference is 30 days before it. "Monitoring" is the whole of it: reading the log, labels, quality, freshness, drift,
estimated and realized performance, cost, results in SQL. "NannyML" is its univariate drift, CBPE and realized
performance on a frame that is in memory already. The skew audit has a benchmark of its own; multivariate detectors are
off on both sides, and timed alone at the end.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sides import measured, ratio, run_side

ROOT = Path(__file__).resolve().parent.parent
START = datetime(2024, 3, 1, tzinfo=UTC)
DAYS = 30
NUMBERS, TEXTS = [f"n{i}" for i in range(12)], [f"t{i}" for i in range(3)]
SEGMENT = 250_000
DAY = 86_400_000_000
INSTANT = pa.timestamp("us", tz="UTC")
TASK = """
name = "bench"
kind = "binary"
feature_repo = "."
feature_service = "none"
[spine]
sql = "bench.sql"
tables = { cases = "cases.parquet" }
id = "case_id"
event_timestamp = "asked_at"
keys = ["key"]
label = "label"
label_known_at = "known_at"
[success]
metric = "roc_auc"
floor = 0.6
cost = { false_alarm = 1, missed = 5 }
[budget]
p99_ms = 50
requests_per_second = 10
[monitoring]
chunk = "1d"
min_rows = 200
performance_floor = 0.6
multivariate = []
"""


def rows(count: int, start: datetime, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    stamps = int(start.timestamp() * 1e6) + np.sort(random.integers(0, DAYS * DAY, count))
    frame = {name: random.normal(0, 1, count).astype(np.float32) for name in NUMBERS}
    frame |= {name: random.choice([f"v{i}" for i in range(20)], count) for name in TEXTS}
    score = 1 / (1 + np.exp(-frame["n0"] - 0.5 * frame["n1"]))
    label = (random.random(count) < score).astype(np.int64)
    ids = [f"{seed}-{i}" for i in range(count)]
    return pd.DataFrame(frame | {"score": score, "label": label, "asked_at": stamps, "case_id": ids})


def make_project(project: Path, count: int) -> None:
    from contracts.bundle import BundleMetadata, FeatureSpec, write_bundle
    from contracts.predictions import COLUMNS

    past, log = rows(60_000, START - timedelta(days=DAYS), 1), rows(count, START, 2)
    spine = pd.concat([past, log])
    instants = pa.array(spine["asked_at"], pa.int64())
    cases = {
        "case_id": pa.array(spine["case_id"]),
        "key": pa.array(spine["case_id"]),
        "asked_at": instants.cast(INSTANT),
        "label": pa.array(spine["label"]),
        "known_at": pa.array(spine["asked_at"] + DAY, pa.int64()).cast(INSTANT),
    }
    pq.write_table(pa.table(cases), project / "cases.parquet")
    (project / "bench.sql").write_text("select * from cases")
    (project / "bench.toml").write_text(TASK)
    specs = [*(FeatureSpec(name, "number") for name in NUMBERS), *(FeatureSpec(name, "text") for name in TEXTS)]
    reference = pa.Table.from_pandas(past[[*NUMBERS, *TEXTS, "score", "label"]], preserve_index=False)
    asked = pa.array(past["asked_at"], pa.int64()).cast(INSTANT)
    metadata = BundleMetadata(
        "bench", "binary", "none", "none", tuple(specs), "f", 0.5, 0.5, START.isoformat(), {}, {}, (), 7, {}, {}
    )
    write_bundle(
        project / "bundle",
        model=b"never run",
        metadata=metadata,
        reference=reference.append_column("event_timestamp", asked),
    )
    folder = project / "data" / "predictions" / "bench"
    folder.mkdir(parents=True)
    for number, at in enumerate(range(0, count, SEGMENT)):
        part = log.iloc[at : at + SEGMENT]
        stamps = pa.array(part["asked_at"], pa.int64()).cast(INSTANT)
        times = [f'{{"view": {stamp - 3_600_000_000}}}' for stamp in part["asked_at"]]
        constant: dict[str, Any] = {"position": 0, "variant": "champion", "version": 1, "inputs": "{}"}
        constant |= {"decision": 1, "latency_ms": 1.0, "degraded": "", "quantiles": "{}"}
        columns = {name: pa.repeat(value, len(part)) for name, value in constant.items()}
        columns |= {"request_id": pa.array(part["case_id"]), "case_id": pa.array(part["case_id"])}
        columns |= {"event_timestamp": stamps, "answered_at": stamps, "view_times": pa.array(times)}
        columns |= {"score": pa.array(part["score"], pa.float64())}
        table = pa.table({name: columns[name] for name in COLUMNS.names}).cast(COLUMNS)
        for name in (*NUMBERS, *TEXTS):
            table = table.append_column(f"feature.{name}", pa.array(part[name]))
        account = {"answered": str(len(part)), "lost": "0", "logged": str(len(part))}
        pq.write_table(table.replace_schema_metadata(account), folder / f"s{number}.parquet", compression="zstd")


def monitoring(project: Path) -> dict[str, Any]:
    from contracts.bundle import load_bundle
    from contracts.locations import Locations
    from contracts.state import open_state
    from contracts.task import load_task
    from monitoring import nannyml_door  # noqa: F401  its import takes seconds on either side
    from monitoring.monitor import monitor
    from monitoring.usual import Usual

    task, bundle = load_task(project / "bench.toml"), load_bundle(project / "bundle")
    engine = open_state(f"sqlite:///{project / 'state.db'}")
    later, locations = START + timedelta(days=DAYS + 2), Locations(project / "data")

    def run() -> Any:
        return monitor(task, locations, engine, as_of=later, bundle=bundle, version=1, skew_share=0)

    first, found = measured(run)
    second, again = measured(run)
    assert first == second
    assert second.work.kept == len(second.chunks) == DAYS
    rules = task.monitoring.model_copy(update={"multivariate": ("reconstruction", "domain_classifier")})
    usual = Usual.of(task.model_copy(update={"monitoring": rules}), bundle)
    frame = usual.frame.head(20_000)
    _, learned = measured(lambda: usual.together(frame))
    chunks, together = measured(lambda: usual.together(frame))
    figures = {(chunk.start.isoformat(), each.column): each.value for chunk in first.chunks for each in chunk.drift}
    figures |= {(chunk.start.isoformat(), "estimated"): chunk.estimated.value for chunk in first.chunks}
    figures |= {(chunk.start.isoformat(), "realized"): chunk.realized.value for chunk in first.chunks}
    return found | {
        "second": again["seconds"],
        "learned": learned["seconds"] - together["seconds"],
        "a_chunk": together["seconds"] / len(chunks),
        "figures": [[*key, value] for key, value in figures.items()],
    }


def nannyml(project: Path) -> dict[str, Any]:
    from monitoring import nannyml_door  # noqa: F401  switches its telemetry off

    warnings.simplefilter("ignore")
    import nannyml as nml

    past = pq.read_table(project / "bundle" / "reference.parquet").to_pandas()
    segments = sorted((project / "data" / "predictions" / "bench").glob("*.parquet"))
    names = [*NUMBERS, *TEXTS]
    wanted = ["case_id", "event_timestamp", "score", *(f"feature.{name}" for name in names)]
    log = pd.concat([pq.read_table(path, columns=wanted).to_pandas() for path in segments])
    log = log.rename(columns={f"feature.{name}": name for name in names})
    labels = pq.read_table(project / "cases.parquet", columns=["case_id", "label"]).to_pandas()
    log = log.merge(labels, on="case_id")
    for frame in (past, log):
        frame[NUMBERS] = frame[NUMBERS].astype(np.float64)
    common = {"timestamp_column_name": "event_timestamp", "chunk_period": "D"}
    scored = common | {"y_pred_proba": "score", "y_true": "label", "problem_type": "classification_binary"}

    def run() -> Any:
        drift = nml.UnivariateDriftCalculator(
            column_names=[*names, "score"],
            continuous_methods=["jensen_shannon"],
            categorical_methods=["jensen_shannon"],
            **common,
        )
        return [
            drift.fit(past).calculate(log).filter(period="analysis").to_df(),
            nml.CBPE(metrics=["roc_auc"], **scored).fit(past).estimate(log).filter(period="analysis").to_df(),
            nml.PerformanceCalculator(metrics=["roc_auc"], **scored)
            .fit(past)
            .calculate(log)
            .filter(period="analysis")
            .to_df(),
        ]

    (drift, estimated, realized), found = measured(run)
    days = [(START + timedelta(days=day)).isoformat() for day in range(DAYS)]
    figures = [
        [day, name, drift[(name, "jensen_shannon", "value")].iloc[i]] for i, day in enumerate(days) for name in names
    ]
    figures += [[day, "estimated", estimated[("roc_auc", "value")].iloc[i]] for i, day in enumerate(days)]
    figures += [[day, "realized", realized[("roc_auc", "value")].iloc[i]] for i, day in enumerate(days)]
    return found | {"figures": figures}


def main(count: int) -> None:
    project = Path(tempfile.mkdtemp(prefix="bench-monitoring-"))
    try:
        make_project(project, count)
        ours = run_side(__file__, "monitoring", str(project))
        theirs = run_side(__file__, "nannyml", str(project))
        for name, side in (("monitoring, the whole of it", ours), ("NannyML on a frame in memory", theirs)):
            told = side.get("failed") or f"{side['seconds']:.1f} s, {side['peak_mb']:,} MB (base {side['base_mb']:,})"
            print(f"{name}: {told}")
        print(ratio("monitoring against NannyML", ours, theirs))
        if "failed" in ours or "failed" in theirs:
            return
        mine = {(day, name): value for day, name, value in ours["figures"]}
        apart = max(abs(mine[day, name] - value) for day, name, value in theirs["figures"])
        print(f"{len(mine):,} figures, at most {apart:.1e} apart")
        print(f"first run: {count / ours['seconds']:,.0f} rows a second; second run: {ours['second']:.1f} s")
        print(f"multivariate detectors: {ours['learned']:.1f} s once, {ours['a_chunk']:.2f} s a chunk")
    finally:
        shutil.rmtree(project)


if __name__ == "__main__":
    sides = {"monitoring": monitoring, "nannyml": nannyml}
    if len(sys.argv) > 2 and sys.argv[1] in sides:
        print(json.dumps(sides[sys.argv[1]](Path(sys.argv[2]))))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
