"""A small courier service: will a parcel arrive late? Its Feast repository, task, bundles, and what serving needs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

NOW = datetime(2024, 3, 5, 10, 30, tzinfo=UTC)

DEFINITIONS = """
from datetime import timedelta

import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, RequestSource, StreamFeatureView
from feast import ValueType
from feast.aggregation import Aggregation
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bool, Float32, Float64, Int64, String, UnixTimestamp

depot = Entity(name="depot", join_keys=["depot_id"], value_type=ValueType.STRING)
courier = Entity(name="courier", join_keys=["courier_id"], value_type=ValueType.INT64)


def source(name):
    return FileSource(name=name, path=f"data/{name}.parquet", timestamp_field="seen_at",
                      created_timestamp_column="created")


weather = FeatureView(
    name="weather", entities=[depot], ttl=timedelta(hours=3), source=source("weather"),
    tags={"asof.every": "1h"},
    schema=[Field(name="depot_id", dtype=String), Field(name="temperature", dtype=Float32),
            Field(name="storm", dtype=Bool), Field(name="sky", dtype=String)],
)
person = FeatureView(
    name="person", entities=[courier], ttl=timedelta(0), source=source("person"),
    schema=[Field(name="courier_id", dtype=Int64), Field(name="age", dtype=Int64),
            Field(name="rating", dtype=Float64), Field(name="hired", dtype=UnixTimestamp)],
)
pair = FeatureView(
    name="pair", entities=[depot, courier], ttl=timedelta(days=1), source=source("pair"),
    schema=[Field(name="depot_id", dtype=String), Field(name="courier_id", dtype=Int64),
            Field(name="trips", dtype=Int64)],
)
city = FeatureView(
    name="city", entities=[], ttl=timedelta(hours=12), source=source("city"),
    schema=[Field(name="city_load", dtype=Float64)],
)
load = StreamFeatureView(
    name="load", entities=[courier], ttl=timedelta(hours=2), online=True, timestamp_field="seen_at",
    source=PushSource(name="load_push", batch_source=source("load")),
    tags={"asof.every": "1h"},
    schema=[Field(name="courier_id", dtype=Int64), Field(name="load_count_1h", dtype=Int64),
            Field(name="load_mean_1h", dtype=Float64)],
    aggregations=[
        Aggregation(column="kilos", function="count", time_window=timedelta(hours=1), name="load_count_1h"),
        Aggregation(column="kilos", function="mean", time_window=timedelta(hours=1), name="load_mean_1h"),
    ],
)
asked = RequestSource(name="asked", schema=[Field(name="ready_at", dtype=UnixTimestamp),
                                            Field(name="weight", dtype=Float64),
                                            Field(name="pieces", dtype=Int64),
                                            Field(name="fragile", dtype=Bool),
                                            Field(name="label", dtype=String)])


@on_demand_feature_view(
    sources=[weather, person, asked], mode="python",
    schema=[Field(name="heat", dtype=Float64), Field(name="tenure_days", dtype=Float64),
            Field(name="label_or_sky", dtype=String)],
)
def derived(inputs):
    heat, tenure, text = [], [], []
    for t, w in zip(inputs["weather__temperature"], inputs["weight"]):
        heat.append(None if t is None or w is None else t * 2 + w)
    for hired, ready in zip(inputs["hired"], inputs["ready_at"]):
        tenure.append(None if hired is None or ready is None else (ready - hired).total_seconds() / 86400)
    for label, sky in zip(inputs["label"], inputs["sky"]):
        text.append(label if label is not None else sky)
    return {"heat": heat, "tenure_days": tenure, "label_or_sky": text}


@on_demand_feature_view(
    sources=[pair, asked], mode="pandas", schema=[Field(name="kilos_a_trip", dtype=Float64)],
)
def ratios(frame: pd.DataFrame) -> pd.DataFrame:
    out = pd.DataFrame()
    out["kilos_a_trip"] = frame["weight"].astype("float64") / frame["trips"].astype("float64")
    return out


@on_demand_feature_view(
    sources=[asked], mode="python", singleton=True, schema=[Field(name="crowd", dtype=Int64)],
)
def crowded(row):
    pieces = row["pieces"]
    if isinstance(pieces, list):
        return {"crowd": [None if each is None else each * 10 for each in pieces]}
    return {"crowd": None if pieces is None else pieces * 10}


delay_v1 = FeatureService(
    name="delay_v1",
    features=[weather, person[["age", "rating"]], pair, city, load, derived, ratios, crowded],
)
alias_v1 = FeatureService(
    name="alias_v1",
    features=[weather.with_name("far_weather").with_join_key_map({"depot_id": "target_id"}), person[["age"]]],
)
small_v1 = FeatureService(name="small_v1", features=[weather[["temperature"]], person[["age"]]])
broken_v1 = FeatureService(name="broken_v1", features=[person])
"""

YAML = """
project: couriers
provider: local
registry: data/registry.db
online_store: ONLINE_STORE
offline_store: {type: dask}
entity_key_serialization_version: 3
"""

TASK = """
name = "parcel_late"
kind = "binary"
description = "Will the parcel be late?"
feature_repo = "../features"
feature_service = "delay_v1"

[spine]
sql = "parcel_late.sql"
tables = {{}}
id = "parcel"
event_timestamp = "asked_at"
keys = ["depot_id", "courier_id"]
request_fields = ["ready_at", "weight", "pieces", "fragile", "label"]
label = "late"
label_known_at = "known_at"

[success]
metric = "roc_auc"
floor = 0.6
cost = {{false_alarm = 1, missed = 3}}

[budget]
p99_ms = 50
requests_per_second = 100

[serving]
max_rows = 200
max_body_bytes = 65536
refuse_unknown = ["depot_id"]

[monitoring]
performance_floor = 0.6
"""

INPUTS = (
    "temperature",
    "storm",
    "sky",
    "age",
    "rating",
    "trips",
    "city_load",
    "load_count_1h",
    "load_mean_1h",
    "heat",
    "tenure_days",
    "label_or_sky",
    "kilos_a_trip",
    "crowd",
)
TEXTS = ("sky", "label_or_sky")


def request_row(**changes: Any) -> dict[str, Any]:
    """A row that the couriers' service answers."""
    row = {
        "parcel": "p1",
        "depot_id": "north",
        "courier_id": 7,
        "ready_at": "2024-03-05T10:00:00Z",
        "weight": 2.5,
        "pieces": 3,
        "fragile": False,
        "label": "glass",
    }
    return row | changes


def graph(weight: float, bias: float, numbers: int, texts: int) -> bytes:
    """An ONNX model: sigmoid(weight * (numbers without nulls, summed) + bias); it ignores its texts."""
    from onnx import TensorProto, helper

    def constant(name: str, value: float) -> Any:
        return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, TensorProto.FLOAT, [], [value]))

    nodes = [
        constant("zero", 0.0),
        constant("weight", weight),
        constant("bias", bias),
        helper.make_node("IsNaN", ["numbers"], ["null"]),
        helper.make_node("Where", ["null", "zero", "numbers"], ["filled"]),
        helper.make_node("Tanh", ["filled"], ["bounded"]),
        helper.make_node("ReduceSum", ["bounded", "axes"], ["total"], keepdims=0),
        helper.make_node("Mul", ["total", "weight"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
    ]
    inputs = [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, [None, numbers])]
    if texts:
        inputs.append(helper.make_tensor_value_info("texts", TensorProto.STRING, [None, texts]))
    built = helper.make_graph(
        nodes,
        "couriers",
        inputs,
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None])],
        initializer=[helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    return model.SerializeToString()


@dataclass
class Couriers:
    """A project on disk: Feast repository applied, online store filled as of NOW, one task."""

    root: Path

    @property
    def repo(self) -> Path:
        return self.root / "features"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def task(self) -> Any:
        from contracts.task import load_task

        return load_task(self.root / "tasks" / "parcel_late.toml")

    @property
    def locations(self) -> Any:
        from contracts.locations import Locations

        return Locations(self.data)

    def store(self) -> Any:
        from asof.repository import open_store

        return open_store(self.repo)

    def write(self, view: str, rows: list[tuple[dict[str, Any], dict[str, Any], datetime]]) -> None:
        """Put (key, values, event timestamp) rows into the online store."""
        write_online(self.store(), view, rows)

    def redefine(self, before: str, after: str) -> None:
        """Change the definitions and apply them."""
        from asof.repository import apply_repository

        definitions = self.repo / "definitions.py"
        assert before in definitions.read_text()
        definitions.write_text(definitions.read_text().replace(before, after))
        apply_repository(self.repo)

    def empty(self) -> None:
        """Make the online store anew, with nothing in it."""
        from asof.repository import apply_repository

        for file in (self.repo / "data").glob("*.db*"):
            file.unlink()
        apply_repository(self.repo)

    def bundle(
        self,
        name: str,
        *,
        weight: float = 0.5,
        bias: float = -1.0,
        threshold: float = 0.5,
        fallback: float = 0.2,
        features: tuple[str, ...] = INPUTS,
        fingerprint: str | None = None,
    ) -> Path:
        """A version's bundle; its model is `graph(weight, bias)`."""
        import pyarrow as pa

        from asof.fingerprint import service_fingerprint
        from contracts.bundle import BundleMetadata, FeatureSpec, write_bundle

        specs = tuple(FeatureSpec(each, "text" if each in TEXTS else "number") for each in features)
        numbers = sum(spec.kind == "number" for spec in specs)
        metadata = BundleMetadata(
            task="parcel_late",
            kind="binary",
            learner="lightgbm",
            feature_service="delay_v1",
            features=specs,
            service_fingerprint=fingerprint or service_fingerprint(self.store(), "delay_v1"),
            threshold=threshold,
            fallback=fallback,
            trained_at=NOW.isoformat(),
            training_data={},
            metrics={},
            gates=(),
            seed=1,
            params={},
            task_as_trained={},
        )
        path = self.locations.bundles("parcel_late") / name
        model = graph(weight, bias, numbers, len(specs) - numbers)
        write_bundle(path, model=model, metadata=metadata, reference=pa.table({"score": [0.5]}))
        return path

    def deploy(
        self,
        generation: int,
        champion: tuple[int, Path],
        challenger: tuple[int, Path] | None = None,
        stage: str = "idle",
        share: float = 0.0,
    ) -> None:
        """Write the deployments row, as the rollout controller would."""
        from sqlalchemy import delete, insert

        from contracts.state import deployments, open_state

        engine = open_state(self.locations.state_url)
        with engine.begin() as connection:
            connection.execute(delete(deployments))
            connection.execute(
                insert(deployments).values(
                    task="parcel_late",
                    generation=generation,
                    champion=champion[0],
                    champion_bundle=str(champion[1]),
                    challenger=challenger[0] if challenger else None,
                    challenger_bundle=str(challenger[1]) if challenger else None,
                    stage=stage,
                    share=share,
                    since=NOW,
                )
            )
        engine.dispose()


def write_online(store: Any, view: str, rows: list[tuple[dict[str, Any], dict[str, Any], datetime]]) -> None:
    """Write through Feast's own online store, with its own types."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.type_map import python_values_to_proto_values

    table = store.registry.get_any_feature_view(view, store.project)
    types = {field.name: field.dtype.to_value_type() for field in [*table.features, *table.entity_columns]}

    def proto(name: str, value: Any) -> Any:
        return python_values_to_proto_values([value], types[name])[0]

    from feast.value_type import ValueType

    data = []
    for key, values, stamp in rows:
        if key:
            entity = EntityKey(join_keys=sorted(key), entity_values=[proto(name, key[name]) for name in sorted(key)])
        else:
            entity = EntityKey(
                join_keys=["__dummy_id"], entity_values=python_values_to_proto_values([""], ValueType.STRING)
            )
        data.append((entity, {name: proto(name, value) for name, value in values.items()}, stamp, None))
    store._get_provider().online_write_batch(store.config, table, data, None)


def fill(store: Any) -> None:
    """What the couriers' online store holds at NOW."""
    hour = NOW.replace(minute=0)
    write_online(
        store,
        "weather",
        [
            ({"depot_id": "north"}, {"temperature": 21.5, "storm": True, "sky": "grey"}, hour),
            ({"depot_id": "south"}, {"temperature": None, "storm": False, "sky": None}, hour - timedelta(hours=1)),
            ({"depot_id": "old"}, {"temperature": 3.0, "storm": False, "sky": "fog"}, hour - timedelta(hours=4)),
        ],
    )
    write_online(
        store,
        "person",
        [
            (
                {"courier_id": each},
                {"age": 20 + each, "rating": each / 3, "hired": NOW - timedelta(days=100 * each)},
                NOW - timedelta(days=400),
            )
            for each in range(1, 30)
        ],
    )
    write_online(
        store,
        "pair",
        [
            ({"depot_id": "north", "courier_id": 7}, {"trips": 4}, NOW - timedelta(hours=2)),
            ({"depot_id": "south", "courier_id": 7}, {"trips": 9}, NOW - timedelta(days=2)),
        ],
    )
    write_online(store, "city", [({}, {"city_load": 0.75}, NOW - timedelta(hours=1))])
    write_online(store, "load", [({"courier_id": 7}, {"load_count_1h": 2, "load_mean_1h": 12.5}, hour)])


def make_couriers(root: Path, online_store: str = "{type: sqlite, path: data/online.db}") -> Couriers:
    """Create the project below `root`; `online_store` is YAML."""
    from asof.repository import apply_repository

    couriers = Couriers(root)
    (couriers.repo / "data").mkdir(parents=True)
    (root / "tasks").mkdir()
    (couriers.repo / "definitions.py").write_text(DEFINITIONS)
    (couriers.repo / "feature_store.yaml").write_text(YAML.replace("ONLINE_STORE", online_store))
    (root / "tasks" / "parcel_late.toml").write_text(TASK.format())
    (root / "tasks" / "parcel_late.sql").write_text("select 1")
    apply_repository(couriers.repo)
    fill(couriers.store())
    return couriers


@pytest.fixture(scope="session")
def write_rows() -> Callable[..., None]:
    """Writes (key, values, event timestamp) rows of a view through Feast."""
    return write_online


@pytest.fixture(scope="session")
def fill_store() -> Callable[[Any], None]:
    """Writes what the couriers' online store holds at NOW."""
    return fill


@pytest.fixture(scope="session")
def make_project() -> Callable[..., Couriers]:
    """Creates projects, for fixtures of a wider scope than a test."""
    return make_couriers


@pytest.fixture(scope="session")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Couriers:
    """The couriers' project, for tests that change nothing but their own rows."""
    return make_couriers(tmp_path_factory.mktemp("couriers") / "project")


@pytest.fixture
def couriers(tmp_path: Path) -> Couriers:
    """A couriers' project of one's own. Not a copy: Feast's registry knows where its tables lie."""
    return make_couriers(tmp_path / "project")


class Served:
    """A replica behind its ASGI application, without Ray or sockets."""

    def __init__(self, couriers: Couriers, mode: Any = "system", now: datetime = NOW, **named: Any) -> None:
        from contracts.clock import VirtualClock
        from serving.replica import Replica

        self.couriers = couriers
        self.clock = VirtualClock(now)
        self.replica = Replica(couriers.root, couriers.data, [], self.clock, mode, **named)

    @property
    def service(self) -> Any:
        return self.replica.services["parcel_late"]

    async def send(self, method: str, path: str, **content: Any) -> Any:
        """One request, inside a running event loop."""
        import httpx

        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.replica.asgi), base_url="http://x") as client:
            return await client.request(method, path, **content)

    def ask(self, *rows: dict[str, Any], **content: Any) -> Any:
        """POST a prediction request of `rows`."""
        return self.request("POST", "/v1/tasks/parcel_late/predict", json={"rows": list(rows), **content})

    def request(self, method: str, path: str, **content: Any) -> Any:
        return asyncio.run(self.send(method, path, **content))

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.request("GET", "/readyz").json()["tasks"]["parcel_late"]
        return state

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait for another thread's work. Fails after 20 s."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, self.state()
            time.sleep(0.01)

    def deploy(self, generation: int, *args: Any, **named: Any) -> None:
        """Write a deployment and wait until it serves."""
        self.couriers.deploy(generation, *args, **named)
        self.wait_for(lambda: self.state().get("generation") == generation)

    def logged(self, *variants: str) -> Any:
        from contracts.predictions import read_predictions

        log = self.couriers.locations.predictions("parcel_late")
        return read_predictions(log, variants=variants or ("champion", "canary", "shadow")).to_pylist()

    def balance(self) -> Any:
        from contracts.predictions import balance

        return balance(self.couriers.locations.predictions("parcel_late"))


@pytest.fixture
def serve(couriers: Couriers) -> Iterator[Callable[..., Served]]:
    """Start replicas over `couriers`, or another project; they are closed afterwards."""
    made: list[Served] = []

    def start(project: Couriers = couriers, **named: Any) -> Served:
        made.append(Served(project, **named))
        return made[-1]

    yield start
    for each in made:
        each.replica.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A replica with champion version 1, shared by tests that change nothing but the log."""
    couriers = make_couriers(tmp_path_factory.mktemp("served") / "project")
    couriers.deploy(1, (1, couriers.bundle("one")))
    each = Served(couriers)
    yield each
    each.replica.close()


@pytest.fixture(scope="module")
def make_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[str, str]], Served]]:
    """Start a replica with champion version 1 in an environment; closed with the module."""
    made: list[Served] = []

    def start(environment: dict[str, str]) -> Served:
        couriers = make_couriers(tmp_path_factory.mktemp("served") / "project")
        couriers.deploy(1, (1, couriers.bundle("one")))
        made.append(Served(couriers, environment=environment))
        return made[-1]

    yield start
    for each in made:
        each.replica.close()
