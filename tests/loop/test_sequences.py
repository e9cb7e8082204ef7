"""A task on an array feature beside one on numbers and texts, all the way: trained, served by one application, audited,
watched, made again."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from click.testing import CliRunner
from sqlalchemy import insert

from contracts.clock import VirtualClock
from contracts.locations import Locations
from contracts.predictions import read_predictions
from contracts.spine import read_spine
from contracts.state import deployments, open_state
from contracts.task import load_task
from loop.cli import main
from loop.traffic import request_rows

pytest.importorskip("torch", reason="the extra 'sequences' is not installed: see CONTRIBUTING.md")
pytestmark = pytest.mark.slow

CUTOFF = datetime(2024, 1, 25, tzinfo=UTC)
HOURS = 4
PLACES = 8

VIEW = """
from feast.types import Array

courier_last = StreamFeatureView(
    name="courier_last",
    entities=[courier],
    ttl=timedelta(hours=6),
    source=PushSource(name="last_push", batch_source=deliveries),
    timestamp_field="delivered_at",
    schema=[Field(name="last_lates", dtype=Array(Int64))],
    aggregations=[
        Aggregation(column="late", function="last_10", time_window=timedelta(hours=12), name="last_lates")
    ],
    tags={"asof.every": "1h"},
)
streak = FeatureService(name="streak", features=[courier_last, courier_facts[["years", "vehicle"]]])
"""


def skewless(project: Path, *args: str, status: int = 0) -> Any:
    done = CliRunner().invoke(main, ["-C", str(project), *args, "--json"])
    assert done.exit_code == status, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def kitchen(make_stranger, tmp_path_factory) -> Path:
    """The stranger's project with an array view and a second task on it; definitions applied."""
    root: Path = make_stranger(tmp_path_factory.mktemp("sequences") / "kitchen")
    definitions = root / "definitions" / "definitions.py"
    definitions.write_text(definitions.read_text() + VIEW)
    tabular = (root / "tasks" / "late_delivery.toml").read_text().replace("p99_ms = 500", "p99_ms = 50")  # both online
    (root / "tasks" / "late_delivery.toml").write_text(tabular)
    sequence = tabular.replace('name = "late_delivery"', 'name = "late_streak"')
    sequence = sequence.replace('feature_service = "lateness"', 'feature_service = "streak"')
    sequence = sequence.replace('request_fields = ["km"]\n', "").replace("floor = 0.6", "floor = 0.55")
    sequence = sequence.replace("params = { n_estimators = 60 }", f"params = {{ epochs = 3 }}\narray_places = {PLACES}")
    sequence = sequence.replace("min_rows = 100", "min_rows = 50")
    (root / "tasks" / "late_streak.toml").write_text(sequence)
    done = CliRunner().invoke(main, ["-C", str(root), "apply", "late_streak"])
    assert done.exit_code == 0, done.output
    return root


@pytest.fixture(scope="module")
def trained(kitchen) -> dict[str, Any]:
    names = ("late_delivery", "late_streak")
    return {name: skewless(kitchen, "train", name, "--as-of", CUTOFF.isoformat()) for name in names}


@pytest.fixture(scope="module")
def served(kitchen, trained) -> dict[str, int]:
    """Both versions deployed and asked for some hours by one replica; how many answers each task gave."""
    from asof.materialize import Materializer
    from asof.repository import open_store
    from serving.replica import Replica

    tasks = {name: load_task(kitchen / "tasks" / f"{name}.toml") for name in trained}
    engine = open_state(Locations(kitchen / "data").state_url)
    with engine.begin() as connection:
        for name, training in trained.items():
            row = {"task": name, "generation": 1, "champion": 1, "champion_bundle": training["training"]["bundle"]}
            connection.execute(insert(deployments).values(**row, stage="idle", share=0.0, since=CUTOFF))
    materializer = Materializer(open_store(kitchen / "definitions"))
    clock = VirtualClock(CUTOFF)
    replica = Replica(kitchen, kitchen / "data", sorted(tasks), clock, "request")
    answered = dict.fromkeys(tasks, 0)

    async def ask(name: str, rows: list[dict[str, Any]]) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(replica.asgi), base_url="http://x") as client:
            answer = await client.post(f"/v1/tasks/{name}/predict", json={"rows": rows})
            assert answer.status_code == 200, answer.text
            return len(answer.json()["predictions"])

    try:
        for hour in range(HOURS):
            start = CUTOFF + timedelta(hours=hour)
            materializer.run(datetime(2000, 1, 1, tzinfo=UTC), start)
            for name, task in tasks.items():
                spine = read_spine(task, start=start, end=start + timedelta(hours=1), known_at=start)
                answered[name] += asyncio.run(ask(name, request_rows(task, spine)))
            clock.advance_to(start + timedelta(hours=1))
    finally:
        replica.close()
    return answered


def test_the_check_of_the_task_knows_the_array_and_what_learns_it(kitchen):
    found = skewless(kitchen, "task", "check", "late_streak")
    assert (found["ok"], found["problems"]) == (True, [])
    assert found["features"] == {"last_lates": "array", "vehicle": "text", "years": "number"}
    assert found["choice"]["learner"]["used"] == "torch_sequence"


def test_the_audit_of_training_data_knows_which_view_a_place_is_of(kitchen):
    found = skewless(kitchen, "audit", "late_streak", "--as-of", CUTOFF.isoformat())
    views = {each["name"]: each["view"] for each in found["features"]}
    assert views["last_lates[-1]"] == views[f"last_lates[-{PLACES}]"] == "courier_last"
    covered = {each["view"]: each["covered"] for each in found["sources"]}
    assert 0.9 < covered["courier_last"] < 1.0  # not the first hours of the first day


def test_without_pytorch_the_check_says_what_to_install(kitchen, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "training.learners.torch_sequence", raising=False)
    found = skewless(kitchen, "task", "check", "late_streak", status=1)
    (problem,) = found["problems"]
    assert problem["field"] == "training.learner"
    assert "needs torch, which is not installed" in problem["fact"]
    assert "extra `sequences`" in problem["hint"]


def test_it_is_trained_audited_and_gated_as_any_other(trained):
    training, gates = trained["late_streak"]["training"], trained["late_streak"]["gates"]
    assert training["status"] == "candidate", gates
    assert {gate["name"]: gate["verdict"] for gate in gates}["parity"] == "pass"
    assert training["metrics"]["roc_auc"]["low"] > 0.55


def test_one_application_answers_both_tasks_and_no_value_differs_from_training(kitchen, served):
    assert served["late_streak"] == served["late_delivery"] > 60
    for name, values in (("late_streak", PLACES + 2), ("late_delivery", 5)):
        found = skewless(kitchen, "skew", name)
        assert (found["rows"], found["checked"], found["mismatches"]) == (served[name], served[name] * values, 0)


def test_the_log_holds_the_places_that_the_raw_deliveries_say(kitchen, served):
    log = pl.from_arrow(read_predictions(Locations(kitchen / "data").predictions("late_streak")))
    assert isinstance(log, pl.DataFrame)
    deliveries = pl.read_parquet(kitchen / "data" / "events" / "deliveries.parquet").sort("delivered_at")
    for row in log.iter_rows(named=True):
        hour = row["event_timestamp"].replace(minute=0, second=0, microsecond=0)
        own = deliveries.filter(pl.col("courier_id") == json.loads(row["inputs"])["courier_id"])
        seen = own.filter(pl.col("delivered_at") > hour - timedelta(hours=12), pl.col("delivered_at") <= hour)
        places = [None] * PLACES + seen["late"].to_list()
        assert [row[f"feature.last_lates[-{place}]"] for place in range(PLACES, 0, -1)] == places[-PLACES:]


def test_what_is_watched_of_the_array_is_its_length_mean_and_last_value(kitchen, served):
    report = skewless(kitchen, "monitor", "late_streak", "--as-of", (CUTOFF + timedelta(hours=12)).isoformat())
    (chunk,) = report["monitoring"]["chunks"]
    arrays = ["last_lates[length]", "last_lates[mean]", "last_lates[last]"]
    assert [each["column"] for each in chunk["drift"]] == [*arrays, "years", "vehicle"]
    assert [each["feature"] for each in chunk["quality"]] == [*arrays, "years", "vehicle"]
    assert report["monitoring"]["skew"]["mismatches"] == 0


def test_it_is_made_again_to_the_same_bytes(kitchen, trained):
    found = skewless(kitchen, "reproduce", "late_streak@1")
    assert found["reproduced"]
    assert {each["name"] for each in found["results"] if each["equal"]} >= {"dataset_hash", "model_hash", "roc_auc"}
