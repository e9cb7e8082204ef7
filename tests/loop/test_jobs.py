"""The jobs that look after releases and remove old things, on real state; and where a schedule sends its alerts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pyarrow as pa
import pytest
from click.testing import CliRunner

from contracts.bundle import BundleMetadata, FeatureSpec, write_bundle
from contracts.registry import open_registry
from loop.cli import main
from loop.jobs import do, jobs_of
from loop.project import Project
from loop.releases import open_rollouts
from serving.outcomes import Outcomes
from serving.rollout import Rollouts
from training.lock import one_at_a_time

HOUR = timedelta(hours=1)
NOW = datetime(2024, 1, 25, 6, 30, tzinfo=UTC)


class TestAdvance:
    """The job `advance`, on a state of real moves; nothing was asked, so the log is empty."""

    @pytest.fixture
    def rollouts(self, make_stranger, tmp_path):
        root = make_stranger(tmp_path / "kitchen")
        (root / "skewless.toml").write_text('[registry]\nkind = "git"\n')
        project = Project(root)
        task = project.task(None)
        return open_rollouts(project.open_state(), task, project.locations)

    @pytest.fixture
    def told(self, rollouts, tmp_path):
        project = Project(tmp_path / "kitchen")

        def at(instant):
            said = []
            jobs = jobs_of(project, rollouts.task, HOUR, print)
            assert do(project, *[each for each in jobs if each.kind == "advance"], instant, said.append)
            return said[0].removeprefix("advance late_delivery: ")

        return at

    @pytest.fixture
    def version(self, rollouts, tmp_path):
        """A registered version and its bundle, which passed its gates."""
        metadata = BundleMetadata(
            task="late_delivery",
            kind="binary",
            learner="none",
            feature_service="lateness",
            features=(FeatureSpec("km", "number"),),
            service_fingerprint="f",
            threshold=0.5,
            fallback=0.2,
            trained_at=NOW.isoformat(),
            training_data={},
            metrics={},
            gates=({"name": "floor", "verdict": "pass"},),
            seed=1,
            params={},
            task_as_trained={},
        )
        reference = pa.table({"km": pa.array([1, 2], pa.float32()), "score": [0.1, 0.9]})
        bundle = write_bundle(tmp_path / "bundle", model=b"graph", metadata=metadata, reference=reference).path
        registry = open_registry(Project(tmp_path / "kitchen").locations)
        found = registry.register(
            "late_delivery", run_id="run", bundle=bundle, status="candidate", dataset_hash="d", model_hash="m"
        )
        return found.version, found.bundle

    def test_a_climb_is_judged_when_it_has_baked_and_paused_at_its_deadline(self, rollouts, told, version):
        assert told(NOW) == "nothing climbs"
        rollouts.submit(*version, NOW)
        assert told(NOW + HOUR) == "version 1 bakes in shadow since 2024-01-25 06:30"
        waits = told(NOW + 7 * HOUR)
        assert waits.startswith("version 1 waits in shadow, exposure: ")
        assert [event.to_stage for event in rollouts.history()] == ["shadow"]
        late = NOW + rollouts.task.rollout.deadline
        assert told(late).startswith("version 1: shadow -> paused, inconclusive for 7d: ")
        assert told(late + HOUR).startswith("version 1 is paused since ")
        assert [event.actor for event in rollouts.history()] == ["system", "rollout"]

    def test_a_version_that_was_rolled_back_is_submitted_again(self, rollouts, version, tmp_path, monkeypatch):
        drilled = []
        monkeypatch.setattr("loop.drills.rehearse_drift", lambda project, task, engine, **how: drilled.append(how))
        rollouts.submit(*version, NOW)
        rollouts.rollback("a mistake", "root", NOW)

        def submit(name, status=0):
            done = CliRunner().invoke(
                main, ["-C", str(tmp_path / "kitchen"), "rollout", "submit", name, "--at", NOW.isoformat()]
            )
            assert done.exit_code == status, done.output
            return done.output

        assert submit("late_delivery@1") == "version 1: registered -> shadow\n"
        assert rollouts.current().challenger == 1
        assert [how["quick"] for how in drilled] == [True]  # as for every version of a task that was never live
        assert "version 1 cannot enter" in submit("late_delivery@1", status=2)
        assert "name one of @1" in submit("late_delivery@7", status=2)
        assert "not a version" in submit("late_delivery", status=2)

    def test_a_version_that_fails_is_dropped_and_the_aliases_follow(self, rollouts, told, version):
        rollouts.submit(*version, NOW)
        counted = Outcomes(rollouts.engine, 60)
        for _ in range(200):
            counted.count("late_delivery", rollouts.current().generation, "shadow", failed=True)
            counted.count("late_delivery", rollouts.current().generation, "champion", failed=False)
        counted.tell()
        counted.close()
        assert told(NOW + 7 * HOUR).startswith("version 1: shadow -> rolled_back, errors: ")
        assert told(NOW + 8 * HOUR) == "nothing climbs"

    def test_aliases_that_were_behind_are_repaired(self, rollouts, told, version, tmp_path):
        unfollowed = Rollouts(rollouts.engine, rollouts.task)
        unfollowed.submit(*version, NOW)
        registry = open_registry(Project(tmp_path / "kitchen").locations)
        assert registry.aliases("late_delivery") == {}
        assert told(NOW + HOUR).startswith("version 1 bakes in shadow")
        assert registry.aliases("late_delivery") == {"challenger": version[0]}


def test_old_things_go_by_the_settings(make_stranger, tmp_path):
    project, said = Project(make_stranger(tmp_path / "kitchen")), []
    settings = project.root / "skewless.toml"
    settings.write_text('[registry]\nkind = "git"\n')
    left = project.locations.snapshots("late_delivery") / "left over"
    left.mkdir(parents=True)
    (left / "frame.parquet").write_bytes(b"frame")
    [tidy] = [each for each in jobs_of(project, project.task(None), HOUR, print) if each.kind == "retention"]
    assert do(project, tidy, NOW, said.append)
    assert left.is_dir()
    settings.write_text('[registry]\nkind = "git"\n[retention]\nframes = 2\n')
    with one_at_a_time(project.task(None), project.locations):
        assert do(project, tidy, NOW, said.append)
    assert do(project, tidy, NOW, said.append)
    assert not left.exists()
    assert said[0] == "retention late_delivery: 0 frames removed, 0 bytes"
    assert said[1].startswith("retention late_delivery: waits, Task 'late_delivery' is being trained already")
    assert said[2] == "retention late_delivery: 1 frames removed, 5 bytes"


def test_new_alerts_are_posted_where_the_environment_says(make_stranger, tmp_path, monkeypatch):
    seen = []

    def watch(*_, webhook, **__):
        seen.append(webhook.url)
        return None, SimpleNamespace(action="none", reasons=["nothing"])

    monkeypatch.setattr("loop.watch.watch", watch)
    root = make_stranger(tmp_path / "kitchen")
    given = {"SKEWLESS_ALERT_WEBHOOK": "http://127.0.0.1:9/alerts"}
    command = ["-C", str(root), "schedule", "--once", "--only", "monitor"]
    assert CliRunner().invoke(main, command, env=given).exit_code == 0
    assert seen == ["http://127.0.0.1:9/alerts"]
