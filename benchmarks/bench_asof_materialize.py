"""Materialization: keys written per second, asof's engine against Feast's local engine on the same definitions.

    python benchmarks/bench_asof_materialize.py                   # SQLite, Redis and PostgreSQL
    python benchmarks/bench_asof_materialize.py sqlite redis      # these

Both sides materialize the same plain view from the same file into stores of the same kind and settings, each in its own
process, by Feast's own `FeatureStore.materialize` over the same interval: first into an empty store, then three times
more, each time with an event of every key that is newer than all before it. So every call has every key to write:
Feast's Redis store passes over what it holds already, and its other stores write it again. Feast's side runs its DuckDB
offline store and its local engine. A view of a hundred keys goes first, so that neither side is timed at its imports.
What Feast reads back is compared, not assumed.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sides import measured, ratio, run_side
from stores import STORES, asked_for

DAY = 24 * 3600
START = 1_356_998_400_000_000
DAYS, ROUNDS = 30, 3
KEYS, ROWS_PER_KEY, FEATURES = 20_000, 10, ("a", "b", "c", "d", "n", "m")
SIDES = {
    "asof": {
        "offline_store": {"type": "asof.offline_store.AsofOfflineStore"},
        "batch_engine": {"type": "asof.compute.AsofComputeEngine"},
    },
    "feast": {"offline_store": {"type": "duckdb"}, "batch_engine": {"type": "local"}},
}


def make(folder: Path) -> None:
    rng = np.random.default_rng(5)
    rows = KEYS * ROWS_PER_KEY
    keys, seconds = [rng.permutation(np.repeat(np.arange(KEYS), ROWS_PER_KEY))], [rng.choice(DAYS * DAY, rows, False)]
    for day in range(DAYS, DAYS + ROUNDS):
        keys.append(rng.permutation(KEYS))
        seconds.append(day * DAY + rng.choice(DAY, KEYS, replace=False))
    moments = START + np.concatenate([np.sort(part) for part in seconds]) * 1_000_000
    columns: dict = {
        "k": np.concatenate(keys),
        "w": np.concatenate(keys) % 100,
        "ts": pa.array(moments, pa.timestamp("us", "UTC")),
    }
    for name in FEATURES:
        size = len(columns["k"])
        columns[name] = rng.normal(size=size) if name in "abcd" else rng.integers(0, 1_000, size)
    pq.write_table(pa.table(columns), folder / "rows.parquet")


def store_of(folder: Path, side: str, online_store: dict):
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, Int64

    entity, few = (Entity(name=name, join_keys=[name], value_type=ValueType.INT64) for name in "kw")
    source = FileSource(name="rows", path=str(folder / "rows.parquet"), timestamp_field="ts")
    fields = [Field(name=name, dtype=Float64 if name in "abcd" else Int64) for name in FEATURES]
    view = FeatureView(name="stats", entities=[entity], ttl=timedelta(0), schema=fields, source=source)
    warm_up = FeatureView(name="warm_up", entities=[few], ttl=timedelta(0), schema=fields, source=source)
    config = RepoConfig(
        project=f"bench_{side}",
        provider="local",
        registry=str(folder / f"registry_{side}.db"),
        online_store=online_store,
        entity_key_serialization_version=3,
        **SIDES[side],
    )
    store = FeatureStore(config=config, repo_path=str(folder))
    with contextlib.redirect_stdout(io.StringIO()):
        store.apply([entity, few, view, warm_up])
    return store


def run(folder: Path, side: str, online_store: str) -> None:
    store = store_of(folder, side, json.loads(online_store))

    def materialize(view: str, days: int) -> dict:
        end = datetime.fromtimestamp(START / 1e6, UTC) + timedelta(days=days)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            _, cost = measured(lambda: store.materialize(end - timedelta(days=365), end, feature_views=[view]))
        return {**cost, "keys_per_second": round(KEYS / cost["seconds"])}

    materialize("warm_up", DAYS)
    empty = materialize("stats", DAYS)
    newer = [materialize("stats", DAYS + number) for number in range(1, ROUNDS + 1)]
    rows = {"k": list(range(0, KEYS, 7))}
    read = store.get_online_features([f"stats:{name}" for name in FEATURES], entity_rows=rows).to_dict()
    (folder / f"read_{side}.json").write_text(json.dumps(read))
    print(json.dumps({"an empty store": empty, "newer events": min(newer, key=lambda cost: cost["seconds"])}))


def main(kind: str) -> None:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as servers:
        folder = Path(name)
        make(folder)
        sides = {}
        for side in SIDES:
            online_store = servers.enter_context(STORES[kind](folder / f"online_{side}"))
            sides[side] = run_side(__file__, "side", str(folder), side, json.dumps(online_store))
        print(f"{KEYS:,} keys of {len(FEATURES)} features, {KEYS * ROWS_PER_KEY:,} rows and {KEYS:,} a round, {kind}")
        failed = {side: cost["failed"] for side, cost in sides.items() if "failed" in cost}
        if failed:
            print(f"  failed: {failed}")
            return
        for what in sides["asof"]:
            for side, cost in sides.items():
                print(f"  {what}: {side:6} {cost[what]}")
            print("  " + ratio(f"{what}: Feast's local engine", sides["feast"][what], sides["asof"][what]))
        one, other = (json.loads((folder / f"read_{side}.json").read_text()) for side in SIDES)
        print(f"  values equal: {one == other}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["side"]:
        run(Path(sys.argv[2]), *sys.argv[3:5])
    else:
        for kind in asked_for(sys.argv[1:]):
            main(kind)
