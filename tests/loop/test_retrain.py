"""Which version a new one is compared with, by the rollout's history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert

from contracts import bundle as bundles
from contracts.state import open_state
from contracts.task import load_task
from loop import retrain
from loop.retrain import champion_at
from serving.rollout import Rollouts
from serving.rollout_state import rollout_events

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def task(stranger):
    return load_task(stranger / "tasks" / "late_delivery.toml")


@pytest.fixture
def history(task, tmp_path, monkeypatch):
    """Version 1 was champion from the first day, version 2 from the tenth; a third is climbing."""
    engine = open_state(f"sqlite:///{tmp_path / 'state.db'}")
    Rollouts(engine, task)  # creates its tables
    moves = [(0, 0, "shadow"), (1, 1, "champion"), (10, 2, "champion"), (11, 2, "shadow")]
    with engine.begin() as connection:
        for generation, (day, champion, stage) in enumerate(moves):
            connection.execute(
                insert(rollout_events).values(
                    task=task.name,
                    generation=generation,
                    at=NOON + timedelta(days=day),
                    from_stage="canary",
                    to_stage=stage,
                    version=champion or 1,
                    share=0,
                    champion=champion,
                    champion_bundle=f"bundles/{champion}",
                    actor="system",
                    reason="",
                    evidence={},
                )
            )
    monkeypatch.setattr(retrain, "load_bundle", lambda path: path.name)
    return engine


@pytest.mark.parametrize(
    ("day", "champion"), [(-1, None), (0, None), (0.5, None), (1, "1"), (9.9, "1"), (10, "2"), (40, "2")]
)
def test_who_was_champion_when(history, task, day, champion):
    assert champion_at(history, task, NOON + timedelta(days=day), print) == champion


def test_a_bundle_that_is_gone_is_said_and_left_out(history, task, monkeypatch):
    monkeypatch.setattr(retrain, "load_bundle", bundles.load_bundle)
    said = []
    assert champion_at(history, task, NOON + timedelta(days=5), said.append) is None
    [line] = said
    assert line.startswith("version 1, champion on 2024-03-06, cannot be compared with: No bundle at bundles/1")
