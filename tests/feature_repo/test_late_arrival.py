"""The task's spine: one row a flight, asked two hours ahead, no label before it could be known."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from contracts.spine import read_spine
from contracts.task import Task, load_task

ROOT = Path(__file__).parents[2]
START, END = datetime(2012, 1, 1, tzinfo=UTC), datetime(2015, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def task(year, tmp_path_factory) -> Task:
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "tasks", project / "tasks")
    (project / "data").symlink_to(year[0])
    return load_task(project / "tasks" / "late_arrival.toml")


@pytest.fixture(scope="module")
def spine(task) -> pl.DataFrame:
    return pl.from_arrow(read_spine(task, start=START, end=END, known_at=END))


def test_the_task_in_the_repository_loads():
    task = load_task(ROOT / "tasks" / "late_arrival.toml")
    assert task.feature_repo == ROOT / "feature_repo"
    assert (task.budget.p99_ms, task.budget.requests_per_second) == (50, 200)
    assert task.fairness.slices == ("origin", "carrier", "hour_band")


def test_there_is_one_row_a_scheduled_flight(spine, landed):
    assert spine.height == 336_776
    assert set(spine["flight_id"]) == set(landed("schedules")["flight_id"])


def test_a_flight_is_asked_about_two_hours_before_it_leaves(spine):
    assert (spine["scheduled_departure"] - spine["asked_at"]).unique().to_list() == [timedelta(hours=2)]


def test_a_label_is_known_an_hour_after_arrival_and_is_what_the_arrival_says(spine, landed):
    labelled = spine.filter(pl.col("late").is_not_null())
    both = labelled.join(landed("arrivals"), on="flight_id", suffix="_seen")
    assert both.height == labelled.height == landed("arrivals").height == 327_346
    assert (both["label_known_at"] - both["actual_arrival"]).unique().to_list() == [timedelta(hours=1)]
    assert (both["late"] == both["late_seen"]).all()
    assert spine.filter(pl.col("late").is_null() != pl.col("label_known_at").is_null()).height == 0


def test_no_label_is_known_when_the_flight_is_asked_about(spine):
    assert spine.filter(pl.col("label_known_at") <= pl.col("asked_at") + timedelta(hours=2)).height == 0


@pytest.mark.parametrize("moment", [datetime(2013, 2, 9, 3, 30, tzinfo=UTC), datetime(2013, 7, 1, tzinfo=UTC)])
def test_at_any_moment_only_known_labels_show(task, spine, moment):
    then = pl.from_arrow(read_spine(task, start=START, end=END, known_at=moment))
    assert then.height == spine.height
    shown = then.filter(pl.col("late").is_not_null())
    assert shown["label_known_at"].max() <= moment
    assert shown.height == spine.filter(pl.col("label_known_at") <= moment).height > 10_000


def test_hour_bands_go_by_the_clock_in_new_york(spine):
    home = ZoneInfo("America/New_York")
    bands = {"1 before 8": (0, 8), "2 8 to 12": (8, 12), "3 12 to 16": (12, 16), "4 16 to 20": (16, 20)}
    bands["5 after 20"] = (20, 24)
    for departs, band in spine.select("scheduled_departure", "hour_band").sample(3000, seed=3).iter_rows():
        low, high = bands[band]
        assert low <= departs.astimezone(home).hour < high


def test_keys_and_request_fields_are_complete_but_for_unnamed_aircraft(task, spine):
    nulls = spine.select(*task.spine.keys, *task.spine.request_fields).null_count().row(0, named=True)
    unnamed = nulls.pop("tailnum")
    assert set(nulls.values()) == {0}
    assert unnamed == 2_512
    assert spine.filter(pl.col("tailnum").is_null())["late"].null_count() == unnamed  # all of them cancelled
