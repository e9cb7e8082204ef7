"""Precomputed predictions: the job, the feature view it writes, and the endpoint that reads it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from sqlalchemy import create_engine

from contracts.bundle import BundleError
from contracts.state import open_state
from serving import precomputed
from serving.batch import NotABatchTask, NothingDeployed, NothingToPredict, Predictor
from serving.batch_view import FIELDS, PredictionView, forget
from tests.serving.conftest import INPUTS, NOW, TASK, Couriers, Served, make_couriers
from tests.serving.test_online_stores import new_database, yaml_of

HOUR = NOW.replace(minute=0)
SPINE = "select * from parcels"
PARCELS = 40
INSTANT = pa.timestamp("us", tz="UTC")


def _sources(couriers: Couriers) -> None:
    """What the couriers' views are computed from, and the parcels to come: one in five already has an outcome."""
    random = np.random.default_rng(5)
    data = couriers.repo / "data"
    before = [HOUR - timedelta(minutes=int(each)) for each in random.integers(1, 600, 200)]
    depots = random.choice(["north", "south"], 200)
    who = random.integers(1, 10, 200)
    seen: dict[str, Any] = {"seen_at": before, "created": before}
    tables: dict[str, dict[str, Any]] = {
        "weather": {
            "depot_id": depots,
            "temperature": random.normal(10, 5, 200).astype("float32"),
            "storm": random.random(200) < 0.2,
            "sky": random.choice(["grey", "blue"], 200),
        },
        "person": {
            "courier_id": who,
            "age": random.integers(18, 60, 200),
            "rating": random.random(200),
            "hired": [HOUR - timedelta(days=int(each)) for each in random.integers(10, 900, 200)],
        },
        "pair": {"depot_id": depots, "courier_id": who, "trips": random.integers(1, 50, 200)},
        "city": {"city_load": random.random(200)},
        "load": {"courier_id": who, "kilos": random.random(200) * 20},
    }
    instants = ("seen_at", "created", "hired", "ready_at", "asked_at", "known_at")
    times = {name: pl.Datetime("us", "UTC") for name in instants}
    for name, columns in tables.items():
        overrides = {each: kind for each, kind in times.items() if each in {**columns, **seen}}
        pl.DataFrame({**columns, **seen}, schema_overrides=overrides).write_parquet(data / f"{name}.parquet")
    asked = [HOUR + timedelta(minutes=5 * i) for i in range(PARCELS)]
    pl.DataFrame(
        {
            "parcel": [f"p{i}" for i in range(PARCELS)],
            "depot_id": random.choice(["north", "south"], PARCELS),
            "courier_id": random.integers(1, 12, PARCELS),
            "ready_at": [each - timedelta(minutes=30) for each in asked],
            "weight": random.random(PARCELS) * 5,
            "pieces": random.integers(1, 5, PARCELS),
            "fragile": random.random(PARCELS) < 0.5,
            "label": random.choice(["glass", "paper", None], PARCELS),
            "asked_at": asked,
            "late": [1 if i % 5 == 4 else None for i in range(PARCELS)],
            "known_at": [HOUR - timedelta(hours=1) if i % 5 == 4 else None for i in range(PARCELS)],
        },
        schema_overrides={each: times[each] for each in ("ready_at", "asked_at", "known_at")},
    ).write_parquet(couriers.root / "parcels.parquet")


def make_batch(root: Path) -> Couriers:
    """The couriers' project with sources, served in batch mode."""
    couriers = make_couriers(root)
    _sources(couriers)
    couriers.empty()
    serve_as(couriers, "batch")
    (root / "tasks" / "parcel_late.sql").write_text(SPINE)
    from asof.materialize import materialize

    materialize(couriers.store(), HOUR - timedelta(days=30), HOUR)
    return couriers


def serve_as(couriers: Couriers, mode: str) -> None:
    text = TASK.format().replace("tables = {}", 'tables = { parcels = "../parcels.parquet" }')
    text = text.replace("[serving]\n", f'[serving]\nmode = "{mode}"\n') + '\n[batch]\nhorizon = "2h"\ngood_for = "2h"\n'
    (couriers.root / "tasks" / "parcel_late.toml").write_text(text)


def predictor(couriers: Couriers) -> Predictor:
    return Predictor(couriers.task, couriers.locations, create_engine(couriers.locations.state_url))


def predict(couriers: Couriers, at: datetime = HOUR, **named: Any) -> Any:
    return predictor(couriers).run(at, known_at=lambda: at, **named)


def rows(couriers: Couriers, at: datetime, *only: str) -> list[dict[str, Any]]:
    """What an application asks about the parcels, all of them at one instant."""
    from contracts.spine import read_spine
    from loop.traffic import request_rows

    spine = read_spine(couriers.task, start=HOUR, end=HOUR + timedelta(days=1), known_at=HOUR)
    asked = [row | {"asked_at": at.isoformat()} for row in request_rows(couriers.task, spine)]
    return [row for row in asked if not only or row["parcel"] in only]


@pytest.fixture
def serve() -> Iterator[Any]:
    made: list[Served] = []

    def start(project: Couriers) -> Served:
        made.append(Served(project, mode="request"))
        return made[-1]

    yield start
    for each in made:
        each.replica.close()


@pytest.fixture
def batch(tmp_path: Path) -> Couriers:
    couriers = make_batch(tmp_path / "project")
    couriers.deploy(1, (1, couriers.bundle("one")), (2, couriers.bundle("two", weight=-0.4)), "shadow")
    return couriers


def test_a_batch_prediction_is_the_online_one_of_the_same_instant_bit_for_bit(batch: Couriers, serve: Any) -> None:
    report = predict(batch)
    assert (report.cases, report.refused) == (20, 0)  # 24 within two hours, 4 of which have an outcome
    assert [(each.version, each.variant, each.rows) for each in report.versions] == [
        (1, "champion", 20),
        (2, "challenger", 20),
    ]
    ids = [f"p{i}" for i in range(24) if i % 5 != 4]
    stored = serve(batch)
    told = stored.ask(*rows(batch, HOUR, *ids)).json()
    stored.wait_for(lambda: len(stored.logged("shadow")) == 20)
    before = stored.logged("champion", "shadow")
    stored.replica.close()
    assert told["degraded"] == []

    serve_as(batch, "online")
    computed = serve(batch)
    again = computed.ask(*rows(batch, HOUR, *ids)).json()
    computed.wait_for(lambda: len(computed.logged("shadow")) == 40)
    after = computed.logged("champion", "shadow")[-len(before) * 2 :]
    assert told["predictions"] == again["predictions"]
    fresh = {(row["case_id"], row["variant"]): row for row in after if row["request_id"] != told["request_id"]}
    assert len(fresh) == len(before) == 40
    for row in before:
        twin = fresh[row["case_id"], row["variant"]]
        for name in ("score", "decision", "version", "event_timestamp", *(f"feature.{name}" for name in INPUTS)):
            assert row[name] == twin[name], (name, row["case_id"])

    from monitoring.skew import audit

    report = audit(batch.task, batch.locations, variants=("champion", "shadow"))
    assert (report.rows, report.mismatches) == (80, 0)
    assert report.checked == 80 * len(INPUTS)


def test_what_no_prediction_belongs_to_is_answered_with_the_fallback_and_says_why(batch: Couriers, serve: Any) -> None:
    predict(batch)
    served = serve(batch)
    (mine,) = rows(batch, HOUR + timedelta(minutes=59), "p3")
    cases = [
        (mine, []),
        (mine | {"ready_at": mine["ready_at"].replace("+00:00", "Z")}, []),  # the same instant, otherwise written
        ({name: value for name, value in mine.items() if name != "parcel"}, [precomputed.NO_CASE]),
        (mine | {"parcel": "unheard of"}, [precomputed.ABSENT]),
        (mine | {"weight": 99.0}, [precomputed.OTHERWISE]),
        (mine | {"asked_at": (HOUR + timedelta(hours=2)).isoformat()}, []),
        (mine | {"asked_at": (HOUR + timedelta(hours=2, seconds=1)).isoformat()}, [precomputed.EXPIRED]),
        (mine | {"asked_at": (HOUR - timedelta(seconds=1)).isoformat()}, [precomputed.LATER]),
    ]
    for row, reasons in cases:
        answer = served.ask(row).json()
        assert answer["degraded"] == [f"rows[0]: {reason}" for reason in reasons], row
        (prediction,) = answer["predictions"]
        assert (prediction["score"] == pytest.approx(0.2)) == bool(reasons)
        assert (prediction["variant"], prediction["version"]) == ("champion", 1)
    logged = served.logged("champion")
    assert sorted(each["degraded"] for each in logged) == sorted("".join(reasons) for _, reasons in cases)
    assert all(each["feature.age"] is None for each in logged if each["degraded"])
    metrics = served.request("GET", "/metrics").text
    assert f'skewless_degraded_rows_total{{reason="{precomputed.ABSENT}",task="parcel_late"}} 1.0' in metrics
    repeated = served.ask(mine | {"parcel": "unheard of"}, request_id="r1").json()
    assert served.ask(mine | {"parcel": "unheard of"}, request_id="r1").json()["degraded"] == [
        "repeated",
        *repeated["degraded"],
    ]


def test_while_the_store_is_away_the_last_prediction_or_the_fallback_is_given_and_is_not_judged_as_skew(
    batch: Couriers, serve: Any
) -> None:
    file = batch.root / "tasks" / "parcel_late.toml"
    file.write_text(f'{file.read_text()}\n[degradation]\notherwise = "last_good"\nfallback = true\n')
    predict(batch)
    served = serve(batch)
    (known,), (other,) = rows(batch, HOUR, "p3"), rows(batch, HOUR, "p2")
    before = served.ask(known).json()
    online = batch.repo / "data" / "online.db"
    online.rename(batch.root / "kept")
    told = served.ask(known, other).json()
    assert told["degraded"] == [
        "rows[0]: parcel_late_predictions: last good",
        "rows[1]: fallback: online store unavailable",
    ]
    assert told["predictions"][0] == before["predictions"][0]
    assert told["predictions"][1]["score"] == pytest.approx(0.2)
    (batch.root / "kept").rename(online)
    after = served.ask(known).json()
    assert (after["predictions"], after["degraded"]) == (before["predictions"], [])

    from monitoring.skew import audit

    report = audit(batch.task, batch.locations, variants=("champion",))
    assert (report.rows, report.mismatches, report.set_aside) == (2, 0, {"degraded": 2})


def test_a_canary_answers_its_share_from_its_own_predictions_and_a_shadow_never_with_a_fallback(
    batch: Couriers, serve: Any
) -> None:
    served = serve(batch)
    asked = rows(batch, HOUR, *[f"p{i}" for i in range(24) if i % 5 != 4])
    assert len(served.ask(*asked).json()["degraded"]) == 20
    predict(batch)
    served.deploy(2, *_both(batch), "canary", 0.5)
    told = served.ask(*asked).json()
    assert told["degraded"] == []
    assert {each["version"] for each in told["predictions"]} == {1, 2}
    one, two = (served.ask(*asked).json()["predictions"] for _ in range(2))
    assert one == two == told["predictions"]
    served.deploy(3, *_both(batch)[:1])
    alone = served.ask(*asked).json()
    assert {each["version"] for each in alone["predictions"]} == {1}
    assert [each for each in served.logged("shadow") if each["degraded"]] == []  # a canary's other rows are mirrored


def _both(batch: Couriers) -> list[tuple[int, Path]]:
    bundles = batch.locations.bundles("parcel_late")
    return [(1, bundles / "one"), (2, bundles / "two")]


def test_the_baseline_answers_before_there_is_a_champion(batch: Couriers, serve: Any) -> None:
    one, _ = _both(batch)
    batch.deploy(1, (0, one[1]), one, "shadow")
    report = predict(batch)
    assert [(each.version, each.scored_by) for each in report.versions] == [(0, "fallback"), (1, "this process")]
    served = serve(batch)
    answer = served.ask(*rows(batch, HOUR, "p3")).json()
    assert answer["degraded"] == []
    assert answer["predictions"][0]["score"] == pytest.approx(0.2)
    assert served.logged("champion")[0]["feature.age"] is not None


def test_again_changes_nothing_and_older_never_replaces_newer(batch: Couriers, serve: Any) -> None:
    later = HOUR + timedelta(minutes=30)
    predict(batch, later)
    folder = batch.locations.batch("parcel_late") / "predictions"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    predict(batch, later)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    predict(batch, HOUR)
    served = serve(batch)
    served.ask(*rows(batch, later, "p8"))
    served.ask(*rows(batch, HOUR, "p8"))
    first, second = served.logged("champion")
    assert (first["event_timestamp"], first["degraded"]) == (HOUR, precomputed.LATER)
    assert (second["event_timestamp"], second["degraded"]) == (later, "")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from asof import online
from tests.serving.test_batch import HOUR, predict
from tests.serving.conftest import Couriers
from datetime import timedelta

def die(*args, **named):
    os.kill(os.getpid(), signal.SIGKILL)

online.write = die
predict(Couriers(Path({project!r})), HOUR + timedelta(minutes=30))
"""


def test_a_job_that_is_killed_leaves_the_earlier_predictions_readable_and_the_next_one_makes_up_for_it(
    batch: Couriers, serve: Any
) -> None:
    predict(batch)
    code = KILLED.format(root=str(Path(__file__).parents[2]), project=str(batch.root))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    served = serve(batch)
    later = HOUR + timedelta(minutes=40)
    assert served.ask(*rows(batch, later, "p8")).json()["degraded"] == []
    assert served.logged("champion")[0]["event_timestamp"] == HOUR
    predict(batch, HOUR + timedelta(minutes=30))
    served.ask(*rows(batch, later, "p8"))
    assert served.logged("champion")[-1]["event_timestamp"] == HOUR + timedelta(minutes=30)


def test_a_prediction_is_a_feature_at_any_instant(batch: Couriers) -> None:
    """And `feast apply` in the repository, which drops what the repository does not define, leaves it alone."""
    job = predictor(batch)
    later = HOUR + timedelta(minutes=30)
    for at in (HOUR, later):
        job.run(at, known_at=lambda at=at: at + timedelta(minutes=1))
    batch.redefine("ttl=timedelta(hours=3)", "ttl=timedelta(hours=3)")
    store = job._view.store
    entities = pl.DataFrame(
        {
            "parcel": ["p8"] * 5,
            "model_version": [1, 1, 1, 2, 1],
            "event_timestamp": [
                HOUR,
                HOUR + timedelta(minutes=1),
                later + timedelta(minutes=1),
                later + timedelta(minutes=1),
                later + timedelta(hours=2, seconds=1),
            ],
        }
    )
    wanted = [f"{job._view.name}:score", f"{job._view.name}:numbers"]
    found = store.get_historical_features(entity_df=entities, features=wanted).to_arrow().to_pylist()
    online = job._view.plan().look_up({"parcel": ["p8"], "model_version": [1]}, [later]).values
    scores = [each["score"] for each in found]
    assert scores[0] is None  # not known yet
    assert scores[4] is None  # no longer good
    assert (scores[2], found[2]["numbers"]) == (online["score"][0], online["numbers"][0])
    assert scores[3] not in (None, scores[2])


def test_what_keeps_a_job_from_predicting_says_so_and_leaves_nothing(batch: Couriers) -> None:
    folder = batch.locations.batch("parcel_late") / "predictions"
    with pytest.raises(NothingToPredict, match="no case asked about at or after") as late:
        predict(batch, HOUR + timedelta(days=1))
    assert "cases to come" in late.value.hint
    model = batch.locations.bundles("parcel_late") / "one" / "model.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match="was altered"):
        predict(batch)
    model.write_bytes(whole)
    (batch.locations.bundles("parcel_late") / "two" / "model.onnx").write_bytes(whole)
    assert not folder.exists()
    half = predict(batch)
    assert [each.version for each in half.versions] == [1]
    assert "version 2 cannot be loaded" in half.challenger_error
    night = predict(batch, HOUR - timedelta(hours=5))
    assert (night.cases, night.versions) == (0, ())
    Path(batch.locations.state_url.removeprefix("sqlite:///")).unlink()
    job = Predictor(batch.task, batch.locations, open_state(batch.locations.state_url))
    with pytest.raises(NothingDeployed, match="no version deployed"):
        job.run(HOUR, known_at=lambda: HOUR)
    serve_as(batch, "online")
    with pytest.raises(NotABatchTask, match=r"served online: serving\.mode names it"):
        predict(batch)


def _on(store: str, request: pytest.FixtureRequest) -> str:
    if store == "redis":
        server = request.getfixturevalue("redis_server")
        server.flush()
        return yaml_of({"type": "redis", "connection_string": server.connection_string})
    if store == "postgres":
        return yaml_of(new_database(request.getfixturevalue("postgres_server")))
    return "{type: sqlite, path: data/online.db}"


@pytest.mark.parametrize("store", ["sqlite", "redis", "postgres"])
def test_every_online_store_keeps_the_newest_prediction_of_a_version_until_it_is_forgotten(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    couriers = make_couriers(tmp_path / "project", _on(store, request))
    serve_as(couriers, "batch")
    view = PredictionView(couriers.task, couriers.locations)

    def made(score: float) -> pa.Table:
        numbers = np.array([score, np.nan, 2], "<f4").tobytes()
        row = {
            "parcel": "p1",
            "score": score,
            "quantiles": [score, score + 1],
            "numbers": numbers,
            "texts": '["ä", ""]',
        }
        row |= {"view_times": '{"city": null}', "question": "q", "bundle": "b", "created": HOUR}
        types = {name: kind for name, (_, kind) in FIELDS.items()} | {"parcel": pa.string(), "created": INSTANT}
        return pa.table({name: pa.array([value], types[name]) for name, value in row.items()})

    def kept(version: int) -> list[Any]:
        keys = {"parcel": ["p1"], "model_version": [version]}
        found = PredictionView(couriers.task, couriers.locations).plan().look_up(keys, [HOUR + timedelta(hours=1)])
        return [found.values[name][0] for name in ("score", "quantiles", "numbers", "texts", "view_times")]

    for at, version, score in ((30, 1, 0.5), (0, 1, 0.25), (0, 2, 0.75)):
        view.write(made(score), HOUR + timedelta(minutes=at), version)
    first, second = kept(1), kept(2)
    assert first == [0.5, [0.5, 1.5], np.array([0.5, np.nan, 2], "<f4").tobytes(), '["ä", ""]', '{"city": null}']
    assert second[0] == 0.75
    forget(couriers.task, couriers.locations)
    assert not couriers.locations.batch("parcel_late").exists()
    assert kept(1) == [None] * 5
    forget(couriers.task, couriers.locations)


@pytest.mark.ray
@pytest.mark.slow
def test_ray_data_scores_every_row_as_this_process_does_and_ends_with_it(batch: Couriers) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from serving import batch_scoring
from serving.batch_scoring import in_process, on_ray
batch_scoring.ROWS_AT_ONCE = 700
random = np.random.default_rng(1)
model, width, texts = Path(sys.argv[1]), 12, 2
numbers = random.normal(0, 1, (5000, width)).astype(np.float32)
numbers[random.random(numbers.shape) < 0.1] = np.nan
words = random.choice(["", "grey", "blau"], (5000, texts)).astype(object)
here, there = in_process(model, numbers, words), on_ray(model, numbers, words)
assert here.shape == there.shape == (5000, 1) and there.dtype == np.float32
assert np.array_equal(here, there)
print(len(np.unique(there)))
"""
    model = batch.locations.bundles("parcel_late") / "one" / "model.onnx"
    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) > 4000
