"""The audit on a real Feast repository: values materialized, read online and logged, against historical retrieval."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.locations import Locations
from contracts.predictions import PredictionRow, append, open_segment, read_predictions
from contracts.task import Task, load_task
from monitoring.recompute import Recomputation, RecomputationError
from monitoring.skew import audit
from monitoring.skew_report import FeatureSkew, SkewReport

pytestmark = pytest.mark.slow

HOUR = timedelta(hours=1)
MORNING = datetime(2024, 5, 6, 6, tzinfo=UTC)
INSTANT = pa.timestamp("us", tz="UTC")
STATIONS = range(1, 7)
NUMBERS = ["rides_3h", "minutes_mean_3h", "docks", "rides_per_dock", "party"]
TEXTS = ["zone"]

DEFINITIONS = """
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, RequestSource, StreamFeatureView
from feast import ValueType
from feast.aggregation import Aggregation
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String

station = Entity(name="station", join_keys=["station"], value_type=ValueType.INT64)


def events(name):
    return FileSource(
        name=name, path=f"../{name}.parquet", timestamp_field="event_timestamp", created_timestamp_column="created"
    )


W = timedelta(hours=3)
rides = StreamFeatureView(
    name="rides",
    entities=[station],
    ttl=timedelta(days=1),
    source=PushSource(name="rides_push", batch_source=events("rides_raw")),
    timestamp_field="event_timestamp",
    schema=[Field(name="rides_3h", dtype=Int64), Field(name="minutes_mean_3h", dtype=Float64)],
    aggregations=[
        Aggregation(column="minutes", function="count", time_window=W, name="rides_3h"),
        Aggregation(column="minutes", function="mean", time_window=W, name="minutes_mean_3h"),
    ],
    tags={"asof.every": "1h"},
)
status = FeatureView(
    name="status",
    entities=[station],
    ttl=timedelta(0),
    source=events("status_raw"),
    schema=[Field(name="docks", dtype=Int64), Field(name="zone", dtype=String)],
    tags={"asof.every": "1h"},
)


@on_demand_feature_view(
    sources=[rides, status, RequestSource(name="asked", schema=[Field(name="people", dtype=Int64)])],
    schema=[Field(name="rides_per_dock", dtype=Float64), Field(name="party", dtype=Int64)],
    mode="python",
)
def load(inputs):
    pairs = zip(inputs["rides_3h"], inputs["docks"])
    return {
        "rides_per_dock": [None if r is None or d is None else r / d for r, d in pairs],
        "party": [None if n is None else int(n > 1) for n in inputs["people"]],
    }


service = FeatureService(name="bikes_v1", features=[rides, status, load])
"""
TASK = """
name = "full_dock"
kind = "binary"
feature_repo = "../features"
feature_service = "bikes_v1"
[spine]
sql = "full_dock.sql"
tables = {}
id = "ask"
event_timestamp = "asked_at"
keys = ["station"]
request_fields = ["people"]
label = "full"
label_known_at = "known_at"
[success]
metric = "roc_auc"
floor = 0.6
cost = { false_alarm = 1, missed = 5 }
[budget]
p99_ms = 50
requests_per_second = 10
[monitoring]
performance_floor = 0.6
"""


class City:
    """A project whose online store is filled hour by hour, and whose log holds what was read from it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "features").mkdir(parents=True)
        (root / "tasks").mkdir()
        (root / "tasks" / "full_dock.sql").write_text("select 1")
        (root / "tasks" / "full_dock.toml").write_text(TASK)
        (root / "features" / "definitions.py").write_text(DEFINITIONS)
        (root / "features" / "feature_store.yaml").write_text(
            "project: bikes\nprovider: local\nregistry: registry.db\n"
            "online_store: {type: sqlite, path: online.db}\nentity_key_serialization_version: 3\n"
        )
        _land(root)
        self.task: Task = load_task(root / "tasks" / "full_dock.toml")
        self.locations = Locations(root / "data")
        self.apply()

    def apply(self) -> None:
        from asof.repository import apply_repository, open_store

        apply_repository(self.task.feature_repo)
        self.store: Any = open_store(self.task.feature_repo)

    def live(self, hours: int, *, skip: int | None = None, lose_status_of: int | None = None) -> None:
        """Materialize each hour's boundary and answer within the hour; `skip` names an hour that was forgotten."""
        from asof.materialize import Materializer

        materializer = Materializer(self.store)
        kinds = [(name, "number") for name in NUMBERS] + [(name, "text") for name in TEXTS]
        segment = open_segment(self.locations.predictions("full_dock") / "a.sqlite", kinds)
        for hour in range(hours):
            boundary = MORNING + hour * HOUR
            if hour != skip:
                materializer.run(boundary - (12 * HOUR if hour == 0 else HOUR), boundary)
            if lose_status_of is not None and hour == 0:
                self._lose(lose_status_of)
            append(segment, self._answers(hour, boundary))
        segment.close()

    def audit(self, **how: Any) -> SkewReport:
        return audit(self.task, self.locations, **how)

    def slow_audit(self) -> dict[str, dict[str, str]]:
        """Feature to request to what is wrong with it, one value after the other, as the rules read."""
        log = read_predictions(self.locations.predictions("full_dock")).to_pylist()
        entities = [json.loads(row["inputs"]) | {"event_timestamp": row["event_timestamp"]} for row in log]
        service = self.store.get_feature_service("bikes_v1")
        wrong: dict[str, dict[str, str]] = {}
        for row, entity in zip(log, entities, strict=True):
            asked = pa.Table.from_pylist([entity])
            (offline,) = self.store.get_historical_features(entity_df=asked, features=service).to_arrow().to_pylist()
            for name in NUMBERS + TEXTS:
                verdict = _slow_verdict(row[f"feature.{name}"] or None, offline[name], name in TEXTS)
                if name in NUMBERS and row[f"feature.{name}"] == 0:
                    verdict = _slow_verdict(0.0, offline[name], False)
                if verdict:
                    wrong.setdefault(name, {})[row["request_id"]] = verdict
        return wrong

    def tamper(self, change: Callable[[int, np.ndarray], np.ndarray | None]) -> None:
        """Change the numbers of logged rows; `change` gets a row's place and its numbers."""
        path = self.locations.predictions("full_dock") / "a.sqlite"
        with closing(sqlite3.connect(path)) as connection, connection:
            rows = connection.execute("select request_id, numbers from predictions").fetchall()
            place = {request: i for i, request in enumerate(sorted(r for r, _ in rows))}
            for request, blob in rows:
                changed = change(place[request], np.frombuffer(blob, "<f4").copy())
                if changed is not None:
                    values = (changed.astype("<f4").tobytes(), request)
                    connection.execute("update predictions set numbers = ? where request_id = ?", values)

    def _answers(self, hour: int, boundary: datetime) -> list[PredictionRow]:
        asked = [{"station": station, "people": station % 3} for station in STATIONS for _ in range(2)]
        service = self.store.get_feature_service("bikes_v1")
        found = self.store.get_online_features(features=service, entity_rows=asked)
        values, proto = found.to_dict(), found.proto
        names = list(proto.metadata.feature_names.val)
        times = [
            {
                view: proto.results[names.index(feature)].event_timestamps[i].ToMicroseconds() or None
                for view, feature in (("rides", "rides_3h"), ("status", "docks"))
            }
            for i in range(len(asked))
        ]
        return [
            PredictionRow(
                request_id=f"{hour}-{i}",
                position=0,
                variant="champion",
                version=1,
                case_id=None,
                event_timestamp=boundary + i * timedelta(minutes=4, microseconds=1),
                answered_at=boundary,
                inputs=asked[i],
                numbers=np.array([np.nan if values[n][i] is None else values[n][i] for n in NUMBERS], np.float32),
                texts=[values[n][i] or "" for n in TEXTS],
                view_times=times[i],
                score=0.5,
                decision=1,
                latency_ms=1.0,
            )
            for i in range(len(asked))
        ]

    def _lose(self, station: int) -> None:
        from feast.infra.key_encoding_utils import serialize_entity_key
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value

        key = EntityKey(join_keys=["station"], entity_values=[Value(int64_val=station)])
        store = self.store._get_provider().online_store
        connection = store._get_conn(self.store.config)
        found = connection.execute(
            'delete from "bikes_status" where entity_key = ?', [serialize_entity_key(key, 3)]
        ).rowcount
        connection.commit()
        assert found == 2, "both features of one row"


def _slow_verdict(online: float | str | None, offline: float | str | None, text: bool) -> str:
    if not text and isinstance(online, float) and np.isnan(online):
        online = None
    if text:
        offline = offline or None
    if online is None or offline is None:
        return "" if online is offline else "missing" if online is None else "extra"
    if text:
        return "" if online == offline else "different"
    served, seen = np.float32(online), np.float32(offline)
    near = [served] if isinstance(offline, int) else [np.nextafter(served, np.float32(d)) for d in (-np.inf, np.inf)]
    return "" if seen in (served, *near) else "different"


def _land(root: Path) -> None:
    random = np.random.default_rng(3)
    start, size = int((MORNING - 12 * HOUR).timestamp() * 1e6), 1500
    at = np.sort(random.integers(start, start + int(24 * 3600e6), size))
    rides = {
        "station": random.choice(STATIONS, size),
        "minutes": random.normal(20, 7, size),
        "event_timestamp": pa.array(at).cast(INSTANT),
        # A ride is reported up to half an hour late: it must not be counted before.
        "created": pa.array(at + random.integers(0, 1_800_000_000, size)).cast(INSTANT),
    }
    pq.write_table(pa.table(rides), root / "rides_raw.parquet")
    hours = start + 3_600_000_000 * np.repeat(np.arange(0, 24, 5), len(STATIONS))
    status = {
        "station": np.tile(STATIONS, 5),
        "docks": random.integers(10, 40, len(hours)),
        "zone": random.choice(["north", "south", "harbour"], len(hours)),
        "event_timestamp": pa.array(hours).cast(INSTANT),
        "created": pa.array(hours).cast(INSTANT),
    }
    pq.write_table(pa.table(status), root / "status_raw.parquet")


@pytest.fixture
def city(tmp_path: Path) -> City:
    return City(tmp_path)


def by_name(report: SkewReport) -> dict[str, FeatureSkew]:
    return {feature.name: feature for feature in report.features}


def test_what_was_materialized_on_time_is_what_training_sees(city: City) -> None:
    city.live(5)
    report = city.audit()
    assert report.rows == 5 * 12
    assert report.checked == 5 * 12 * len(NUMBERS + TEXTS)
    assert report.mismatches == 0, report.to_dict()
    assert report.unknown == ()


def test_a_forgotten_materialization_is_found_and_called_stale(city: City) -> None:
    city.live(4, skip=2)
    found = by_name(city.audit())
    # Two rows an hour are asked about before the task's five minutes for a materialization are over.
    assert found["minutes_mean_3h"].different == 10
    assert found["minutes_mean_3h"].causes == {"stale": 10}
    assert found["minutes_mean_3h"].not_judged == {"settling": 2}
    assert found["minutes_mean_3h"].checked == 48 - 2
    assert 0 < found["rides_3h"].different <= 10
    assert set(found["rides_per_dock"].causes) == {"stale"}
    assert (found["docks"].mismatches, found["zone"].mismatches, found["party"].mismatches) == (0, 0, 0)
    forgotten = MORNING + 2 * HOUR
    for example in found["minutes_mean_3h"].examples:
        assert forgotten <= example.event_timestamp < forgotten + HOUR
        assert example.view_times == {"rides": forgotten - HOUR}


def test_a_row_that_never_reached_the_online_store_is_found_and_called_absent(city: City) -> None:
    city.live(1, lose_status_of=4)
    found = by_name(city.audit())
    for name in ("docks", "zone", "rides_per_dock"):
        assert (found[name].missing, found[name].different, found[name].extra) == (2, 0, 0)
        assert found[name].causes == {"absent": 2}
        assert found[name].examples[0].online is None
    assert found["rides_3h"].mismatches == 0


def agrees(report: SkewReport, slow: dict[str, dict[str, str]]) -> None:
    """Every mismatch the slow audit finds is found, at its row, and no other."""
    for feature in report.features:
        wrong = slow.get(feature.name, {})
        counted = {"different": feature.different, "missing": feature.missing, "extra": feature.extra}
        assert counted == {kind: list(wrong.values()).count(kind) for kind in counted}, feature.name
        shown = [each.request_id for each in feature.examples]
        assert set(shown) <= set(wrong)
        assert len(shown) == min(5, len(wrong))
    assert report.mismatches == sum(map(len, slow.values()))


def of(name: str) -> int:
    return NUMBERS.index(name)


def steps(value: np.float32, count: int) -> np.float32:
    for _ in range(count):
        value = np.nextafter(value, np.float32(np.inf))
    return value


def test_each_fault_injected_into_a_real_log_is_found_at_its_row_and_nothing_else(city: City) -> None:
    city.live(4)
    whole = city.root / "whole"
    shutil.copytree(city.locations.predictions("full_dock"), whole)

    def changed(name: str, row: int, to: Callable[[np.float32], Any]) -> Callable[[int, np.ndarray], Any]:
        def change(place: int, numbers: np.ndarray) -> np.ndarray | None:
            if place != row:
                return None
            numbers[of(name)] = to(numbers[of(name)])
            return numbers

        return change

    def found_after(change: Callable[[int, np.ndarray], Any]) -> dict[str, dict[str, str]]:
        folder = city.locations.predictions("full_dock")
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        city.tamper(change)
        slow = city.slow_audit()
        agrees(city.audit(), slow)
        return slow

    ids = sorted(f"{hour}-{i}" for hour in range(4) for i in range(12))
    assert found_after(lambda *_: None) == {}
    for row, name, to, kind in (
        (7, "minutes_mean_3h", lambda value: value + 1, "different"),
        (11, "rides_per_dock", lambda value: steps(value, 2), "different"),
        (20, "docks", lambda value: steps(value, 1), "different"),  # a count is never nearly right
        (31, "rides_3h", lambda _: np.nan, "missing"),
    ):
        assert found_after(changed(name, row, to)) == {name: {ids[row]: kind}}
    assert found_after(changed("minutes_mean_3h", 7, lambda value: steps(value, 1))) == {}
    shifted = found_after(lambda _, numbers: np.roll(numbers, 1))
    assert set(shifted) == set(NUMBERS)
    assert len(shifted["minutes_mean_3h"]) == 48


def test_a_row_that_landed_late_but_claims_to_have_been_known_is_found(city: City) -> None:
    """Its created timestamp lies: training sees what serving could not have."""
    city.live(4)
    path = city.root / "rides_raw.parquet"
    rides = pq.read_table(path)
    honest = {"event_timestamp": MORNING + HOUR / 2, "created": MORNING + 30 * HOUR}
    lying = {"event_timestamp": MORNING + HOUR / 2, "created": MORNING + HOUR / 2}
    for late, expected in ((honest, set()), (lying, {f"{hour}-{i}" for hour in (1, 2, 3) for i in (4, 5)})):
        row = pa.Table.from_pylist([{"station": 3, "minutes": 500.0} | late], schema=rides.schema)
        pq.write_table(pa.concat_tables([rides, row]), path)
        slow = city.slow_audit()
        assert {request for wrong in slow.values() for request in wrong} == expected
        agrees(city.audit(), slow)


def test_values_served_past_their_ttl_are_found(city: City) -> None:
    """Logged without a TTL, audited by definitions that have one of three hours: status is from 4 o'clock until 9."""
    city.live(4)
    definitions = city.root / "features" / "definitions.py"
    status = definitions.read_text().replace("ttl=timedelta(0)", "ttl=timedelta(hours=3)")
    definitions.write_text(status)
    before = Recomputation(city.store, "bikes_v1").fingerprint
    city.apply()
    slow = city.slow_audit()
    old = {f"{hour}-{i}" for hour in (1, 2) for i in range(12)} - {
        "1-0"
    }  # at seven sharp it is not older than three hours
    assert {name: set(wrong) for name, wrong in slow.items()} == dict.fromkeys(("docks", "zone", "rides_per_dock"), old)
    assert set(slow["docks"].values()) == {"extra"}
    report = city.audit()
    agrees(report, slow)
    assert by_name(report)["docks"].causes == {"expired": 23}
    assert report.not_judged == {}  # though each was right at the boundary before
    # A version that was compiled from the definitions before is not held against today's.
    spared = city.audit(fingerprints={1: before})
    assert (spared.rows, spared.checked, spared.set_aside) == (0, 0, {"other definitions": 48})


def test_what_the_source_no_longer_holds_is_counted_apart(city: City) -> None:
    """Raw data older than eight o'clock was dropped after serving: nobody can say what was right before."""
    city.live(5)
    for name in ("rides_raw", "status_raw"):
        path = city.root / f"{name}.parquet"
        rows = pq.read_table(path)
        kept = rows["event_timestamp"].to_numpy() >= np.datetime64((MORNING + 2 * HOUR).replace(tzinfo=None))
        pq.write_table(rows.filter(pa.array(kept)), path)
    report = city.audit()
    assert report.mismatches == 0, report.to_dict()
    slow = city.slow_audit()
    assert report.not_judged == {"source gone": sum(map(len, slow.values()))}
    assert slow
    for feature in report.features:
        assert feature.checked == report.rows - len(slow.get(feature.name, {}))


def test_the_boundary_before_is_spared_only_while_it_may_be_late(city: City) -> None:
    """Rows of an hour whose materialization came late are spared up to the task's allowance, and named."""
    city.live(4, skip=2)
    total = sum(map(len, city.slow_audit().values()))
    last = None
    for minutes, rows in ((1, 1), (5, 2), (44, 11), (60, 12)):
        monitoring = city.task.monitoring.model_copy(update={"settling": timedelta(minutes=minutes)})
        city.task = city.task.model_copy(update={"monitoring": monitoring})
        report = city.audit()
        mean = by_name(report)["minutes_mean_3h"]
        assert (mean.not_judged, mean.different) == ({"settling": rows}, 12 - rows)
        assert report.mismatches + report.not_judged.total() == total
        assert last is None or report.mismatches < last
        last = report.mismatches


def test_a_wrong_value_is_not_spared_for_being_early(city: City) -> None:
    city.live(4)
    city.tamper(lambda place, numbers: numbers + 1 if place in (0, 12, 24) else None)  # at the boundary itself
    report = city.audit()
    agrees(report, city.slow_audit())
    assert report.not_judged == {}


def test_a_service_that_is_not_in_the_registry_is_named(city: City) -> None:
    city.live(1)
    city.task = city.task.model_copy(update={"feature_service": "bikes_v2"})
    with pytest.raises(RecomputationError, match=r"no feature service 'bikes_v2', only bikes_v1\."):
        city.audit()
