import fcntl
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from sqlalchemy import insert, select

from contracts.locations import REPLICAS, Locations
from contracts.state import deployments, open_state
from loop import workspace as module
from loop.workspace import WorkspaceBusy, WorkspaceTaken, kept_from_runs, workspace

HOLD = """
import sys, time
from pathlib import Path
from contracts.locations import Locations
from loop.workspace import workspace
with workspace(Locations(Path(sys.argv[1])), "churn", print):
    print("held", flush=True)
    time.sleep(60)
"""

REPLICA = """
import fcntl, sys
with open(sys.argv[1], "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_SH)
    print("held", flush=True)
    sys.stdin.read()
"""


def deploy(locations: Locations) -> None:
    with open_state(locations.state_url).begin() as connection:
        row = {"task": "churn", "generation": 1, "champion": 0, "champion_bundle": "b", "stage": "idle", "share": 0.0}
        connection.execute(insert(deployments).values(**row, since=datetime(2024, 1, 1, tzinfo=UTC)))


def test_a_second_run_clears_what_the_first_left(tmp_path):
    locations = Locations(tmp_path / "data")
    with workspace(locations, "churn", print):
        deploy(locations)
        kept = locations.bundles("churn") / "b"
        dropped = locations.predictions("churn") / "segment.sqlite"
        for path in (kept, dropped):
            path.parent.mkdir(parents=True)
            path.touch()
    with workspace(locations, "churn", print):
        assert kept.exists()
        assert not dropped.exists()
        assert not (locations.data / "state.db").exists()


def test_live_state_that_no_run_made_is_left_alone(tmp_path):
    locations = Locations(tmp_path / "data")
    deploy(locations)
    with pytest.raises(WorkspaceTaken, match="rollout state of churn"), workspace(locations, "churn", print):
        pytest.fail("entered")
    assert (locations.data / "state.db").exists()


@pytest.mark.slow
def test_a_run_begins_in_an_empty_database_of_a_server_and_never_clears_one(tmp_path, postgres_server):
    locations = Locations(tmp_path / "data", state_server=postgres_server.new_database())
    with workspace(locations, "churn", print):
        deploy(locations)
    taken = pytest.raises(WorkspaceTaken, match="holds rollout state of churn")
    with taken as caught, workspace(locations, "churn", print):
        pytest.fail("entered")
    assert "name an empty database" in caught.value.hint
    engine = open_state(locations.state_url)
    with engine.connect() as connection:
        assert connection.execute(select(deployments.c.task)).scalars().all() == ["churn"]
    engine.dispose()


def test_two_runs_at_once_are_refused_and_a_kill_frees_the_lock(tmp_path):
    locations = Locations(tmp_path / "data")
    command = [sys.executable, "-c", HOLD, str(locations.data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WorkspaceBusy), workspace(locations, "churn", print):
            pytest.fail("entered")
        holder.kill()
    with workspace(locations, "churn", print):
        pass


def test_what_serves_here_keeps_runs_out_and_a_run_keeps_it_out(tmp_path):
    locations = Locations(tmp_path / "data")
    two = kept_from_runs(locations), kept_from_runs(locations)
    busy = pytest.raises(WorkspaceBusy, match="`skewless serve`")
    with two[0], two[1], busy, workspace(locations, "churn", print):
        pytest.fail("entered")
    busy = pytest.raises(WorkspaceBusy, match="A `skewless run`")
    with workspace(locations, "churn", print), busy, kept_from_runs(locations):
        pytest.fail("entered")


def test_the_replica_of_a_killed_run_is_waited_for_before_anything_is_cleared(tmp_path):
    locations = Locations(tmp_path / "data")
    with workspace(locations, "churn", print):
        deploy(locations)
    command = [sys.executable, "-c", REPLICA, str(locations.lock(REPLICAS))]
    said: list[str] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as replica:
        assert replica.stdin is not None
        assert replica.stdout is not None
        assert replica.stdout.readline() == "held\n"

        def wait(line: str) -> None:
            said.append(line)
            assert (locations.data / "state.db").exists()
            replica.stdin.close()

        with workspace(locations, "churn", wait):
            assert not (locations.data / "state.db").exists()
    assert said == ["waiting for the serving of an earlier run to end"]


def test_a_replica_that_does_not_end_is_reported(tmp_path, monkeypatch):
    locations = Locations(tmp_path / "data")
    monkeypatch.setattr(module, "_DRAIN_SECONDS", 0.2)
    locations.lock(REPLICAS).parent.mkdir(parents=True)
    with locations.lock(REPLICAS).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        with pytest.raises(WorkspaceBusy, match="still serves"), workspace(locations, "churn", print):
            pytest.fail("entered")
