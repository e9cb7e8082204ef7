"""The whole way on a stranger's project, served in batch mode and killed again and again; figures recomputed from the
raw tables. The example's own run, beside this file, is the way of a task that is served online."""

from __future__ import annotations

import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import psutil
import pytest
from sklearn.metrics import roc_auc_score

from contracts.bundle import load_bundle
from contracts.clock import SystemClock
from loop.console import build_console
from loop.project import Project
from monitoring.skew_record import read_audits
from tests.browser import Browser

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]  # the first test waits for all the runs

SKEWLESS = [str(Path(sys.executable).with_name("skewless"))]
CUTOFF = datetime(2024, 1, 25, tzinfo=UTC)
END = CUTOFF + timedelta(days=2)
MIRRORED_UNTIL = END + timedelta(hours=6)


@pytest.fixture(scope="module")
def orders(stranger, finished) -> pl.DataFrame:
    return pl.read_parquet(stranger / "data" / "events" / "orders.parquet")


def test_the_summary_has_its_parts_and_no_failure(finished):
    assert finished["failures"] == []
    assert {"ingest", "features", "training", "gates", "rollout", "serving", "log", "skew", "monitoring"} < set(
        finished
    )
    assert {"run_id", "dataset_hash", "model_hash", "version"} <= set(finished["training"])
    assert all(gate["verdict"] == "pass" for gate in finished["gates"])


def test_every_case_of_the_period_was_asked_and_answered_and_logged(finished, orders):
    asked = orders.filter(pl.col("ordered_at").is_between(CUTOFF, MIRRORED_UNTIL, closed="left")).height
    drilled = 5
    assert finished["serving"]["answered_rows"] == asked + drilled
    assert finished["serving"]["failed"] == 0
    assert finished["log"] == {"answered": asked + drilled, "logged": asked + drilled, "lost": 0}
    assert finished["skew"] == {"checked": 5 * asked, "mismatches": 0, "rows": asked}  # a drill names no case
    assert finished["batch"]["predictions"] > 2 * asked  # of two versions, and some cases by more than one job


def test_the_version_climbed_every_step(finished):
    version = finished["training"]["version"]
    moves = [
        (move["from_stage"], move["to_stage"]) for move in finished["rollout"]["moves"] if move["version"] == version
    ]
    drilled = [("registered", "shadow"), ("shadow", "rolled_back"), ("registered", "shadow")]
    assert moves == [*drilled, ("shadow", "canary"), ("canary", "champion")]
    assert finished["rollout"]["aliases"]["champion"] == version
    assert finished["retraining"]["version"] == version + 1


def test_the_holdout_metric_is_that_of_the_held_out_rows(finished, orders):
    reference = load_bundle(Path(finished["training"]["bundle"])).reference()
    found = roc_auc_score(reference["label"].to_numpy(), reference["score"].to_numpy())
    assert finished["training"]["metrics"]["roc_auc"]["value"] == pytest.approx(found, abs=1e-6)
    held_out = orders.filter(
        pl.col("ordered_at").is_between(CUTOFF - timedelta(days=4), CUTOFF, closed="left"), pl.col("known_at") <= CUTOFF
    )
    assert reference.num_rows == held_out.height


def test_served_features_are_what_the_raw_tables_say(stranger, finished, orders):
    """A slow reading of the definition: share late over the day before the full hour, from deliveries known by then."""
    from contracts.predictions import read_predictions

    log = pl.from_arrow(read_predictions(stranger / "data" / "predictions" / "late_delivery"))
    assert isinstance(log, pl.DataFrame)
    deliveries = orders.select("courier_id", "late", "known_at")
    random = np.random.default_rng(1)
    for row in log[random.choice(log.height, 60, replace=False).tolist()].iter_rows(named=True):
        courier, hour = json.loads(row["inputs"])["courier_id"], row["event_timestamp"].replace(minute=0, second=0)
        hour = hour.replace(microsecond=0)
        day = deliveries.filter(
            pl.col("courier_id") == courier, pl.col("known_at") > hour - timedelta(days=1), pl.col("known_at") <= hour
        )["late"]
        assert row["feature.deliveries_24h"] == len(day)
        assert row["feature.late_share_24h"] == pytest.approx(day.mean(), rel=1e-6)


def test_realized_performance_is_that_of_matured_labels(finished, orders, stranger):
    from contracts.predictions import read_predictions

    log = pl.from_arrow(read_predictions(stranger / "data" / "predictions" / "late_delivery"))
    assert isinstance(log, pl.DataFrame)
    scored = log.filter(pl.col("version") == finished["training"]["version"]).join(
        orders, left_on="case_id", right_on="order_id"
    )
    judged = [chunk for chunk in finished["monitoring"]["chunks"] if chunk["settled"]]
    assert judged
    for chunk in judged:
        start, end = (datetime.fromisoformat(chunk[edge]) for edge in ("start", "end"))
        rows = scored.filter(pl.col("ordered_at").is_between(start, end, closed="left"))
        assert chunk["labelled"] == rows.height
        assert chunk["realized"]["value"] == pytest.approx(roc_auc_score(rows["late"], rows["score"]), abs=1e-6)


def test_other_commands_tell_the_same(stranger, finished, skewless):
    assert skewless(stranger, "log", "check")["log"] == finished["log"]
    assert skewless(stranger, "skew")["mismatches"] == 0
    assert skewless(stranger, "rollout", "status")["moves"] == finished["rollout"]["moves"]
    version = finished["training"]["version"]
    moves = skewless(stranger, "rollout", "history", "--version", str(version))["moves"]
    assert moves == [move for move in finished["rollout"]["moves"] if move["version"] == version]
    promoted = {each["name"]: each["verdict"] for each in moves[-1]["evidence"]["checks"]}
    assert promoted["load_test"] == promoted["drill"] == promoted["errors"] == "pass"


def test_where_two_versions_differ_is_told_or_said_not_to_be_known(stranger, finished):
    done = subprocess.run([*SKEWLESS, "-C", str(stranger), "rollout", "differences"], capture_output=True, text=True)
    if finished["rollout"]["moves"][-1]["to_stage"] == "shadow":
        assert done.returncode == 0, done.stderr
        assert "Mean difference" in done.stdout
    else:  # the last step has just begun
        assert done.returncode == 2
        assert "no request was scored by" in done.stderr


def test_a_run_that_was_never_disturbed_has_the_same_hashes(make_stranger, tmp_path, finished, skewless):
    undisturbed = make_stranger(tmp_path / "kitchen")
    subprocess.run([*SKEWLESS, "-C", str(undisturbed), "apply"], check=True, capture_output=True)
    training = skewless(undisturbed, "train", "--as-of", CUTOFF.isoformat())["training"]
    assert training["dataset_hash"] == finished["training"]["dataset_hash"]
    assert training["model_hash"] == finished["training"]["model_hash"]


def test_a_training_that_was_killed_is_marked_so(stranger, finished):
    with closing(sqlite3.connect(stranger / "data" / "mlflow" / "mlflow.db")) as mlflow:
        statuses = Counter(status for (status,) in mlflow.execute("select status from runs"))
    assert statuses["KILLED"] in (1, 2)  # in the middle of training, and perhaps as the retraining began
    assert set(statuses) == {"KILLED", "FINISHED"}


def test_what_the_run_left_behind_can_be_served(stranger, finished, orders, skewless):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*SKEWLESS, "-C", str(stranger), "serve", "--port", str(port), "--clock", "request"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert f"http://127.0.0.1:{port}" in server.stdout.readline()
        at = MIRRORED_UNTIL.isoformat()
        predicted = skewless(stranger, "predict", "--as-of", at)
        assert [each["version"] for each in predicted["versions"]] == sorted(finished["rollout"]["aliases"].values())
        coming = orders.filter(pl.col("ordered_at").is_between(MIRRORED_UNTIL, MIRRORED_UNTIL + timedelta(hours=3)))
        assert predicted["cases"] == coming.height
        row = coming.select("order_id", "courier_id", "km").row(0, named=True) | {"ordered_at": at}
        url = f"http://127.0.0.1:{port}/v1/tasks/late_delivery/predict"
        answer = httpx.post(url, json={"rows": [row]})
        assert answer.status_code == 200
        [prediction] = answer.json()["predictions"]
        assert answer.json()["degraded"] == []
        assert 0 < prediction["score"] < 1
        unheard = httpx.post(url, json={"rows": [row | {"order_id": "unheard of"}]})
        assert unheard.json()["degraded"] == ["rows[0]: fallback: not precomputed"]
        refused = httpx.post(url, json={"rows": [row | {"courier_id": None}]})
        assert refused.status_code == 422
        assert refused.json()["error"]["field"] == "rows[0].courier_id"
        url = f"http://127.0.0.1:{port}"
        loaded = skewless(stranger, "loadtest", "--url", url)["load_test"]
        assert (loaded["requests"], loaded["failed"], loaded["refused"], loaded["kept"]) == (100, 0, 0, True)
        assert Path(loaded["page"]).read_text().count("<circle") == 200
        drilled = skewless(stranger, "rollout", "drill", "--url", url, "--at", at)["drill"]
        assert (drilled["passed"], drilled["version"]) == (True, finished["retraining"]["version"])
        assert drilled["rolled_back_s"] > 0
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 2
        assert str(port) in second.stderr
    finally:
        server.send_signal(signal.SIGTERM)
        status = server.wait(60)
    assert status == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/healthz")
    left = skewless(stranger, "log", "check")["log"]
    of_the_drill = 5  # those of the load test are part of no account
    assert left["answered"] == finished["log"]["answered"] + 2 + of_the_drill == left["logged"]


def test_nothing_is_left_running(finished, killed):
    assert len(killed) > 5
    _, alive = psutil.wait_procs(killed, timeout=60)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []


def test_the_console_shows_what_the_run_left_behind(stranger, finished):
    browser = Browser(build_console(Project(stranger), SystemClock()))
    page = browser.get("/").text
    assert "late_delivery" in page
    audits = read_audits(Project(stranger).open_state(), "late_delivery")  # other tests of this file audit as well
    figures = {each["checked"] for each in (finished["monitoring"]["skew"], *audits)}
    assert any(f"All {checked:,} values of" in page for checked in figures)
    assert f"Version {finished['training']['version']} became champion" in page
    for move in finished["rollout"]["moves"]:
        assert escape(move["reason"]) in page
    for reason in finished["decision"]["reasons"]:
        assert escape(reason) in page
    [newest, *_] = re.findall(r'href="(/tasks/late_delivery/versions/\d+/card)"', page)
    assert "In short" in browser.get(newest).text
