"""The sequence task's spine, against the landed tables; and the array it reads, against a slow reading of them."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from contracts.spine import read_spine
from contracts.task import Task, load_task

ROOT = Path(__file__).parents[2]
START, END = datetime(2012, 1, 1, tzinfo=UTC), datetime(2015, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def task(year, tmp_path_factory) -> Task:
    project = tmp_path_factory.mktemp("project")
    for folder in ("tasks", "feature_repo"):
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "data").mkdir()
    (project / "data" / "events").symlink_to(year[0] / "events")
    return load_task(project / "tasks" / "airport_congestion.toml")


@pytest.fixture(scope="module")
def spine(task) -> pl.DataFrame:
    found = pl.from_arrow(read_spine(task, start=START, end=END, known_at=END))
    assert isinstance(found, pl.DataFrame)
    return found


def test_there_is_one_row_an_airport_and_hour_with_ten_planned_departures(spine, landed):
    hours = landed("schedules").group_by("origin", hour=pl.col("scheduled_departure").dt.truncate("1h")).len("planned")
    expected = hours.filter(pl.col("planned") >= 10).sort("origin", "hour")
    assert spine.select("origin", "hour", "planned").sort("origin", "hour").equals(expected)
    assert (spine["asked_at"] == spine["hour"]).all()
    assert spine.height > 16_000


def test_the_label_is_what_the_departures_of_the_hour_came_to_and_is_known_after_the_last(spine, landed):
    left = landed("departures").with_columns(hour=pl.col("scheduled_departure").dt.truncate("1h"))
    random = np.random.default_rng(1)
    for row in spine[random.choice(spine.height, 300, replace=False).tolist()].iter_rows(named=True):
        gone = left.filter(pl.col("origin") == row["origin"], pl.col("hour") == row["hour"])
        late = sum(delay > 15 for delay in gone["dep_delay"])
        assert row["congested"] == (None if not gone.height else int(late / gone.height >= 0.3))
        over = row["hour"] + timedelta(hours=1)
        known = max(gone["actual_departure"].max(), over) + timedelta(hours=1) if gone.height else None
        assert row["label_known_at"] == known
    assert spine["congested"].null_count() == spine["label_known_at"].null_count() > 0
    assert 0.2 < spine["congested"].mean() < 0.3


def test_no_label_is_known_before_an_hour_after_the_hour_asked_about(spine):
    assert spine.filter(pl.col("label_known_at") < pl.col("asked_at") + timedelta(hours=2)).height == 0


def test_the_array_holds_the_last_departures_known_at_the_hour(task, spine, landed):
    from asof.repository import apply_repository, open_store

    apply_repository(task.feature_repo)
    asked = spine.filter(pl.col("asked_at") < datetime(2013, 12, 1, tzinfo=UTC)).sample(200, seed=2)
    answer = open_store(task.feature_repo).get_historical_features(
        entity_df=asked.select("origin", event_timestamp="asked_at"),
        features=["origin_last_departures:origin_last_dep_delays"],
    )
    left = landed("departures").sort("actual_departure", "dep_delay")
    for row, found in zip(
        asked.iter_rows(named=True), answer.to_arrow()["origin_last_dep_delays"].to_pylist(), strict=True
    ):
        day = (row["asked_at"] - timedelta(days=1), row["asked_at"])
        seen = left.filter(pl.col("origin") == row["origin"], pl.col("actual_departure") > day[0])
        seen = seen.filter(pl.col("actual_departure") <= day[1])["dep_delay"].to_list()
        assert found == (seen[-32:] or None)


def test_it_reads_as_many_places_as_the_array_has_and_is_learned_by_the_network(task):
    from asof.repository import open_store
    from training.choice import choose
    from training.definitions import find_service, read_definitions

    store = open_store(task.feature_repo)
    definitions = read_definitions(store, find_service(store, task.feature_service, task.feature_repo))
    assert definitions.kinds["origin_last_dep_delays"] == "array"
    assert choose(task, definitions.kinds, 5_000).learner.chosen == "torch_sequence"
    (windows,) = [view.windows for view in definitions.views if view.name == "origin_last_departures"]
    assert [window.function for window in windows] == [f"last_{task.training.array_places}"]
