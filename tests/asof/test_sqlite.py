"""The times of rows in SQLite, which Feast keeps through the machine's local clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asof import sqlite

# When, by the local clock, it is put forward or back in one of the zones; on Lord Howe by half an hour.
CHANGES = [
    int(datetime(2013, month, day, 2, tzinfo=UTC).timestamp())
    for month, day in [(3, 31), (10, 27), (4, 7), (10, 6), (3, 10), (11, 3)]
]


@pytest.fixture(params=["UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/New_York", "Asia/Kathmandu"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    sqlite._stamp.cache_clear()
    yield
    monkeypatch.undo()
    time.tzset()
    sqlite._stamp.cache_clear()


moments = st.sampled_from(CHANGES).flatmap(lambda change: st.integers(change - 4_000, change + 4_000))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(moments | st.integers(-(10**10), 10**10), min_size=1))
def test_many_times_are_kept_as_each_of_them_is(zone: None, seconds: list[int]) -> None:
    assert sqlite._stamps(np.array(seconds)).tolist() == [sqlite._stamp(second) for second in seconds]
