"""Recurring jobs: one of a kind at a time, whatever becomes of it one line; and the files that start them."""

from __future__ import annotations

import configparser
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from loop.cli import main
from loop.jobs import KINDS, Job, do, jobs_of
from loop.project import Project
from loop.schedule import scheduled
from loop.watch import NothingServed

HOUR = timedelta(hours=1)
NOW = datetime(2024, 1, 25, 6, 30, tzinfo=UTC)
SCHEDULES = Path(__file__).parents[2] / "deploy" / "schedules"

HOLD = """
import sys, time
from datetime import timedelta
from pathlib import Path
from loop.jobs import Job, do
from loop.project import Project
def hold(now):
    print("held", flush=True)
    time.sleep(600)
do(Project(Path(sys.argv[1])), Job("retrain", "t", timedelta(hours=1), hold), None, print)
"""


def job(run, kind="retrain", every=HOUR):
    return Job(kind, "t", every, run)


def test_what_was_done_is_one_line(tmp_path):
    said = []
    assert do(Project(tmp_path), job(lambda now: f"done at {now:%H:%M}"), NOW, said.append)
    assert said == ["retrain t: done at 06:30"]


def test_a_job_that_fails_is_told_and_stops_no_other(tmp_path):
    said = []

    def fail(now):
        raise ZeroDivisionError("by nothing")

    assert not do(Project(tmp_path), job(fail), NOW, said.append)
    assert do(Project(tmp_path), job(lambda now: "done"), NOW, said.append)
    assert said == ["retrain t: FAILED, ZeroDivisionError: by nothing", "retrain t: done"]


def test_a_task_that_is_not_served_yet_is_no_failure(tmp_path):
    said = []

    def watch(now):
        raise NothingServed("Task 't' was never deployed.", hint="train a version")

    assert do(Project(tmp_path), job(watch, "monitor"), NOW, said.append)
    assert said == ["monitor t: waits, Task 't' was never deployed."]


def test_one_of_a_kind_at_a_time_and_a_killed_one_stands_in_nobodys_way(tmp_path):
    project, said = Project(tmp_path), []
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert do(project, job(lambda now: "done"), NOW, said.append)
        assert do(project, job(lambda now: "done", "monitor"), NOW, said.append)
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    assert do(project, job(lambda now: "done"), NOW, said.append)
    assert said[0].startswith("retrain t: skipped, another process is at it")
    assert said[1:] == ["monitor t: done", "retrain t: done"]


def test_jobs_due_together_run_in_order_and_data_waits_for_no_training(tmp_path):
    done, training, landed = [], threading.Event(), threading.Event()

    def train(now):
        training.wait(30)  # as long as no data was landed
        done.append("retrain")
        return "done"

    def land(kind):
        def run(now):
            done.append(kind)
            if kind == "predict":
                landed.set()
            return "done"

        return run

    jobs = [job(train), *(job(land(kind), kind) for kind in ("ingest", "materialize", "predict"))]
    scheduler = scheduled(Project(tmp_path), jobs, lambda line: None)
    scheduler.start()
    assert landed.wait(30)
    training.set()
    scheduler.shutdown(wait=True)
    assert done == ["ingest", "materialize", "predict", "retrain"]


def test_a_schedule_keeps_to_full_hours_and_makes_up_for_missed_ones_once(tmp_path):
    scheduler = scheduled(Project(tmp_path), [job(lambda now: "done", "ingest")], lambda line: None)
    scheduler.start(paused=True)
    [found] = [each for each in scheduler.get_jobs() if "at once" not in each.id]
    following = found.trigger.get_next_fire_time(None, NOW)
    assert found.trigger.get_next_fire_time(following, NOW) == following + HOUR
    assert following == datetime(2024, 1, 25, 7, tzinfo=UTC)
    assert (found.coalesce, found.max_instances, found.misfire_grace_time) == (True, 1, None)
    scheduler.shutdown(wait=False)


def test_times_that_were_slept_through_are_made_up_for_once_and_no_two_overlap(tmp_path):
    """Every second: asleep for two and a half, then a run that takes as long; one job of the two always fails."""
    started, under_way, most, done = [], [0], [0], threading.Event()

    def work(now):
        started.append(time.monotonic())
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        if len(started) == 2:
            time.sleep(2.5)
        under_way[0] -= 1
        if len(started) == 4:
            done.set()
        return "done"

    def fail(now):
        raise ZeroDivisionError("by nothing")

    said: list[str] = []
    second = timedelta(seconds=1)
    jobs = [job(fail, "monitor", second), job(work, "advance", second)]
    scheduler = scheduled(Project(tmp_path), jobs, said.append)
    scheduler.start(paused=True)
    time.sleep(2.5)
    awake = time.monotonic()
    scheduler.resume()
    assert done.wait(30)
    scheduler.shutdown(wait=True)
    at = [each - awake for each in started[:4]]
    assert at[1] < 1  # what is done at once, and one run for all that was missed
    assert at[2] - at[1] > 2.4
    assert at[3] - at[2] < 1.5  # one run for the times that fell into the long one, then the next full second
    assert most == [1]
    assert said.count("monitor t: FAILED, ZeroDivisionError: by nothing") == said.count("advance t: done") >= 4


def test_a_task_has_the_jobs_it_needs(stranger):
    project = Project(stranger)
    found = {each.kind: each.every for each in jobs_of(project, project.task(None), HOUR, print)}
    assert found == {
        "materialize": HOUR,
        "predict": HOUR,
        "monitor": timedelta(hours=12),
        "advance": HOUR,
        "retrain": HOUR,
        "retention": timedelta(days=1),
    }
    assert list(found) == [kind for kind in KINDS if kind in found]


def test_materializing_again_has_nothing_to_do(make_stranger, tmp_path):
    root = make_stranger(tmp_path / "kitchen")
    runner, at = CliRunner(), ["--once", "--as-of", NOW.isoformat()]
    assert runner.invoke(main, ["-C", str(root), "apply"]).exit_code == 0
    wanted = ["-C", str(root), "schedule", *at, "--only"]
    first = runner.invoke(main, [*wanted, "materialize"])
    assert "rows written, complete at 2024-01-25 06:00" in first.output
    assert "nothing to do, complete at 2024-01-25 06:00" in runner.invoke(main, [*wanted, "materialize"]).output
    others = runner.invoke(main, [*wanted, "monitor,retrain"])
    assert others.exit_code == 0
    assert "monitor late_delivery: waits, Task 'late_delivery' was never deployed." in others.output
    assert "retrain late_delivery: nothing asked for it" in others.output


def test_a_kind_that_is_none_is_refused(tmp_path):
    done = CliRunner().invoke(main, ["-C", str(tmp_path), "schedule", "--once", "--only", "monitr"])
    assert done.exit_code == 2
    assert "'monitr' is none of ingest, materialize, predict, monitor, advance, retrain, retention" in done.output


def commands():
    """Every command line in the files of deploy/schedules, as its arguments after `skewless`."""
    found = []
    for line in (SCHEDULES / "crontab").read_text().splitlines():
        if "$SKEWLESS " in line:
            found.append(shlex.split(line.partition("$SKEWLESS ")[2]))
    for file in SCHEDULES.glob("*.service"):
        unit = configparser.ConfigParser()
        unit.read(file)
        found.append(shlex.split(unit["Service"]["ExecStart"])[1:])
    for document in yaml.safe_load_all((SCHEDULES / "cronjobs.yaml").read_text()):
        [container] = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        found.append(container["command"][1:])
    return found


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_of_the_examples_exists(arguments):
    context = main.make_context("skewless", list(arguments))
    name, command, rest = main.resolve_command(context, [*context._protected_args, *context.args])
    assert command is not None
    parsed = command.make_context(name, list(rest), parent=context)
    assert isinstance(parsed, click.Context)
    assert parsed.params["once"]
    assert set(parsed.params["only"].split(",")) <= set(KINDS)


def test_every_timer_has_its_service_and_every_cron_job_a_schedule():
    assert len(commands()) == 10
    timers = {file.stem for file in SCHEDULES.glob("*.timer")}
    assert timers == {file.stem for file in SCHEDULES.glob("*.service")}
    for file in SCHEDULES.glob("*.timer"):
        unit = configparser.ConfigParser()
        unit.read(file)
        assert unit["Timer"]["OnCalendar"].endswith("UTC")
    for document in yaml.safe_load_all((SCHEDULES / "cronjobs.yaml").read_text()):
        assert (document["kind"], len(document["spec"]["schedule"].split())) == ("CronJob", 5)
        assert document["spec"]["concurrencyPolicy"] == "Forbid"
