"""The regression task asks the same question at the same instants as its binary sister, and is told minutes."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from contracts.spine import read_spine
from contracts.task import Task, load_task

ROOT = Path(__file__).parents[2]
START, END = datetime(2012, 1, 1, tzinfo=UTC), datetime(2015, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def tasks(year, tmp_path_factory) -> dict[str, Task]:
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "tasks", project / "tasks")
    (project / "data").symlink_to(year[0])
    return {name: load_task(project / "tasks" / f"{name}.toml") for name in ("arrival_delay", "late_arrival")}


def test_its_rows_are_the_binary_tasks_rows_with_minutes_for_a_label(tasks, landed):
    ours, theirs = (
        pl.from_arrow(read_spine(tasks[name], start=START, end=END, known_at=END)) for name in sorted(tasks)
    )
    same = ["flight_id", "asked_at", "label_known_at", *tasks["arrival_delay"].spine.keys]
    assert ours.select(same).equals(theirs.select(same))
    told = ours.filter(pl.col("arr_delay").is_not_null()).join(landed("arrivals"), on="flight_id", suffix="_seen")
    assert told.height == 327_346
    assert (told["arr_delay"] == told["arr_delay_seen"]).all()
    late = theirs.filter(pl.col("late").is_not_null()).join(ours, on="flight_id")
    assert ((late["arr_delay"] > 15) == (late["late"] == 1)).all()


def test_no_delay_is_known_when_the_flight_is_asked_about(tasks):
    spine = pl.from_arrow(read_spine(tasks["arrival_delay"], start=START, end=END, known_at=END))
    assert spine.filter(pl.col("label_known_at") <= pl.col("asked_at") + timedelta(hours=2)).height == 0


def test_it_is_a_regression_with_quantiles_and_not_the_default(tasks):
    task = tasks["arrival_delay"]
    assert (task.kind, task.quantiles, task.default) == ("regression", (0.1, 0.5, 0.9), False)
    assert tasks["late_arrival"].default


def test_its_budget_has_it_precomputed_and_its_sisters_does_not(tasks):
    modes = {name: task.serving_mode for name, task in tasks.items()}
    assert modes == {
        "arrival_delay": ("batch", "budget p99 200 ms leaves time to read a precomputed prediction"),
        "late_arrival": ("online", "budget p99 50 ms is below 100 ms"),
    }
