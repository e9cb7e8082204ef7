"""How long a run serves: by the task's own ladder and least samples, at the traffic its data shows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from contracts.task import load_task
from loop.period import WATCHED, RunRefused, expected_climb, plan_period

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
FIRST = datetime(2024, 1, 1, tzinfo=UTC)
CUTOFF = FIRST + timedelta(days=24)
LOOKS = 2 * timedelta(hours=3)
"""Shadow and one canary step, each looked at some hours late on average."""


@pytest.fixture(scope="module")
def kitchen(make_stranger, tmp_path_factory):
    return make_stranger(tmp_path_factory.mktemp("period") / "kitchen")


@pytest.fixture
def task_with(kitchen, tmp_path):
    """The stranger's task with lines of its file replaced, and one of so many orders kept, evenly."""

    def make(*changes: tuple[str, str], one_in: int = 1):
        text = (kitchen / "tasks" / "late_delivery.toml").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        orders = pl.read_parquet(kitchen / "data" / "events" / "orders.parquet").gather_every(one_in)
        orders.write_parquet(tmp_path / "orders.parquet")
        text = text.replace("../data/events/orders.parquet", "orders.parquet")
        (tmp_path / "late_delivery.toml").write_text(text)
        (tmp_path / "late_delivery.sql").write_text("select * from orders")
        return load_task(tmp_path / "late_delivery.toml")

    return make


def test_with_plenty_of_traffic_a_release_takes_its_bakes(task_with):
    task = task_with()
    drill = HOUR  # 29 orders an hour are enough to watch one by
    assert expected_climb(task, CUTOFF) == pytest.approx(drill + 12 * HOUR + LOOKS, abs=timedelta(minutes=1))
    period = plan_period(task, None)
    assert period.cutoff == CUTOFF
    assert period.end == CUTOFF + 3 * DAY  # 19 hours and two days, in whole days
    assert period.told == "a release is expected to take 0.8 days"


def test_least_samples_take_their_time_where_traffic_is_thin(task_with):
    """23 orders a day: 100 for shadow take 4.3 days, and 10 of a fifth of the keys 2.1."""
    task = task_with(one_in=30)
    hours = len({row // 3_600_000_000 for row in _asked(task)})
    drill = 24 * 24 * DAY / hours  # no hour has five orders: a day's worth of hours that have any
    expected = drill + (100 + 10 / 0.2) / (len(_asked(task)) / 24) * DAY + LOOKS
    assert expected_climb(task, CUTOFF) == pytest.approx(expected, abs=HOUR)


def test_performance_waits_for_the_rows_it_is_judged_from(task_with):
    bakes = expected_climb(task_with(), CUTOFF)
    later = expected_climb(task_with(("min_rows = 100", "min_rows = 2100")), CUTOFF)
    assert later - bakes == pytest.approx(2100 / 700 * DAY - 12 * HOUR, abs=HOUR)


def test_a_metric_that_cannot_be_estimated_waits_for_labels_too(task_with):
    few = ("min_rows = 100", "min_rows = 400")
    unestimated = ('metric = "roc_auc"\nfloor = 0.6', 'metric = "brier"\nfloor = 0.3')
    estimated = expected_climb(task_with(few), CUTOFF)
    realized = expected_climb(task_with(few, unestimated), CUTOFF)
    assert realized - estimated == pytest.approx(timedelta(minutes=50), abs=timedelta(seconds=1))


def test_days_that_are_asked_for_are_kept_and_too_few_are_said(task_with):
    assert plan_period(task_with(), 4).end == CUTOFF + 4 * DAY
    task = task_with(("min_rows = 100", "min_rows = 2100"))
    told = plan_period(task, 2).told
    assert told == "a release is expected to take 3.3 days: 2 of serving are too few for a champion, 6 would do"


def test_a_spine_that_ends_before_its_release_could_is_refused(task_with):
    task = task_with(("min_rows = 100", "min_rows = 6000"))
    with pytest.raises(RunRefused, match=r"then 11 of serving, as many as its release needs"):
        plan_period(task, None)
    assert plan_period(task, 5).end == CUTOFF + 5 * DAY
    with pytest.raises(RunRefused, match="the spine ends 2024-02-01"):
        plan_period(task, 20)


def test_the_first_champion_is_watched_for_a_while(task_with):
    period = plan_period(task_with(), None)
    assert period.end - CUTOFF >= expected_climb(task_with(), CUTOFF) + WATCHED


def _asked(task) -> list[int]:
    orders = pl.read_parquet(task.spine.tables["orders"]).filter(pl.col("ordered_at") < CUTOFF)
    return orders["ordered_at"].dt.timestamp("us").to_list()
