"""The compiled queries, as files a person reviews. To accept a change: `pytest tests/asof --accept-sql`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Field, FileSource, RepoConfig
from feast.types import Float64, Int64, String

from asof import latest
from asof.clockwork import from_micros
from asof.dataset import DeltaTable
from asof.definition import Feature, Key, Shard, View, Window
from asof.engine import Spine, as_of
from asof.offline_store import AsofOfflineStore
from asof.session import Session
from asof.source import Scan, Source
from asof.timeline import FOREVER
from asof.transform import Transform

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
    held_to(QUERIES[name]() + "\n", name, accept_sql)


def held_to(query: str, name: str, accept_sql: bool) -> None:
    path = GOLDEN / f"{name}.sql"
    if accept_sql:
        path.write_text(query)
    assert query == path.read_text()


# What real files are asked ------------------------------------------------------------------------------------------

MONTH = 31 * 86_400_000_000


def table(moments: list[int]) -> pa.Table:
    ts = pa.array(moments, pa.timestamp("us", "UTC"))
    count = len(moments)
    return pa.table(
        {"a": [1] * count, "b": ["2"] * count, "ts": ts, "created": ts, "x": [1.0] * count, "n": [1] * count}
    )


def land(folder: Path, name: str, moments: list[int]) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(moments), folder / name)


def folder_of_files(folder: Path) -> Source:
    for month in range(3):
        land(folder, f"m{month}.parquet", [START + month * MONTH, START + month * MONTH + 1])
    return Source("v", str(folder), "ts", None)


def partitioned(folder: Path) -> Source:
    for month in range(2):
        land(folder, f"month=0{month}/part.parquet", [START + month * MONTH])
    return Source("v", str(folder), "ts", None, renamed=(("x", "x_in_files"), ("n", "x")))


def delta(folder: Path) -> Source:
    dataset = DeltaTable(str(folder))
    dataset.append(table([START]))
    return Source("v", str(folder), "ts", "created", dataset=dataset)


def one_file(folder: Path, **settings: Any) -> Source:
    land(folder, "rows.parquet", [START])
    return Source("v", str(folder / "rows.parquet"), "ts", "created", **settings)


def windowed(source: Source, *lengths: int) -> View:
    windows = tuple(
        Window(Feature(f"{function}_{length}", Field(name="f", dtype=Float64), None), function, column, length, 0)
        for length in lengths
        for function, column in (("sum", "x"), ("max", "n"))
    )
    return replace(view(source), windows=windows, features=tuple(w.feature for w in windows))


SQL = Transform(lambda rows: f"select * replace (x * 2 as x) from {rows}", True)
VIEWS: dict[str, Callable[[Path], View]] = {
    "scan_folder": lambda folder: view(folder_of_files(folder)),
    "scan_partitions": lambda folder: view(partitioned(folder)),
    "scan_delta": lambda folder: view(delta(folder)),
    "windows": lambda folder: windowed(folder_of_files(folder), 1_000, 5_000),
    "windows_of_all_history": lambda folder: windowed(folder_of_files(folder), FOREVER),
    "windows_created": lambda folder: windowed(one_file(folder), 1_000),
    "windows_transform": lambda folder: windowed(one_file(folder, transform=SQL), 1_000),
    "windows_event_id": lambda folder: windowed(one_file(folder, event_id=("n", "b")), 1_000),
    "windows_shard": lambda folder: replace(windowed(one_file(folder), 1_000), shard=Shard(1, 4)),
}


def pull(folder: Path, which: str, created: str | None) -> None:
    land(folder, "rows.parquet", [START])
    source = FileSource(name="v", path=str(folder / "rows.parquet"), timestamp_field="ts")
    config = RepoConfig(
        project="p",
        provider="local",
        registry=str(folder / "r.db"),
        offline_store={"type": "asof.offline_store.AsofOfflineStore"},
        entity_key_serialization_version=3,
    )
    times = from_micros(START), from_micros(START + MONTH)
    pulls = {
        "latest": AsofOfflineStore.pull_latest_from_table_or_query,
        "all": AsofOfflineStore.pull_all_from_table_or_query,
    }
    pulls[which](config, source, ["a", "b"], ["x", "n"], "ts", created, *times).to_arrow()


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Every query that a session runs, as it runs."""
    queries: list[str] = []
    for name in ("arrow", "stream", "execute"):
        real = getattr(Session, name)

        def said(session: Session, sql: str, *more: object, real: Any = real) -> Any:
            queries.append(sql)
            return real(session, sql, *more)

        monkeypatch.setattr(Session, name, said)
    return queries


def as_text(queries: list[str], folder: Path) -> str:
    return "\n\n".join(queries).replace(str(folder), "/data/v") + "\n"


@pytest.mark.parametrize("name", VIEWS)
def test_what_files_are_asked(name, asked, accept_sql, tmp_path):
    spine = Spine(pa.table({"a": [1], "bb": ["2"]}), np.array([START + MONTH + 5_000]), np.array([True]))
    with Session(threads=1) as session:
        as_of([VIEWS[name](tmp_path)], spine, session)
    held_to(as_text(asked, tmp_path), name, accept_sql)


PULLS = {
    "pull_latest": ("latest", None),
    "pull_latest_created": ("latest", "created"),
    "pull_all": ("all", None),
    "pull_all_created": ("all", "created"),
}


@pytest.mark.parametrize("name", PULLS)
def test_what_a_pull_asks(name, asked, accept_sql, tmp_path):
    pull(tmp_path, *PULLS[name])
    held_to(as_text(asked, tmp_path), name, accept_sql)


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.glob("*.sql")} == {*QUERIES, *VIEWS, *PULLS}
