"""Windows over events, against DuckDB's RANGE on the same data in the same run.

    python benchmarks/bench_asof_windows.py            # every case
    python benchmarks/bench_asof_windows.py even hot   # these

count, sum, mean and max over 1 h, 3 h and 24 h for each row of a spine. Values are compared, not assumed; a side runs
in a process of its own, so its peak memory is its own. Medians of three turns, or one turn where a side takes minutes.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sides import measured, ratio, run_side

HOUR = 3_600_000_000
START, YEAR = 1_356_998_400_000_000, 365 * 24 * HOUR
TURNS, LONG = 3, 60
"""How many, and the seconds from which one is enough."""
HOURS, FUNCTIONS = (1, 3, 24), ("count", "sum", "mean", "max")
CASES = {
    # events, keys, rows of the spine, share of events and rows that the hottest key has
    "even": (10_000_000, 1_000, 1_000_000, 0.0),
    "hot": (10_000_000, 1_000, 1_000_000, 0.9),
    "many": (10_000_000, 1_000_000, 1_000_000, 0.0),
    "flights": (0, 0, 0, 0.0),
}


def make_flights(folder: Path) -> None:
    """Departures of the example by origin, asked about at each scheduled departure."""
    from feature_repo.ingest import ingest

    ingest(folder / "landed")
    left, planned = (
        pq.read_table(folder / f"landed/events/{table}", partitioning=None) for table in ("departures", "schedules")
    )
    left = left.filter(pc.is_valid(left["dep_delay"]))
    events = {"k": left["origin"], "ts": left["event_timestamp"], "v": left["dep_delay"]}
    pq.write_table(pa.table(events), folder / "events.parquet")
    pq.write_table(pa.table({"k": planned["origin"], "t": planned["scheduled_departure"]}), folder / "spine.parquet")


def make(folder: Path, events: int, keys: int, rows: int, hot: float) -> None:
    if not events:
        make_flights(folder)
        return
    rng = np.random.default_rng(7)
    utc = pa.timestamp("us", "UTC")
    times = START + np.sort(rng.integers(0, YEAR, events))
    values = rng.integers(-60, 300, events)
    table = pa.table({"k": _keys(rng, events, keys, hot), "ts": pa.array(times, utc), "v": values})
    pq.write_table(table, folder / "events.parquet", row_group_size=1 << 20)
    asked = {"k": _keys(rng, rows, keys, hot), "t": pa.array(START + rng.integers(0, YEAR, rows), utc)}
    pq.write_table(pa.table(asked), folder / "spine.parquet")


def _keys(rng: np.random.Generator, count: int, keys: int, hot: float) -> np.ndarray:
    drawn = rng.integers(0, keys, count)
    return np.where(rng.random(count) < hot, 0, drawn) if hot else drawn


def asof_side(folder: Path):

    from asof.definition import Feature, Key, View, Window
    from asof.engine import Spine, as_of
    from asof.session import Session
    from asof.source import Source

    windows = tuple(
        Window(Feature(f"{function}_{h}", None, None), function, "v", h * HOUR, 0)
        for h in HOURS
        for function in FUNCTIONS
    )
    source = Source("bench", str(folder / "events.parquet"), "ts", None)
    kind = pq.read_schema(folder / "spine.parquet").field("k").type
    view = View("bench", (Key("k", "k", kind, None),), tuple(w.feature for w in windows), (), windows, source, 0, 0)

    def work() -> pa.Table:
        asked = pq.read_table(folder / "spine.parquet")
        at = asked["t"].cast(pa.int64()).to_numpy()
        with Session() as session:
            return as_of([view], Spine(asked, at, np.ones(len(at), bool)), session)[0].features

    return work


def range_side(folder: Path):
    import duckdb

    # RANGE is closed at both ends; an event exactly W before is not in (t - W, t], hence the microsecond.
    spans = ", ".join(
        f"w{h} as (partition by k order by t range between {h * HOUR - 1} preceding and current row)" for h in HOURS
    )
    columns = ", ".join(f"{'avg' if f == 'mean' else f}(v) over w{h} as {f}_{h}" for h in HOURS for f in FUNCTIONS)
    query = f"""
        select * exclude (k, t, v) from (
            select k, t, v, row, {columns} from (
                select k, epoch_us(ts) as t, v, null as row from '{folder}/events.parquet'
                union all
                select k, epoch_us(t) as t, null as v, file_row_number as row
                from read_parquet('{folder}/spine.parquet', file_row_number = true)
            ) window {spans}
        ) where row is not null order by row
    """

    def work() -> pa.Table:
        return duckdb.connect().sql(query).to_arrow_table().drop_columns(["row"])

    return work


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        side, folder = sys.argv[2], Path(sys.argv[3])
        result, figures = measured({"asof": asof_side, "range": range_side}[side](folder))
        pq.write_table(result, folder / f"{side}.parquet")
        print(json.dumps(figures))
        return
    if sys.argv[1:2] == ["--make"]:
        make(Path(sys.argv[2]), *CASES[sys.argv[3]])
        print("{}")
        return
    for case in sys.argv[1:] or CASES:
        with tempfile.TemporaryDirectory() as name:
            compare(case, Path(name))


def seconds(side: dict[str, Any]) -> float:
    """How long a side took; for ever if it failed."""
    return side.get("seconds", math.inf)


def compare(case: str, folder: Path) -> None:
    run_side(__file__, "--make", str(folder), case)  # apart: its memory is not ours
    # In turns: what has just written the files, or the other side, leaves the machine busy for a while.
    turns: list[list[dict[str, Any]]] = []
    while len(turns) < TURNS and all(seconds(each) < LONG for turn in turns for each in turn):
        turns.append([run_side(__file__, "--side", side, str(folder)) for side in ("asof", "range")])
    ours, theirs = (sorted(side, key=seconds)[len(turns) // 2] for side in zip(*turns, strict=True))
    events, spine = (pq.read_metadata(folder / f"{name}.parquet").num_rows for name in ("events", "spine"))
    print(f"{case}: {events:,} events, {spine:,} rows, 12 features")
    print("  asof        ", ours)
    print("  DuckDB RANGE", theirs)
    print(" ", ratio("DuckDB RANGE", theirs, ours))
    if "failed" in ours or "failed" in theirs:
        return
    one, other = (pq.read_table(folder / f"{side}.parquet") for side in ("asof", "range"))
    different = sum(
        not np.array_equal(one[c].to_pandas().to_numpy(float), other[c].to_pandas().to_numpy(float), equal_nan=True)
        for c in one.column_names
    )
    print(f"  columns that differ: {different} of {one.num_columns}")


if __name__ == "__main__":
    main()
