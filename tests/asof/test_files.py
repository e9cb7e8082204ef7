"""Only the files that can matter are opened."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from asof.clockwork import to_micros
from asof.files import covering, parquet_files
from asof.session import Session
from asof.source import Source

DAY = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def land(path, hours, dtype=None, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype = pa.timestamp("us", "UTC") if dtype is None else dtype
    times = pa.array([DAY + h * HOUR for h in hours], pa.timestamp("us", "UTC")).cast(dtype)
    pq.write_table(pa.table({"list": [[1, 2]] * len(hours), "ts": times, **columns}), path)


def micros(hours: float) -> int:
    return to_micros(DAY + hours * HOUR)


def test_files_outside_the_interval_are_left_out(tmp_path):
    for name, hours in (("a", [0, 1]), ("b", [2, 3]), ("c", [4, 5])):
        land(tmp_path / f"{name}.parquet", hours)
    files = parquet_files(tmp_path)

    def names(since, until):
        return "".join(file.stem for file in covering(files, "ts", since, until))

    assert names(None, micros(2)) == "ab"
    assert names(micros(1), micros(1)) == "a"
    assert names(micros(1.5), micros(4)) == "bc"
    assert names(micros(9), micros(10)) == "a"  # something must give the schema


def test_units_zones_and_missing_statistics(tmp_path):
    land(tmp_path / "ns.parquet", [0, 1], pa.timestamp("ns", "America/New_York"))
    land(tmp_path / "naive.parquet", [0, 1], pa.timestamp("us"))
    land(tmp_path / "none.parquet", [0, 1])
    bare = tmp_path / "bare.parquet"
    pq.write_table(pq.read_table(tmp_path / "none.parquet"), bare, write_statistics=False)
    pq.write_table(pa.table({"other": [1]}), tmp_path / "other.parquet")
    files = parquet_files(tmp_path)
    assert [file.stem for file in covering(files, "ts", micros(5), micros(6))] == ["bare", "other"]
    assert len(covering(files, "ts", micros(1), micros(6))) == 5


def test_a_replaced_file_is_asked_again(tmp_path):
    land(tmp_path / "a.parquet", [0])
    land(tmp_path / "b.parquet", [0])
    files = parquet_files(tmp_path)
    assert len(covering(files, "ts", micros(0), micros(1))) == 2
    land(tmp_path / "b.parquet", [8, 9])
    assert covering(files, "ts", micros(0), micros(1)) == files[:1]


def test_a_renamed_time_column_is_found_under_its_own_name(tmp_path):
    land(tmp_path / "data/a.parquet", [0], x=[1])
    land(tmp_path / "data/b.parquet", [5], x=[2])
    source = Source("v", str(tmp_path / "data"), "when", None, renamed=(("ts", "when"), ("absent", "y")))
    with Session() as session:
        scan = session.scan(source)
        relation = scan.between(micros(4), micros(6))
        assert session.arrow(f'select x, "when" from {relation}')["x"].to_pylist() == [2]
        assert "a.parquet" not in relation
        assert session.arrow(f"select x from {scan.relation}").num_rows == 2
