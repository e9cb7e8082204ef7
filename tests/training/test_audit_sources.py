"""The audit through a real Feast repository: one service without a fault, and views with one fault each."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from asof.repository import apply_repository
from contracts.task import Task
from training.audit import audit
from training.retrieval import build_frame

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = 20
CUTOFF = START + timedelta(days=DAYS)
ROWS = 1500

YAML = """
project: depots
provider: local
registry: registry.db
online_store: {type: sqlite, path: online.db}
offline_store: {type: file}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, StreamFeatureView, ValueType
from feast.aggregation import Aggregation
from feast.types import Float64, Int64, String

depot = Entity(name="depot", join_keys=["depot"], value_type=ValueType.STRING)
parcel = Entity(name="parcel", join_keys=["parcel"], value_type=ValueType.STRING)


def view(name, entity, ttl, dtype=Float64, created=None):
    source = FileSource(path=f"{name}.parquet", timestamp_field="at", created_timestamp_column=created)
    return FeatureView(name=name, entities=[entity], ttl=ttl, source=source, schema=[Field(name=name, dtype=dtype)])


load = view("load", depot, timedelta(hours=6))
loads = FileSource(name="loads_table", path="load.parquet", timestamp_field="at")
busy = StreamFeatureView(
    name="busy",
    entities=[depot],
    ttl=timedelta(hours=6),
    source=PushSource(name="loads", batch_source=loads),
    timestamp_field="at",
    schema=[Field(name="load_mean_24h", dtype=Float64)],
    aggregations=[Aggregation(column="load", function="mean", time_window=timedelta(hours=24), name="load_mean_24h")],
)
dead = view("dead", depot, timedelta(hours=6))
dead_facts = view("dead_facts", depot, timedelta(0))
hint = view("hint", parcel, timedelta(hours=12))
answer = view("answer", parcel, timedelta(hours=12))
cut = view("cut", depot, timedelta(days=2), dtype=Int64)
whole = view("whole", depot, timedelta(days=2), dtype=Int64)
worded = view("worded", depot, timedelta(days=2))
slow = view("slow", depot, timedelta(days=9), created="told_at")
nowhere = view("nowhere", depot, timedelta(days=2))

clean = FeatureService(name="clean", features=[load, busy])
faulty = FeatureService(
    name="faulty", features=[load, busy, dead, dead_facts, hint, answer, cut, whole, worded, slow, nowhere]
)
"""


def instants(hours):
    return [START + timedelta(hours=float(hour)) for hour in hours]


def land(root, name, columns, **times):
    frame = pl.DataFrame(columns | {key: instants(hours) for key, hours in times.items()})
    frame.with_columns(pl.col(times).dt.cast_time_unit("us")).write_parquet(root / f"{name}.parquet")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Parcels and what is known of their depots; `load` alone carries an honest signal."""
    root, rng = tmp_path_factory.mktemp("depots"), np.random.default_rng(11)
    hours = np.arange(-24, DAYS * 24)
    depots = np.repeat(list("abcd"), len(hours))
    every_hour = np.tile(hours, 4)
    load = rng.normal(size=len(depots))

    def hourly(name, values, until=DAYS * 24, **more):
        kept = every_hour < until
        more = {key: each[kept] for key, each in more.items()}
        land(root, name, {"depot": depots[kept], name: np.asarray(values)[kept]}, at=every_hour[kept], **more)

    hourly("load", load)
    hourly("dead", load * 2 + rng.normal(size=len(load)), until=(DAYS - 5) * 24)
    early = (every_hour % 24 == 0) & (every_hour < 240)
    facts = {"depot": depots[early], "dead_facts": rng.normal(size=early.sum())}
    land(root, "dead_facts", facts, at=every_hour[early])
    hourly("cut", rng.normal(size=len(load)) * 20)
    hourly("whole", np.round(rng.normal(size=len(load)) * 20))
    hourly("worded", [f"{value:.3f}" for value in rng.normal(size=len(load))])
    late = np.where(rng.random(len(load)) < 0.3, 60, 0)
    hourly("slow", rng.normal(size=len(load)), told_at=every_hour + late)
    land(root, "nowhere", {"depot": [d.upper() for d in depots], "nowhere": load}, at=every_hour)
    asked = np.sort(rng.uniform(0, DAYS * 24, ROWS))
    where = rng.integers(0, 4, ROWS)
    known = load.reshape(4, -1)[where, np.searchsorted(hours, asked, side="right") - 1]
    outcome = (known + 1.6 * rng.normal(size=ROWS) > 0).astype(int)
    parcels = [f"p{i}" for i in range(ROWS)]
    hinted = np.where(rng.random(ROWS) < 0.8, outcome, 1 - outcome) + rng.normal(size=ROWS) * 0.01
    land(root, "hint", {"parcel": parcels, "hint": hinted}, at=asked)
    land(root, "answer", {"parcel": parcels, "answer": outcome.astype(float)}, at=asked)
    spine = {"parcel": parcels, "depot": np.array(list("abcd"))[where], "late": outcome}
    land(root, "spine", spine, asked_at=asked, told_at=asked)
    (root / "feature_store.yaml").write_text(YAML)
    (root / "definitions.py").write_text(DEFINITIONS)
    (root / "late.sql").write_text("select * from spine")
    apply_repository(root)
    return root


@pytest.fixture(scope="module")
def look(repository):
    def run(service, **limits):
        task = Task.model_validate(
            {
                "name": "late_parcel",
                "kind": "binary",
                "feature_repo": repository,
                "feature_service": service,
                "spine": {
                    "sql": repository / "late.sql",
                    "tables": {"spine": repository / "spine.parquet"},
                    "id": "parcel",
                    "event_timestamp": "asked_at",
                    "keys": ["parcel", "depot"],
                    "label": "late",
                    "label_known_at": "told_at",
                },
                "success": {"metric": "roc_auc", "floor": 0.6, "cost": {"false_alarm": 1, "missed": 3}},
                "budget": {"p99_ms": 50, "requests_per_second": 10},
                "training": {"window": "20d", "validation": "4d", "holdout": "4d"},
                "audit": limits,
                "monitoring": {"performance_floor": 0.6},
            }
        )
        frame = build_frame(task, cutoff=CUTOFF, progress=lambda _: None)
        return audit(task, frame, cutoff=CUTOFF, progress=lambda _: None)

    return run


@pytest.fixture(scope="module")
def faulty(look):
    return look("faulty")


def found(report, subject):
    mine = [finding for finding in report.findings if finding.subject == subject]
    return {(finding.rule, finding.severity): finding.evidence for finding in mine}


def test_a_service_without_a_fault_has_no_finding(look):
    report = look("clean")
    assert report.findings == ()
    [load] = [feature for feature in report.features if feature.name == "load"]
    assert load.auc > 0.6
    assert (load.view, load.declared) == ("load", "Float64")


@pytest.mark.parametrize(
    ("subject", "rules", "evidence"),
    [
        ("load", set(), ""),
        ("busy", set(), ""),
        ("whole", {("type", "info")}, "declared Int64, its source holds DOUBLE, all whole"),
        ("cut", {("type", "blocking")}, "values lose their fraction"),
        ("worded", {("type", "blocking")}, "declared Float64, its source holds VARCHAR"),
        ("dead", {("stale", "blocking"), ("stopped", "blocking")}, "5d 1h old, more than 12h (2 TTLs)"),
        ("dead_facts", {("stale", "blocking")}, "11d old, more than 10d (10 times the longest gap in the window)"),
        ("hint", {("leak_vanishing", "blocking")}, "1d earlier 0.5"),
        ("answer", {("leak_perfect", "blocking")}, "alone it has ROC AUC 1.0"),
        ("slow", {("late", "warning")}, "became known more than 1d after their event"),
        ("nowhere", {("coverage", "blocking"), ("empty", "blocking")}, "0.0% of rows have any feature of it"),
    ],
)
def test_each_view_has_the_findings_of_its_own_fault(faulty, subject, rules, evidence):
    told = found(faulty, subject)
    assert set(told) == rules
    assert evidence in "; ".join(told.values())


def test_the_sources_are_seen_as_they_were_known_at_the_cutoff(faulty, repository):
    rows = pl.read_parquet(repository / "slow.parquet").rows(named=True)
    known = [row for row in rows if max(row["at"], row["told_at"]) <= CUTOFF]
    inside = [row for row in known if row["at"] >= START]
    late = [row for row in inside if row["told_at"] - row["at"] > timedelta(days=1)]
    [slow] = [source for source in faulty.sources if source.view == "slow"]
    assert (slow.rows, slow.in_window, slow.late) == (len(known), len(inside), len(late))
    assert slow.age == (CUTOFF - max(row["at"] for row in known)) // timedelta(microseconds=1)


def test_the_task_may_say_how_old_a_source_may_be(look):
    allowed = {"dead": "6d", "dead_facts": "20d", "load": "10m"}
    stale = {finding.subject for finding in look("faulty", stale_after=allowed).findings if finding.rule == "stale"}
    assert stale == {"load"}
