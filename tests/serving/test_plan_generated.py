"""Generated repositories, values and questions: the plan answers what Feast does, and what TTL and status add."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from serving.online_sqlite import SqliteReader
from serving.plan import compile_plan
from serving.vectors import FeaturePlan

NOW = datetime(2024, 3, 5, 10, 30, tzinfo=UTC)
SERIAL = itertools.count()

texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=150)
instants = st.integers(-(10**9), 4 * 10**9).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    Int32: st.integers(-(2**31), 2**31 - 1),
    Int64: st.integers(-(2**63), 2**63 - 1),
    Float32: st.floats(width=32),
    Float64: st.floats(),
    Bool: st.booleans(),
    String: texts,
    Bytes: st.binary(max_size=150),
    UnixTimestamp: instants,
    Array(Int64): st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3),
    Array(Float32): st.lists(st.floats(width=32), min_size=1, max_size=3),
    Array(String): st.lists(texts, min_size=1, max_size=3),
    Array(UnixTimestamp): st.lists(instants, min_size=1, max_size=2),
}
KEYS: dict[Any, tuple[list[Any], ValueType]] = {
    String: (["a", "", "é" * 70], ValueType.STRING),
    Int64: ([1, -(2**63), 2**40], ValueType.INT64),
    Int32: ([1, -(2**31)], ValueType.INT32),
}

asked = RequestSource(name="asked", schema=[Field(name="weight", dtype=Float64), Field(name="label", dtype=String)])
base_entity = Entity(name="base", join_keys=["base_id"], value_type=ValueType.INT64)
base = FeatureView(
    name="base_view",
    entities=[base_entity],
    schema=[
        Field(name="base_id", dtype=Int64),
        Field(name="x", dtype=Float64),
        Field(name="n", dtype=Int64),
        Field(name="s", dtype=String),
        Field(name="since", dtype=UnixTimestamp),
    ],
    source=FileSource(name="base_source", path="nowhere.parquet", timestamp_field="ts"),
)


@on_demand_feature_view(
    sources=[base, asked],
    mode="python",
    schema=[Field(name="heavy", dtype=Float64), Field(name="tag", dtype=String), Field(name="age", dtype=Int64)],
)
def in_python(inputs):
    from datetime import UTC, datetime

    keys = inputs.get("base_id", inputs["label"])  # Feast tries the function at apply, without keys
    now = datetime(2024, 1, 1, tzinfo=UTC)
    heavy = [None if a is None or b is None else a * b for a, b in zip(inputs["x"], inputs["weight"], strict=True)]
    tag = [f"{a}/{b}/{key}" for a, b, key in zip(inputs["base_view__s"], inputs["label"], keys, strict=True)]
    age = [None if since is None else int((now - since).total_seconds()) for since in inputs["since"]]
    return {"heavy": heavy, "tag": tag, "age": age}


@on_demand_feature_view(
    sources=[base, asked], mode="pandas", schema=[Field(name="share", dtype=Float64), Field(name="long", dtype=Bool)]
)
def in_pandas(frame: pd.DataFrame) -> pd.DataFrame:
    out = pd.DataFrame()
    out["share"] = frame["x"].astype("float64") / 3 + frame["base_view__n"].astype("float64").fillna(0.5)
    out["long"] = frame["label"].fillna("").str.len() > 3
    return out


@dataclass(repr=False)
class Case:
    """A repository, what its views hold, and what is asked of them."""

    objects: list[Any]
    service: FeatureService
    full_names: bool
    ttls: dict[str, timedelta]
    keyed_by: dict[str, dict[str, str]]
    """Answered view to stored join key, to the column that gives it."""
    views: dict[str, str]
    """Answered view to stored view."""
    features: dict[str, list[str]]
    stored: dict[str, list[tuple[dict[str, Any], dict[str, Any], datetime]]]
    rows: list[dict[str, Any]]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def __repr__(self) -> str:
        return f"Case(full_names={self.full_names}, views={self.views}, stored={self.stored}, rows={self.rows})"


@st.composite
def cases(draw: st.DrawFn) -> Case:
    full_names = draw(st.booleans())
    kinds = draw(st.lists(st.sampled_from(list(KEYS)), min_size=1, max_size=3))
    entities = [Entity(name=f"e{i}", join_keys=[f"k{i}"], value_type=KEYS[kind][1]) for i, kind in enumerate(kinds)]
    made = Case([*entities, base_entity, base, in_python, in_pandas], None, full_names, {}, {}, {}, {}, {}, [])  # type: ignore[arg-type]
    columns: dict[str, list[Any]] = {"base_id": [1, 2, 3]}
    # All or nothing: where a request has a key and its alias too, Feast reads an aliased view by either.
    aliases = draw(st.sampled_from([[None], ["far"], *([["near", "far"]] if full_names else [])]))
    chosen: list[Any] = [base, in_python, in_pandas]
    for number in range(draw(st.integers(1, 3))):
        name = f"v{number}"
        keys = draw(st.lists(st.sampled_from(range(len(kinds))), unique=True, max_size=2))
        types = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=5))
        names = [f"f{i}" if full_names else f"{name}_f{i}" for i in range(len(types))]
        ttl = draw(st.sampled_from([timedelta(0), timedelta(hours=1)]))
        view = FeatureView(
            name=name,
            entities=[entities[i] for i in keys],
            ttl=ttl,
            schema=[Field(name=f"k{i}", dtype=kinds[i]) for i in keys]
            + [Field(name=each, dtype=kind) for each, kind in zip(names, types, strict=True)],
            source=FileSource(name=f"{name}_source", path="nowhere.parquet", timestamp_field="ts"),
        )
        made.objects.append(view)
        subset = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        for alias in aliases:
            projected: Any = view[subset]
            mapping = {f"k{i}": f"k{i}" for i in keys}
            if alias:
                projected = projected.with_name(f"{alias}_{name}")
                mapping = {key: f"{alias}_{key}" for key in mapping}
                projected = projected.with_join_key_map(mapping)
            chosen.append(projected)
            answered = f"{alias}_{name}" if alias else name
            made.keyed_by[answered], made.views[answered], made.features[answered] = mapping, name, subset
            made.ttls[answered] = ttl
            columns |= {column: KEYS[kinds[int(key[1:])]][0] for key, column in mapping.items()}
        domain = [
            dict(zip([f"k{i}" for i in keys], values, strict=True))
            for values in itertools.product(*(KEYS[kinds[i]][0] for i in keys))
        ]
        for key in draw(st.lists(st.sampled_from(domain), max_size=4, unique_by=repr)):
            held = {each: draw(st.none() | VALUES[kind]) for each, kind in zip(names, types, strict=True)}
            age = draw(st.sampled_from([-3600, -1, 0, 5, 3599, 3600, 3601, 10**6]))
            made.stored.setdefault(name, []).append((key, held, NOW - timedelta(seconds=age)))
    for key in draw(st.lists(st.sampled_from([1, 2]), unique=True)):
        held = {
            "x": draw(st.none() | st.floats(-1e6, 1e6)),
            "n": draw(st.none() | st.integers(-5, 5)),
            "s": draw(st.none() | texts),
            "since": draw(st.none() | instants),
        }
        made.stored.setdefault("base_view", []).append(({"base_id": key}, held, NOW))
    request = {"weight": st.floats(-1e6, 1e6), "label": texts}
    row = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in columns.items()} | request)
    made.rows = draw(st.lists(row, min_size=1, max_size=4))
    made.service = FeatureService(name="asked_v1", features=chosen)
    return made


def same(ours: Any, theirs: Any) -> bool:
    return repr(ours) == repr(theirs)  # NaN is NaN, 1 is not True


def answers(case: Case, config: Callable[[str], dict[str, Any]], write: Callable[..., None]) -> FeaturePlan:
    """Apply, write, ask both, compare cell by cell; the plan, for what else is to be said of it."""
    project = f"generated{next(SERIAL)}"
    store = FeatureStore(
        config=RepoConfig(
            project=project,
            provider="local",
            entity_key_serialization_version=3,
            offline_store={"type": "dask"},
            **config(project),
        )
    )
    store.apply([*case.objects, case.service])
    for name, rows in case.stored.items():
        write(store, name, rows)
    response = store.get_online_features(
        features=store.get_feature_service("asked_v1"), entity_rows=case.rows, full_feature_names=case.full_names
    )
    values = response.to_dict()
    statuses = {
        name: list(result.statuses)
        for name, result in zip(response.proto.metadata.feature_names.val, response.proto.results, strict=True)
    }
    plan = compile_plan(store, "asked_v1", full_feature_names=case.full_names)
    found = plan.look_up({name: [row[name] for row in case.rows] for name in case.rows[0]}, [NOW] * len(case.rows))
    computed = [("in_python", each) for each in ("heavy", "tag", "age")] + [
        ("in_pandas", each) for each in ("share", "long")
    ]
    # Under full names Feast leaves out what a function in Python computed, so this is asked under short ones.
    theirs = store.get_online_features(features=[f"{view}:{name}" for view, name in computed], entity_rows=case.rows)
    for view, name in computed:
        answered = f"{view}__{name}" if case.full_names else name
        assert same(found.values[answered], theirs.to_dict()[name]), name
    redis = store.config.online_store.type == "redis"
    for view, table in case.views.items():
        for i, row in enumerate(case.rows):
            key = {stored: row[column] for stored, column in case.keyed_by[view].items()}
            stamp = next((stamp for each, _, stamp in case.stored.get(table, ()) if each == key), None)
            ttl = case.ttls[view]
            if stamp is None:
                expected = "not_found"
            elif stamp > NOW:
                expected = "future"
            else:
                expected = "expired" if ttl and NOW - stamp > ttl else "present"
            assert found.statuses[view][i] == expected
            assert found.view_times[i][view] == (None if stamp is None else stamp.timestamp() * 1_000_000)
            for feature in case.features[view]:
                name = f"{view}__{feature}" if case.full_names else feature
                told = FieldStatus.Name(statuses[name][i])
                # Feast's Redis store cannot tell a key it never saw from nulls.
                assert told == ("PRESENT" if stamp is not None or redis else "NOT_FOUND")
                assert same(found.values[name][i], values[name][i] if expected == "present" else None), name
                assert expected in ("present", "not_found") or told == "PRESENT"
    return plan


def lenient(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would apply thousands of repositories
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@pytest.fixture
def registry(tmp_path: Any) -> Callable[[str], dict[str, Any]]:
    return lambda project: {"registry": str(tmp_path / f"{project}.db")}


@lenient(40)
@given(case=cases())
def test_on_sqlite(case: Case, registry: Any, tmp_path: Any, write_rows: Any) -> None:
    plan = answers(
        case,
        lambda project: (
            registry(project) | {"online_store": {"type": "sqlite", "path": str(tmp_path / f"{project}.online")}}
        ),
        write_rows,
    )
    assert type(plan._reader) is SqliteReader


@lenient(10)
@given(case=cases())
def test_on_redis(case: Case, registry: Any, redis_server: Any, write_rows: Any) -> None:
    from serving.online_redis import RedisReader

    plan = answers(case, lambda project: registry(project) | {"online_store": redis_server.online_store}, write_rows)
    assert type(plan._reader) is RedisReader


@lenient(5)
@given(case=cases())
def test_on_a_redis_cluster(case: Case, registry: Any, redis_cluster: Any, write_rows: Any) -> None:
    from serving.online_redis import RedisReader

    plan = answers(case, lambda project: registry(project) | {"online_store": redis_cluster.online_store}, write_rows)
    assert type(plan._reader) is RedisReader


@lenient(10)
@given(case=cases())
def test_on_postgresql(case: Case, registry: Any, postgres_server: Any, write_rows: Any) -> None:
    from serving.online_postgres import PostgresReader

    plan = answers(case, lambda project: registry(project) | {"online_store": postgres_server.online_store}, write_rows)
    assert type(plan._reader) is PostgresReader
