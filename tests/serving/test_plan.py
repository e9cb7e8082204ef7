"""The compiled plan against Feast itself: what `get_online_features` answers, and what training would have seen."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asof.fingerprint import service_fingerprint
from asof.materialize import materialize
from contracts.bundle import FeatureSpec
from serving.online_feast import StoreReader
from serving.online_sqlite import SqliteReader
from serving.plan import PlanError, compile_plan
from serving.vectors import Feature, FeaturePlan, UnknownFeatures

NOW = datetime(2024, 3, 5, 10, 30, tzinfo=UTC)
HOUR = NOW.replace(minute=0)


@pytest.fixture(scope="module")
def store(applied: Any) -> Any:
    return applied.store()


@pytest.fixture(scope="module")
def delay(store: Any) -> FeaturePlan:
    return compile_plan(store, "delay_v1")


def as_model_input(values: list[Any], spec: Feature) -> list[Any]:
    if spec.kind == "text":
        return ["" if value is None else value for value in values]
    return np.array([np.nan if value is None else value for value in values], np.float32).tolist()


def comparable(values: list[Any]) -> list[Any]:
    return ["null" if value != value else value for value in values]


def columns_of(plan: FeaturePlan, vectors: Any) -> dict[str, list[Any]]:
    numbers = iter(vectors.numbers.T.tolist())
    texts = iter(vectors.texts.T.tolist())
    features = [spec for spec in plan.features if spec.kind != "other"]
    return {spec.name: next(numbers if spec.kind == "number" else texts) for spec in features}


rows = st.fixed_dictionaries(
    {
        "depot_id": st.sampled_from(["north", "south", "nowhere", ""]),
        "courier_id": st.sampled_from([1, 7, 29, -5, 2**62]),
        "ready_at": st.integers(10**9, 2 * 10**9).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
        "weight": st.floats(-1e6, 1e6),
        "pieces": st.integers(0, 9),
        "fragile": st.booleans(),
        "label": st.sampled_from(["glass", "", "é"]),
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(rows, min_size=1, max_size=5))
def test_the_plan_answers_what_feast_answers(store: Any, delay: FeaturePlan, asked: list[dict[str, Any]]) -> None:
    columns = {name: [row[name] for row in asked] for name in asked[0]}
    # Late enough for all that is stored, early enough for every TTL: Feast knows neither rule.
    ours = columns_of(delay, delay.vectors(columns, [NOW] * len(asked)))
    theirs = store.get_online_features(features=store.get_feature_service("delay_v1"), entity_rows=asked).to_dict()
    windows = {"load_count_1h"}  # Feast answers null where no event ever was
    alone = {"crowd"} if len(asked) > 1 else set()  # Feast runs a singleton transformation on the first row only
    stale = {"trips", "kilos_a_trip"}  # one stored pair is past its TTL
    for spec in delay.features:
        if spec.name in alone:
            assert ours[spec.name] == [row["pieces"] * 10 for row in asked]
            continue
        expected = as_model_input(theirs[spec.name], spec)
        if spec.name in windows:
            expected = [0 if np.isnan(value) else value for value in expected]
        if spec.name in stale:
            gone = [row["depot_id"] == "south" and row["courier_id"] == 7 for row in asked]
            expected = [np.nan if old else value for old, value in zip(gone, expected, strict=True)]
        assert comparable(ours[spec.name]) == comparable(expected), spec.name


def test_an_aliased_view_reads_by_the_mapped_key(store: Any) -> None:
    plan = compile_plan(store, "alias_v1")
    assert [(field.name, field.type, field.role) for field in plan.inputs] == [
        ("courier_id", "integer", "key"),
        ("target_id", "text", "key"),
    ]
    asked = {"target_id": ["north", "nowhere"], "courier_id": [7, 7]}
    ours = plan.vectors(asked, [NOW] * 2)
    theirs = store.get_online_features(
        features=store.get_feature_service("alias_v1"),
        entity_rows=[{"target_id": "north", "courier_id": 7}, {"target_id": "nowhere", "courier_id": 7}],
    ).to_dict()
    assert columns_of(plan, ours)["temperature"] == pytest.approx(
        as_model_input(theirs["temperature"], plan.features[0]), nan_ok=True
    )
    assert ours.statuses["far_weather"] == ["present", "not_found"]
    assert plan.views_keyed_by("target_id") == ("far_weather",)


def test_a_value_past_its_ttl_is_null_and_says_when_it_was(delay: FeaturePlan) -> None:
    asked = {
        "depot_id": ["old"],
        "courier_id": [7],
        "ready_at": [NOW],
        "weight": [1.0],
        "pieces": [1],
        "fragile": [True],
        "label": [None],
    }
    found = delay.vectors(asked, [NOW])
    assert np.isnan(columns_of(delay, found)["temperature"][0])
    assert found.view_times[0]["weather"] == (HOUR - timedelta(hours=4)).timestamp() * 1e6
    assert found.statuses["weather"] == ["expired"]
    assert found.known("weather", 0)
    within = delay.vectors(asked, [HOUR - timedelta(hours=1)])  # 3 h old: the boundary is still inside
    assert columns_of(delay, within)["temperature"] == [3.0]


def test_a_value_from_after_the_last_grid_point_is_null(delay: FeaturePlan) -> None:
    asked = {
        "depot_id": ["north"],
        "courier_id": [7],
        "ready_at": [NOW],
        "weight": [1.0],
        "pieces": [1],
        "fragile": [True],
        "label": [None],
    }
    found = delay.vectors(asked, [HOUR - timedelta(microseconds=1)])
    assert found.withheld() == {("weather", "future"): 1, ("load", "future"): 1}
    assert np.isnan(columns_of(delay, found)["temperature"][0])
    assert columns_of(delay, delay.vectors(asked, [HOUR]))["temperature"] == [21.5]


def test_what_cannot_be_served_is_refused_with_the_next_step(store: Any) -> None:
    with pytest.raises(PlanError, match="'nope' is not in the Feast registry") as unknown:
        compile_plan(store, "nope")
    assert "delay_v1" in unknown.value.hint


def test_a_feature_no_model_takes_can_be_looked_up(store: Any) -> None:
    plan = compile_plan(store, "broken_v1")
    hired = plan.look_up({"courier_id": [7, 999]}, [NOW] * 2).values["hired"]
    assert hired == [NOW - timedelta(days=700), None]
    assert plan.vectors({"courier_id": [7]}, [NOW]).numbers.shape == (1, 2)  # age and rating
    with pytest.raises(UnknownFeatures, match=r"'hired' as number; .* has it as other \(UnixTimestamp\)"):
        plan.check([FeatureSpec("hired", "number")])


WEATHER = 'name="weather", entities'


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('"1h"', '"often"', "tag asof.every is 'often'"),
        (WEATHER, f'description="off", enabled=False, {WEATHER}', "'weather' is disabled"),
        ('Field(name="pieces", dtype=Int64)', 'Field(name="pieces", dtype=Array(Int64))', "'pieces' is INT64_LIST"),
    ],
)
def test_definitions_that_cannot_be_served_are_refused(couriers: Any, before: str, after: str, told: str) -> None:
    couriers.redefine(before, after)
    couriers.redefine("t * 2 + w", "t * 2 - w")  # Feast takes a new request field only with a new function
    with pytest.raises(PlanError, match=told):
        compile_plan(couriers.store(), "delay_v1")


def test_the_windows_of_a_batch_view_are_served_like_a_stream_views(couriers: Any) -> None:
    """Feast's registry gives a batch view back without its aggregations; a key it never saw still counts zero."""
    couriers.redefine(
        'load = StreamFeatureView(\n    name="load", entities=[courier], ttl=timedelta(hours=2), online=True, '
        'timestamp_field="seen_at",\n    source=PushSource(name="load_push", batch_source=source("load")),',
        "from feast import BatchFeatureView\n\nload = BatchFeatureView(\n"
        '    name="batch_load", entities=[courier], ttl=timedelta(hours=2), online=True,\n    source=source("load"),',
    )
    [load] = [view for view in compile_plan(couriers.store(), "delay_v1").views if view.name == "batch_load"]
    assert dict(zip(load.features, load.empty or (), strict=True)) == {"load_count_1h": 0, "load_mean_1h": None}


class TestReaders:
    """SQLite's fast reader is the generic one, faster."""

    values = st.fixed_dictionaries(
        {
            "age": st.none() | st.integers(-(2**63), 2**63 - 1),
            "rating": st.none() | st.floats(allow_nan=False),
            "hired": st.none()
            | st.integers(-(10**9), 4 * 10**9).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
        }
    )
    skies = st.none() | st.text(max_size=200).filter(lambda text: "\x00" not in text)

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        rounds=st.lists(
            st.tuples(st.dictionaries(st.integers(100, 104), values, max_size=3), skies), min_size=1, max_size=3
        ),
        after=st.integers(0, 10**6),
    )
    def test_they_agree_after_every_write(self, applied: Any, delay: FeaturePlan, rounds: Any, after: int) -> None:
        fast = delay._reader
        assert isinstance(fast, SqliteReader)
        store = applied.store()
        views = {spec.name: spec for spec in delay.views}
        from feast.utils import _get_online_request_context

        context = _get_online_request_context(
            store.registry, store.project, store.get_feature_service("delay_v1"), False
        )
        generic = StoreReader(store, {view.projection.name_to_use(): view for view, _ in context[5]}, context[3])
        for couriers, sky in rounds:
            stamp = NOW + timedelta(seconds=after)
            applied.write("person", [({"courier_id": key}, row, stamp) for key, row in couriers.items()])
            applied.write("weather", [({"depot_id": "east"}, {"temperature": 1.5, "storm": False, "sky": sky}, stamp)])
            asked = [
                (views["person"], [(key,) for key in (*range(100, 105), 7, 999)]),
                (views["weather"], [("east",), ("north",), ("nowhere",)]),
                (views["city"], [()]),
                (views["pair"], [(7, "north"), (7, "nowhere")]),
            ]
            assert fast.read(asked) == generic.read(asked)

    def test_many_keys_are_read_in_several_statements(
        self, delay: FeaturePlan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("serving.online_sqlite._KEYS_PER_STATEMENT", 3)
        views = {spec.name: spec for spec in delay.views}
        asked = [(views["person"], [(key,) for key in range(1, 12)]), (views["weather"], [("north",), ("south",)])]
        people, weather = delay._reader.read(asked)
        assert [row[1][0] for row in people if row] == [20 + key for key in range(1, 12)]
        assert all(weather)

    def test_a_store_made_anew_is_noticed(self, couriers: Any) -> None:
        plan = compile_plan(couriers.store(), "small_v1")
        asked = {"depot_id": ["north"], "courier_id": [7]}
        assert plan.vectors(asked, [NOW]).statuses["person"] == ["present"]
        couriers.empty()
        assert plan.vectors(asked, [NOW]).statuses["person"] == ["not_found"]

    def test_a_long_text_is_left_to_feast(self, applied: Any, delay: FeaturePlan) -> None:
        applied.write("weather", [({"depot_id": "far"}, {"temperature": 1.5, "storm": False, "sky": "é" * 400}, HOUR)])
        [spec] = [each for each in delay.views if each.name == "weather"]
        [[found]] = delay._reader.read([(spec, [("far",)])])
        assert found is not None
        assert dict(zip(spec.features, found[1], strict=True))["sky"] == "é" * 400

    def test_another_store_is_read_through_its_own_interface(
        self, couriers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = {"depot_id": ["north", "south"], "courier_id": [7, None]}
        fast = compile_plan(couriers.store(), "small_v1")
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "somebodys_store.py").write_text(
            "from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig\n"
            "class TheirSqliteOnlineStore(SqliteOnlineStore): pass\n"
            "class TheirSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):\n"
            "    type: str = 'somebodys_store.TheirSqliteOnlineStore'\n"
        )
        yaml = couriers.repo / "feature_store.yaml"
        yaml.write_text(yaml.read_text().replace("{type: sqlite", "{type: somebodys_store.TheirSqliteOnlineStore"))
        slow = compile_plan(couriers.store(), "small_v1")
        assert isinstance(slow._reader, StoreReader)
        theirs, ours = slow.vectors(asked, [NOW] * 2), fast.vectors(asked, [NOW] * 2)
        np.testing.assert_array_equal(theirs.numbers, ours.numbers)
        assert (theirs.view_times, theirs.statuses) == (ours.view_times, ours.statuses)


def test_a_fingerprint_is_the_same_in_another_process(applied: Any, store: Any) -> None:
    program = (
        "import sys; from asof.repository import open_store; from asof.fingerprint import service_fingerprint; "
        "print(service_fingerprint(open_store(sys.argv[1]), 'delay_v1'))"
    )
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(applied.repo)], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == service_fingerprint(store, "delay_v1")


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("t * 2 + w", "t * 3 + w", False),
        ("ttl=timedelta(hours=3)", "ttl=timedelta(hours=4)", False),
        ('"asof.every": "1h"', '"asof.every": "30m"', False),
        ('function="mean"', 'function="max"', False),
        ('Field(name="age", dtype=Int64)', 'Field(name="age", dtype=Float64)', False),
        ('person[["age", "rating"]]', 'person[["rating", "age"]]', False),
        ('path=f"data/', 'description="moved", path=f"elsewhere/', True),
        ('depot = Entity(name="depot"', 'depot = Entity(description="where", name="depot"', True),
    ],
)
def test_a_fingerprint_changes_with_meaning_only(couriers: Any, before: str, after: str, same: bool) -> None:
    first = service_fingerprint(couriers.store(), "delay_v1")
    couriers.redefine(before, after)
    assert (service_fingerprint(couriers.store(), "delay_v1") == first) is same


def land(repo: Path, name: str, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    stamps = {"seen_at", "created", "hired"}
    fields = [f.with_type(pa.timestamp("us", tz="UTC")) if f.name in stamps else f for f in table.schema]
    pq.write_table(table.cast(pa.schema(fields)), repo / "data" / f"{name}.parquet")


def test_online_vectors_are_what_training_would_see(couriers: Any) -> None:
    """Histories with gaps, late rows and quiet hours; materialized each hour; asked between the hours."""
    random = np.random.default_rng(11)
    start = HOUR - timedelta(hours=10)

    def when() -> dict[str, datetime]:
        seen = start + timedelta(seconds=int(random.integers(0, 10 * 3600)))
        return {"seen_at": seen, "created": seen + timedelta(seconds=int(random.choice([0, 0, 5400])))}

    depots, people = ["north", "south", "west"], [1, 2, 3, 4]
    land(
        couriers.repo,
        "weather",
        [
            {
                "depot_id": depots[i % 3],
                "temperature": float(random.normal(10, 5)) if i % 4 else None,
                "storm": bool(i % 2),
                "sky": ["grey", "blue", None][i % 3],
                **when(),
            }
            for i in range(14)
        ],
    )
    land(
        couriers.repo,
        "person",
        [
            {
                "courier_id": key,
                "age": 30 + key,
                "rating": 1 / key,
                "hired": start - timedelta(days=key),
                "seen_at": start,
                "created": start,
            }
            for key in people[:3]
        ],
    )
    land(
        couriers.repo,
        "pair",
        [{"depot_id": depots[i % 3], "courier_id": people[i % 4], "trips": i, **when()} for i in range(20)],
    )
    land(couriers.repo, "city", [{"city_load": float(i), **when()} for i in range(3)])
    land(couriers.repo, "load", [{"courier_id": people[i % 3], "kilos": float(i % 7), **when()} for i in range(25)])
    couriers.empty()
    store = couriers.store()
    plan = compile_plan(store, "delay_v1")
    previous, asked = start - timedelta(hours=1), []
    online: list[dict[str, list[Any]]] = []
    for hour in range(11):
        boundary = start + timedelta(hours=hour)
        materialize(store, previous, boundary)
        previous = boundary
        batch = [
            {
                "depot_id": str(random.choice([*depots, "nowhere"])),
                "courier_id": int(random.choice([*people, 99])),
                "ready_at": boundary + timedelta(minutes=5),
                "weight": float(i),
                "pieces": i,
                "fragile": bool(i % 2),
                "label": None if i % 2 else "x",
                "event_timestamp": boundary,
            }
            for i in range(6)
        ]
        # Untagged views answer as of the last materialization: ask at the boundary, where both mean the same.
        columns = {name: [row[name] for row in batch] for name in batch[0] if name != "event_timestamp"}
        online.append(columns_of(plan, plan.vectors(columns, [boundary] * len(batch))))
        asked += batch
    frame = pd.DataFrame(asked).astype({"event_timestamp": "datetime64[us, UTC]", "ready_at": "datetime64[us, UTC]"})
    offline = store.get_historical_features(entity_df=frame, features=store.get_feature_service("delay_v1")).to_arrow()
    for spec in plan.features:
        ours = [value for part in online for value in part[spec.name]]
        expected = as_model_input(offline[spec.name].to_pylist(), spec)
        assert comparable(ours) == comparable(expected), spec.name
    assert sum(np.isnan(value) for part in online for value in part["temperature"]) not in (0, len(asked))
