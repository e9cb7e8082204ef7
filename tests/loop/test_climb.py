"""When a run holds its rollback drill: with an hour's five requests, or after a day with whatever an hour has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from loop.climb import Climb

START = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("an_hour_has", "held_after", "rows"),
    [(lambda hour: 7, 1, 5), (lambda hour: 3, 24, 3), (lambda hour: hour % 2, 47, 1)],
)
def test_the_drill_is_held_as_soon_as_there_is_traffic_to_watch_it_by(monkeypatch, an_hour_has, held_after, rows):
    def hold(rollouts: Any, ready: Any, predict: Any, now: datetime) -> bool:
        predict()
        return True

    asked: list[list[dict[str, Any]]] = []
    monkeypatch.setattr("loop.climb.rollback_drill", hold)
    stage = SimpleNamespace(challenger=1, stage="shadow", since=START)
    policy = SimpleNamespace(shadow_bake=timedelta(days=99), canary_bake=timedelta(days=99))
    task = SimpleNamespace(spine=SimpleNamespace(id="case"), rollout=policy)
    rollouts: Any = SimpleNamespace(current=lambda: stage, task=task)
    caller: Any = SimpleNamespace(wait_for=None, ask=lambda sent: asked.append(sent) or [{}])
    nothing: Any = None
    climb = Climb(rollouts, nothing, nothing, caller, lambda said: None)
    hours = 0
    while climb.drill_passed is None:
        hours += 1
        requests = [{"case": f"{hours}-{i}", "key": i} for i in range(an_hour_has(hours))]
        climb.after_hour(START + timedelta(hours=hours), requests)
    assert hours == held_after
    assert [len(sent) for sent in asked] == [rows]
    assert all(set(row) == {"key"} for row in asked[0])
