"""Windows through real Feast definitions: their names, their shapes, what is refused, and what a hot key costs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import BatchFeatureView, Entity, Field, FileSource, ValueType
from feast.aggregation import Aggregation
from feast.types import Float64, Int64

from asof import series, timeline
from asof.aggregate import AggregationTypeMismatch, UnknownAggregation, canonical
from asof.definition import Feature, Key, View, Window
from asof.engine import Spine, as_of
from asof.session import Session
from asof.source import ColumnNotFound, NotATimestamp, Source
from asof.timeline import FOREVER
from asof.view import InvalidView, compile_view
from asof.windowed import SumOverflow

DAY = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
MINUTE = 60_000_000
START = 1_356_998_400_000_000
user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *((name, name) for name in ("count", "count_distinct", "sum", "mean", "min", "max", "std", "var")),
        *((name, name) for name in ("first", "last", "percentile_50", "percentile_99.9")),
        *(
            ("AVG", "mean"),
            ("stddev", "std"),
            ("stddev_samp", "std"),
            ("variance", "var"),
            ("nunique", "count_distinct"),
        ),
        *(("approx_count_distinct", "count_distinct"), ("median", "percentile_50")),
        *(("approx_percentile_95", "percentile_95"), ("p99", "percentile_99"), ("LAST_024", "last_24")),
    ],
)
def test_a_function_goes_by_the_names_its_users_know(written, meant):
    assert canonical(written, "here") == meant


def land(tmp_path: Path, **columns) -> Path:
    path = tmp_path / "repo/data/spend.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(columns.values())))
    ts = pa.array([DAY + place * HOUR for place in range(count)], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"user": [1] * count, "ts": ts, **columns}), path)
    return path


def spend(*aggregations: Aggregation, timestamp: str = "ts", dtype=Float64) -> BatchFeatureView:
    return BatchFeatureView(
        name="spend",
        entities=[user],
        schema=[Field(name=a.resolved_name(a.time_window), dtype=dtype) for a in aggregations],
        source=FileSource(name="spend", path="data/spend.parquet", timestamp_field=timestamp),
        aggregations=list(aggregations),
    )


def ask(store, *names: str, at: datetime = DAY + 9 * HOUR) -> dict:
    asked = pd.DataFrame({"user": [1], "event_timestamp": [at]})
    answer = store.get_historical_features(asked, [f"spend:{name}" for name in names]).to_arrow().to_pydict()
    return {name: answer[name][0] for name in names}


@pytest.mark.parametrize(
    ("aggregation", "error", "said"),
    [
        (
            Aggregation(column="word", function="sum", time_window=HOUR),
            AggregationTypeMismatch,
            ["View 'spend', column 'word'", "sum needs a number or a boolean, found VARCHAR"],
        ),
        (
            Aggregation(column="word", function="percentile_50", time_window=HOUR),
            AggregationTypeMismatch,
            ["column 'word'", "found VARCHAR"],
        ),
        (
            Aggregation(column="tags", function="count_distinct", time_window=HOUR),
            AggregationTypeMismatch,
            ["column 'tags'", r"found VARCHAR[]"],
        ),
        (
            Aggregation(column="tags", function="last_3", time_window=HOUR),
            AggregationTypeMismatch,
            ["column 'tags'", "last_3 needs a number, a boolean or a text", r"found VARCHAR[]"],
        ),
        (
            Aggregation(column="amount", function="last_0", time_window=HOUR),
            UnknownAggregation,
            ["unknown aggregation 'last_0'", "last_<1-9999>"],
        ),
        (
            Aggregation(column="amuont", function="sum", time_window=HOUR),
            ColumnNotFound,
            ["View 'spend': column of sum 'amuont' is not in", "found amount", "Did you mean 'amount'?"],
        ),
        (
            Aggregation(column="amount", function="summ", time_window=HOUR),
            UnknownAggregation,
            ["View 'spend', feature 'summ_amount_3600s', column 'amount': unknown aggregation 'summ'", "mean 'sum'?"],
        ),
        (
            Aggregation(column="amount", function="sum", time_window=HOUR, slide_interval=2 * HOUR),
            InvalidView,
            ["feature 'sum_amount_3600s'", "slide_interval 2:00:00 is longer than time_window 1:00:00"],
        ),
        (
            Aggregation(column="", function="sum", time_window=HOUR, name="total"),
            InvalidView,
            ["feature 'total': sum needs a column, found ''"],
        ),
        (
            Aggregation(column="amount", function="sum", time_window=-HOUR, name="total"),
            InvalidView,
            ["feature 'total'", "neither may be negative"],
        ),
    ],
)
def test_a_definition_that_means_nothing_is_refused_before_anything_is_read(
    make_store, tmp_path, monkeypatch, aggregation, error, said
):
    land(tmp_path, amount=[1.0], word=["x"], tags=[["x"]])
    store = make_store(user, spend(aggregation))
    monkeypatch.setattr(Session, "arrow", lambda *_: pytest.fail("a query ran"))
    with pytest.raises(error) as caught:
        ask(store, aggregation.resolved_name(aggregation.time_window))
    for part in said:
        assert part in str(caught.value)


def test_windows_go_by_a_time_and_by_nothing_else(make_store, tmp_path):
    land(tmp_path, amount=[1.0])
    total = Aggregation(column="amount", function="sum", time_window=HOUR, name="total")
    store = make_store(user, spend(total, timestamp="amount"))
    with pytest.raises(NotATimestamp, match="timestamp field 'amount' must be a timestamp, found DOUBLE"):
        ask(store, "total")
    nothing = FileSource(name="spend", path="data/spend.parquet")
    view = BatchFeatureView(
        name="spend", entities=[user], schema=[Field(name="total", dtype=Float64)], source=nothing, aggregations=[total]
    )
    with pytest.raises(InvalidView, match="source 'spend' has no timestamp_field"):
        compile_view(view, store.config)


def test_windows_and_slides_of_many_lengths_share_one_scan_of_the_source(make_store, tmp_path, monkeypatch):
    land(tmp_path, amount=[float(hour) for hour in range(12)])
    aggregations = [
        Aggregation(
            column="amount", function="sum", time_window=hours and hours * HOUR, slide_interval=slide, name=name
        )
        for name, hours, slide in [
            ("three", 3, None),
            ("hopping", 3, 2 * HOUR),
            ("tumbling_alike", 4, 2 * HOUR),
            ("always", None, None),
        ]
    ]
    store = make_store(user, spend(*aggregations))
    queries: list[str] = []
    real = Session.arrow
    monkeypatch.setattr(Session, "arrow", lambda self, sql: queries.append(sql) or real(self, sql))
    # At 09:30 the last even hour is 08:00, so hopping windows hold what happened after 05:00 (04:00) until 08:00.
    assert ask(store, "three", "hopping", "tumbling_alike", "always", at=DAY + 9.5 * HOUR) == {
        "three": 7.0 + 8 + 9,
        "hopping": 6.0 + 7 + 8,
        "tumbling_alike": 5.0 + 6 + 7 + 8,
        "always": 45.0,
    }
    assert sum("spend.parquet" in sql for sql in queries) == 1


def test_whole_numbers_are_summed_exactly_and_what_leaves_64_bits_is_said(make_store, tmp_path):
    big = 2**62
    land(tmp_path, amount=pa.array([big, big - 1, 3, -big], pa.int64()))
    hours = {"two": 2, "first_two": 4}
    view = spend(
        *(Aggregation(column="amount", function="sum", time_window=h * HOUR, name=n) for n, h in hours.items()),
        Aggregation(column="amount", function="mean", time_window=4 * HOUR, name="average"),
        dtype=Int64,
    )
    store = make_store(user, view)
    assert ask(store, "first_two", at=DAY + HOUR) == {"first_two": 2 * big - 1}
    assert ask(store, "first_two", at=DAY + 3 * HOUR) == {"first_two": big + 2}
    assert ask(store, "two", at=DAY + 3 * HOUR) == {"two": 3 - big}
    with pytest.raises(SumOverflow, match="View 'spend', feature 'first_two': a sum leaves 64 bits"):
        ask(store, "first_two", at=DAY + 2 * HOUR)
    assert ask(store, "average", at=DAY + 2 * HOUR) == {"average": int(float(2 * big + 2) / 3)}


HOT = [
    (function, "x")
    for function in (
        *("count", "count_distinct", "sum", "mean", "min", "max", "first", "last", "percentile_75", "std"),
        "last_5",
    )
]


@pytest.mark.parametrize("length", [90, 3_000, FOREVER // MINUTE])
def test_a_hot_key_with_late_rows_is_answered_in_parts(tmp_path, monkeypatch, length):
    """Every function, on a key with far more events than are worked on at once, a tenth of them late."""
    monkeypatch.setattr(timeline, "ROWS_AT_ONCE", 200)
    monkeypatch.setattr(series, "_VALUES_AT_ONCE", 37)
    rng = np.random.default_rng(3)
    count = 4_000
    event = START + np.sort(rng.integers(0, 20_000, count)) * MINUTE
    known = event + rng.choice([0] * 9 + [1], count) * rng.integers(0, 2_000, count) * MINUTE
    x, key = rng.integers(-50, 50, count), rng.choice([1, 1, 1, 1, 1, 1, 2, 3], count)
    utc = pa.timestamp("us", "UTC")
    table = pa.table({"k": key, "ts": pa.array(event, utc), "created": pa.array(known, utc), "x": x})
    pq.write_table(table, tmp_path / "hot.parquet")
    windows = tuple(
        Window(Feature(function, None, None), function, column, length * MINUTE, 0) for function, column in HOT
    )
    source = Source("hot", str(tmp_path / "hot.parquet"), "ts", "created")
    view = View(
        "hot", (Key("k", "k", pa.int64(), None),), tuple(w.feature for w in windows), (), windows, source, 0, 0, ("x",)
    )
    asked, at = rng.choice([1, 1, 2, 4], 300), START + rng.integers(0, 21_000, 300) * MINUTE
    with Session() as session:
        (answer,) = as_of([view], Spine(pa.table({"k": asked}), at, np.ones(300, bool)), session)
    for place, row in enumerate(answer.features.to_pylist()):
        inside = (key == asked[place]) & (event > at[place] - length * MINUTE) & (known <= at[place])
        values = sorted(x[inside].tolist())
        assert row["count"] == len(values)
        assert row["count_distinct"] == len(set(values))
        if not values:
            assert {row[name] for name, _ in HOT[2:]} == {None}
            continue
        assert (row["sum"], row["min"], row["max"]) == (sum(values), values[0], values[-1])
        assert row["mean"] == sum(values) / len(values)
        assert row["percentile_75"] == values[-(-75 * len(values) // 100) - 1]
        if len(values) > 1:
            assert row["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
        ordered = sorted(zip(event[inside].tolist(), known[inside].tolist(), x[inside].tolist(), strict=True))
        assert row["last"] == ordered[-1][2]
        assert row["first"] == ordered[0][2]
        assert row["last_5"] == [value for *_, value in ordered[-5:]]


def test_of_events_of_one_moment_the_last_is_the_one_known_last_also_when_all_is_known(tmp_path):
    moments = pa.array([START, START, START], pa.timestamp("us", "UTC"))
    told = pa.array([START + MINUTE, START + 2 * MINUTE, START], pa.timestamp("us", "UTC"))
    rows = {"user": [1, 1, 1], "ts": moments, "created": told, "v": [9.0, 5.0, 7.0]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    windows = tuple(
        Window(Feature(name, Field(name=name, dtype=Float64), pa.float64()), name, "v", FOREVER, 0)
        for name in ("first", "last")
    )
    source = Source("v", str(tmp_path / "rows.parquet"), "ts", "created")
    key = Key("user", "user", pa.int64(), Int64)
    view = View("v", (key,), tuple(w.feature for w in windows), (), windows, source, ttl=0, every=0)
    spine = Spine(pa.table({"user": [1]}), np.array([START + 60 * MINUTE]), np.array([True]))
    with Session(threads=1) as session:
        (answer,) = as_of([view], spine, session)
    assert answer.features.to_pylist() == [{"first": 7.0, "last": 5.0}]
