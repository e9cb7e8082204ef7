"""The audit on a real Feast repository: values materialized, read online and logged, against historical retrieval."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.locations import Locations
from contracts.predictions import PredictionRow, append, open_segment
from contracts.task import Task, load_task
from monitoring.recompute import RecomputationError
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
        from asof.repository import apply_repository, open_store

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

    def audit(self) -> SkewReport:
        return audit(self.task, self.locations)

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
    assert found["minutes_mean_3h"].different == 12
    assert found["minutes_mean_3h"].causes == {"stale": 12}
    assert 0 < found["rides_3h"].different <= 12
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


def test_a_service_that_is_not_in_the_registry_is_named(city: City) -> None:
    city.live(1)
    city.task = city.task.model_copy(update={"feature_service": "bikes_v2"})
    with pytest.raises(RecomputationError, match=r"no feature service 'bikes_v2', only bikes_v1\."):
        city.audit()
