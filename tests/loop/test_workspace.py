import subprocess
import sys
from datetime import UTC, datetime

import pytest
from sqlalchemy import insert

from contracts.locations import Locations
from contracts.state import deployments, open_state
from loop.workspace import WorkspaceBusy, WorkspaceTaken, workspace

HOLD = """
import sys, time
from pathlib import Path
from contracts.locations import Locations
from loop.workspace import workspace
with workspace(Locations(Path(sys.argv[1])), "churn"):
    print("held", flush=True)
    time.sleep(60)
"""


def deploy(locations: Locations) -> None:
    with open_state(locations.state_url).begin() as connection:
        row = {"task": "churn", "generation": 1, "champion": 0, "champion_bundle": "b", "stage": "idle", "share": 0.0}
        connection.execute(insert(deployments).values(**row, since=datetime(2024, 1, 1, tzinfo=UTC)))


def test_a_second_run_clears_what_the_first_left(tmp_path):
    locations = Locations(tmp_path / "data")
    with workspace(locations, "churn"):
        deploy(locations)
        kept = locations.bundles("churn") / "b"
        dropped = locations.predictions("churn") / "segment.sqlite"
        for path in (kept, dropped):
            path.parent.mkdir(parents=True)
            path.touch()
    with workspace(locations, "churn"):
        assert kept.exists()
        assert not dropped.exists()
        assert not (locations.data / "state.db").exists()


def test_live_state_that_no_run_made_is_left_alone(tmp_path):
    locations = Locations(tmp_path / "data")
    deploy(locations)
    with pytest.raises(WorkspaceTaken, match="rollout state of churn"), workspace(locations, "churn"):
        pytest.fail("entered")
    assert (locations.data / "state.db").exists()


def test_two_runs_at_once_are_refused_and_a_kill_frees_the_lock(tmp_path):
    locations = Locations(tmp_path / "data")
    command = [sys.executable, "-c", HOLD, str(locations.data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WorkspaceBusy), workspace(locations, "churn"):
            pytest.fail("entered")
        holder.kill()
    with workspace(locations, "churn"):
        pass
