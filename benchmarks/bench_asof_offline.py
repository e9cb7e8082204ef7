"""Point-in-time joins through Feast: asof against Feast's own DuckDB store, and against a hand-written Polars join.

    python benchmarks/bench_asof_offline.py            # every case
    python benchmarks/bench_asof_offline.py flights    # a year of departures as spine, plain views
    python benchmarks/bench_asof_offline.py dense      # 100,000 rows, 100 keys x 1,000 rows each, a TTL of a year
    python benchmarks/bench_asof_offline.py growth     # ten times the rows, how many times the time (asof only)

Each side runs in its own process on the same files; values are compared, not assumed. Feast's way of asking is a frame
of pandas; "arrow" gives asof an Arrow table instead, as the hand-written joins have it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sides import measured, ratio, run_side

HOUR = 3_600_000_000
START, YEAR = 1_356_998_400_000_000, 365 * 24 * HOUR
UTC = pa.timestamp("us", "UTC")
OURS = "asof.offline_store.AsofOfflineStore"

WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")
PLACE = ("lat", "lon", "elevation_ft")

# Views of a case: name -> (file, key in the file, key in the spine, features, TTL in hours).
FLIGHTS = {
    "weather": ("weather", "origin", "origin", WEATHER, 3),
    "aircraft": ("aircraft", "tailnum", "tailnum", ("year_built", "engines", "seats"), 0),
    "airport": ("airports", "faa", "dest", PLACE, 0),
}
DENSE = {"stats": ("stats", "k", "k", ("a", "b"), 24 * 365)}
CASES = {"flights": FLIGHTS, "dense": DENSE}


def make_flights(folder: Path) -> None:
    from feature_repo.ingest import ingest

    ingest(folder / "landed")
    for table in ("weather", "aircraft", "airports"):
        # Feast's store reads single files only, and breaks on a created time here and there: both get the same.
        landed = pq.read_table(folder / f"landed/events/{table}", partitioning=None)
        pq.write_table(landed.rename_columns({"event_timestamp": "ts"}), folder / f"{table}.parquet")
    schedules = pq.read_table(folder / "landed/events/schedules", partitioning=None)
    spine = schedules.select(["origin", "dest", "tailnum"])
    pq.write_table(spine.append_column("event_timestamp", schedules["scheduled_departure"]), folder / "spine.parquet")


def make_dense(folder: Path, keys: int = 100, rows_per_key: int = 1_000, asked: int = 100_000) -> None:
    import duckdb

    connection = duckdb.connect(config={"temp_directory": str(folder)})
    connection.execute("set TimeZone = 'UTC'")

    def drawn(below: int, column: int) -> str:  # the same numbers whoever computes them, in whatever order
        return f"(hash(i, {column}) % {below})::bigint"

    def written(name: str, rows: int, columns: str, order: str) -> None:
        query = f"select {columns} from range({rows}) as numbers(i) {order}"
        connection.execute(f"copy ({query}) to '{folder / name}.parquet' (row_group_size {1 << 20})")

    def key_and_time(first: int, name: str) -> str:
        return f"{drawn(keys, first)} as k, make_timestamptz({START} + {drawn(YEAR, first + 1)}) as {name}"

    values = f"{drawn(1 << 53, 3)} / {1 << 53} as a, {drawn(1 << 53, 4)} / {1 << 53} as b"
    written("stats", keys * rows_per_key, f"{key_and_time(1, 'ts')}, {values}", "order by ts")
    written("spine", asked, key_and_time(5, "event_timestamp"), "")


def store_of(folder: Path, views: dict, offline_store: str):
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, Int64

    objects: list = []
    for name, (file, key, _, features, ttl) in views.items():
        schema = pq.read_schema(folder / f"{file}.parquet")
        kind = ValueType.STRING if pa.types.is_large_string(schema.field(key).type) else ValueType.INT64
        kind = ValueType.STRING if pa.types.is_string(schema.field(key).type) else kind
        entity = Entity(name=f"{name}_key", join_keys=[key], value_type=kind)
        source = FileSource(name=file, path=str(folder / f"{file}.parquet"), timestamp_field="ts")
        types = {f: Int64 if pa.types.is_integer(schema.field(f).type) else Float64 for f in features}
        fields = [Field(name=f, dtype=dtype) for f, dtype in types.items()]
        view = FeatureView(name=name, entities=[entity], ttl=timedelta(hours=ttl), schema=fields, source=source)
        objects += [entity, view]
    config = RepoConfig(
        project="bench",
        provider="local",
        registry=str(folder / f"registry_{offline_store.rpartition('.')[2]}.db"),
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        offline_store={"type": offline_store},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    store.apply(objects)
    return store


def feast_side(folder: Path, views: dict, offline_store: str, *, pandas: bool = True):
    store = store_of(folder, views, offline_store)
    references = [f"{name}:{feature}" for name, (_, _, _, features, _) in views.items() for feature in features]

    def work() -> pa.Table:
        spine = pq.read_table(folder / "spine.parquet")
        keys = {column: key for _, key, column, _, _ in views.values()}
        spine = spine.rename_columns([keys.get(column, column) for column in spine.column_names])
        spine = spine.append_column("row", pa.array(np.arange(spine.num_rows)))
        if pandas:
            spine = spine.to_pandas()
        found = store.get_historical_features(spine, references).to_arrow()
        if offline_store == "duckdb":  # does not keep the order of the rows it was given
            found = found.sort_by("row")
        return found.select([reference.partition(":")[2] for reference in references])

    return work


def polars_side(folder: Path, views: dict):
    import polars as pl

    def work() -> pa.Table:
        spine = pl.read_parquet(folder / "spine.parquet").with_row_index("row").sort("event_timestamp")
        for file, key, column, features, ttl in views.values():
            rows = pl.read_parquet(folder / f"{file}.parquet", columns=[key, "ts", *features]).sort("ts")
            spine = spine.join_asof(
                rows.rename({key: column}),
                left_on="event_timestamp",
                right_on="ts",
                by=column,
                tolerance=timedelta(hours=ttl) if ttl else None,
                check_sortedness=False,
            ).drop("ts", strict=False)
        wanted = [feature for _, _, _, features, _ in views.values() for feature in features]
        return spine.sort("row").select(wanted).to_arrow()

    return work


def duckdb_side(folder: Path, views: dict):
    import duckdb

    columns = ", ".join(
        f"case when {name}.ts + interval {ttl} hour >= s.event_timestamp then {name}.{feature} end as {feature}"
        if ttl
        else f"{name}.{feature} as {feature}"
        for name, (_, _, _, features, ttl) in views.items()
        for feature in features
    )
    joins = " ".join(
        f"asof left join '{folder}/{file}.parquet' {name} "
        f"on s.{column} = {name}.{key} and s.event_timestamp >= {name}.ts"
        for name, (file, key, column, _, _) in views.items()
    )
    spine = f"read_parquet('{folder}/spine.parquet', file_row_number = true)"
    query = f"select {columns} from {spine} s {joins} order by s.file_row_number"
    return lambda: duckdb.connect().sql(query).to_arrow_table()


SIDES = {
    "asof": lambda folder, views: feast_side(folder, views, OURS),
    "arrow": lambda folder, views: feast_side(folder, views, OURS, pandas=False),
    "feast": lambda folder, views: feast_side(folder, views, "duckdb"),
    "polars": polars_side,
    "duckdb": duckdb_side,
}


def side(name: str, case: str, folder: Path, repeat: int) -> None:
    work = SIDES[name](folder, CASES[case])
    result, figures = measured(work, repeat)
    pq.write_table(result, folder / f"result_{name}.parquet")
    print(json.dumps(figures))


def cells_that_differ(folder: Path, one: str, other: str) -> int:
    first, second = (pq.read_table(folder / f"result_{name}.parquet") for name in (one, other))
    pairs = (
        (first[c].cast(pa.float64()).to_pandas().to_numpy(), second[c].cast(pa.float64()).to_pandas().to_numpy())
        for c in first.column_names
    )
    return int(sum((~((a == b) | (np.isnan(a) & np.isnan(b)))).sum() for a, b in pairs))


def compare(case: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_side(__file__, "--make", case, name)  # apart, so that its memory is not counted as ours
        figures = {who: run_side(__file__, "--side", who, case, name, "2" if who == "feast" else "5") for who in SIDES}
        print(f"{case}: {pq.read_metadata(folder / 'spine.parquet').num_rows:,} rows asked about")
        for who, figure in figures.items():
            print(f"  {who:<7}", figure)
        print(ratio("  Feast's DuckDB store", figures["feast"], figures["asof"]))
        print(ratio("  asof against hand-written Polars", figures["asof"], figures["polars"]))
        print(ratio("  asof against hand-written DuckDB", figures["asof"], figures["duckdb"]))
        print(ratio("  asof given Arrow against hand-written Polars", figures["arrow"], figures["polars"]))
        for other in ("feast", "arrow", "polars", "duckdb"):
            if "failed" not in figures[other] and "failed" not in figures["asof"]:
                print(f"  cells that differ from {other}: {cells_that_differ(folder, 'asof', other)}")


def growth() -> None:
    before = None
    for asked, rows_per_key, repeat in ((100_000, 10_000, 5), (1_000_000, 100_000, 5), (10_000_000, 1_000_000, 2)):
        with tempfile.TemporaryDirectory() as name:
            run_side(__file__, "--make", "dense", name, "100", str(rows_per_key), str(asked))
            figures = run_side(__file__, "--side", "asof", "dense", name, str(repeat))
        print(f"{asked:,} asked, {rows_per_key * 100:,} rows:", figures, flush=True)
        if before is not None:
            print(ratio("  ten times the rows", figures, before), flush=True)
        before = figures


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        if sys.argv[2] == "flights":
            make_flights(Path(sys.argv[3]))
        else:
            make_dense(Path(sys.argv[3]), *map(int, sys.argv[4:]))
        print("{}")
    elif sys.argv[1:2] == ["--side"]:
        side(sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
    elif set(sys.argv[1:]) <= {*CASES, "growth"}:
        for wanted in sys.argv[1:] or [*CASES, "growth"]:
            growth() if wanted == "growth" else compare(wanted)
    else:
        sys.exit(__doc__)
