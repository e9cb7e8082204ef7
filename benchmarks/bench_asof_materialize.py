"""Materialization: keys written per second, asof's engine against Feast's local engine on the same definitions.

    python benchmarks/bench_asof_materialize.py sqlite
    python benchmarks/bench_asof_materialize.py redis     # wants redis-server on PATH

Both sides write every key of one plain view from the same files into a store of their own kind, each in its own
process; what Feast reads back is compared, not assumed. Feast's side runs on its DuckDB offline store.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sides import measured, ratio, run_side

HOUR = 3_600_000_000
START = 1_356_998_400_000_000
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
    columns: dict = {
        "k": rng.permutation(np.repeat(np.arange(KEYS), ROWS_PER_KEY)),
        "ts": pa.array(
            START + np.sort(rng.choice(30 * 24 * 3600, rows, replace=False)) * 1_000_000, pa.timestamp("us", "UTC")
        ),
    }
    for name in FEATURES:
        columns[name] = rng.normal(size=rows) if name in "abcd" else rng.integers(0, 1_000, rows)
    pq.write_table(pa.table(columns), folder / "rows.parquet")


def store_of(folder: Path, side: str, online_store: dict):
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, Int64

    entity = Entity(name="k", join_keys=["k"], value_type=ValueType.INT64)
    source = FileSource(name="rows", path=str(folder / "rows.parquet"), timestamp_field="ts")
    fields = [Field(name=name, dtype=Float64 if name in "abcd" else Int64) for name in FEATURES]
    view = FeatureView(name="stats", entities=[entity], ttl=timedelta(0), schema=fields, source=source)
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
        store.apply([entity, view])
    return store


def run(folder: Path, side: str, kind: str, port: str) -> None:
    online_store = {"type": "sqlite", "path": str(folder / f"online_{side}.db")}
    if kind == "redis":
        online_store = {"type": "redis", "connection_string": f"127.0.0.1:{port}"}
    store = store_of(folder, side, online_store)
    end = datetime.fromtimestamp(START / 1e6, UTC) + timedelta(days=31)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        _, cost = measured(lambda: store.materialize(end - timedelta(days=365), end), repeat=3)
    rows = {"k": list(range(0, KEYS, 7))}
    read = store.get_online_features([f"stats:{name}" for name in FEATURES], entity_rows=rows).to_dict()
    (folder / f"read_{side}.json").write_text(json.dumps(read))
    print(json.dumps({**cost, "keys_per_second": round(KEYS / cost["seconds"])}))


@contextlib.contextmanager
def redis(folder: Path, kind: str) -> Iterator[str]:
    if kind != "redis":
        yield "0"
        return
    binary = shutil.which("redis-server")
    if binary is None:
        raise SystemExit("redis-server is not on PATH: apt-get install redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [binary, "--bind", "127.0.0.1", "--port", port, "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    time.sleep(1)
    try:
        yield port
    finally:
        server.kill()
        server.wait()


def main(kind: str) -> None:
    with tempfile.TemporaryDirectory() as name, redis(Path(name), kind) as port:
        folder = Path(name)
        make(folder)
        sides = {side: run_side(__file__, "side", str(folder), side, kind, port) for side in SIDES}
        print(f"{KEYS:,} keys of {len(FEATURES)} features, {KEYS * ROWS_PER_KEY:,} rows, {kind}")
        for side, cost in sides.items():
            print(f"  {side:6} {cost}")
        print("  " + ratio("Feast's local engine", sides["feast"], sides["asof"]))
        read = [folder / f"read_{side}.json" for side in SIDES]
        if all(file.exists() for file in read):
            one, other = (json.loads(file.read_text()) for file in read)
            print(f"  values equal: {one == other}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["side"]:
        run(Path(sys.argv[2]), *sys.argv[3:6])
    else:
        for kind in sys.argv[1:] or ["sqlite", "redis"]:
            main(kind)
