"""A drift drill leaves its outcome on record, also where it breaks; without a version there is nothing to rehearse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from contracts.state import drills
from loop.cli import main
from loop.drills import NothingToRehearse, rehearse_drift
from loop.project import Project
from serving.rollout_state import latest_drill
from tests.monitoring.conftest import START, World, make_world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def test_a_rehearsal_that_breaks_is_a_failed_one_on_record(world: World) -> None:
    """The bundle's model is no graph: nothing can be scored, and the task does not go live on that."""
    world.serve(0, challenger=1)
    said: list[str] = []
    report = rehearse_drift(Project(world.root), world.task, world.engine, now=START, quick=True, say=said.append)
    assert not report.passed
    assert report.reasons[0].startswith("ScorerError: ONNX Runtime cannot load the model")
    assert said[0].startswith("drift drill: failed (ScorerError")
    with world.engine.begin() as connection:
        assert latest_drill(connection, "churn", "drift") == (False, START)
        assert latest_drill(connection, "churn") == (None, None)
        [row] = connection.execute(select(drills.c.evidence)).scalars()
    assert (row["version"], row["bundle_hash"]) == (1, world.bundle.bundle_hash)


def test_the_command_says_so_with_its_exit_status(world: World) -> None:
    world.serve(1)
    done = CliRunner().invoke(
        main, ["-C", str(world.root), "drill", "drift", "churn", "--as-of", "2024-03-01", "--json"]
    )
    assert done.exit_code == 1, done.output
    assert json.loads(done.stdout)["drill"]["passed"] is False


def test_a_task_without_a_version_has_nothing_to_rehearse(world: World) -> None:
    with pytest.raises(NothingToRehearse, match="'churn' was never deployed"):
        rehearse_drift(Project(world.root), world.task, world.engine, now=START, say=print)
