"""The compiled queries, as files a person reviews. To accept a change: `pytest tests/asof --accept-sql`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from feast import Field
from feast.types import Float64, Int64, String

from asof import latest
from asof.definition import Feature, Key, View
from asof.source import Scan, Source

GOLDEN = Path(__file__).parent / "golden"
START = 1_356_998_400_000_000


def scan(*, created: bool) -> Scan:
    source = Source("v", "/data/v", "ts", "created" if created else None)
    types = {"a": "BIGINT", "b": "VARCHAR", "ts": "TIMESTAMP WITH TIME ZONE", "x": "DOUBLE", "n": "BIGINT"}
    return Scan(source, "read_parquet(['/data/v/part.parquet'])", types | {"created": "TIMESTAMP_NS"})


def view(source: Source) -> View:
    feature = Feature("x", Field(name="x", dtype=Float64), pa.float64())
    keys = (Key("a", "a", pa.int64(), Int64), Key("b", "bb", pa.string(), String))
    return View("v", keys, (feature,), (feature,), (), source, ttl=0, every=0)


def rows(created: bool, columns: list[str]) -> str:
    scanned = scan(created=created)
    return latest.rows_of(view(scanned.source), scanned, "keys_0", columns, since=START, until=START + 1)


QUERIES = {
    "rows": lambda: rows(True, ["x", "n"]),
    "rows_without_created": lambda: rows(False, ["x"]),
    "seen": lambda: latest.seen_sql(rows(False, ["x"]), 1, late=False),
    "seen_with_late_rows": lambda: latest.seen_sql(rows(True, ["x", "n"]), 2, late=True),
    "ties": lambda: latest.untied_sql(
        latest.rows_of(
            view(scan(created=True).source),
            scan(created=True),
            "(select * from keys_0 where code in (select code from ties_1))",
            ["x", "n", "x"],
            since=START,
            until=START + 1,
        ),
        "select * from ties_1",
        1,
        2,
    ),
    "late": lambda: latest.late_sql(rows(True, [])),
    "latest": lambda: latest.rows_sql(
        rows(False, ["x"]), latest.moments_sql(rows(False, []), "points_1", late=False), 1
    ),
    "latest_with_late_rows": lambda: latest.rows_sql(
        rows(True, ["x"]), latest.moments_sql(rows(True, []), "points_1", late=True), 1
    ),
    "latest_with_ties": lambda: latest.untied_sql(
        rows(True, ["x", "n", "x"]), latest.moments_sql(rows(True, []), "points_1", late=False), 1, 2
    ),
}


@pytest.mark.parametrize("name", QUERIES)
def test_compiled_query(name, accept_sql):
    query, path = QUERIES[name]() + "\n", GOLDEN / f"{name}.sql"
    if accept_sql:
        path.write_text(query)
    assert query == path.read_text()


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.glob("*.sql")} == set(QUERIES)
