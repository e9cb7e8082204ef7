"""The audit finds every planted difference, names its cause where it can, and finds nothing on a clean log."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from contracts.predictions import PredictionRow, read_predictions
from monitoring.recompute import Recomputation, RecomputationError, ViewFacts
from monitoring.skew import audit, compare, sample_keys
from monitoring.skew_report import FeatureSkew
from tests.monitoring.conftest import FINGERPRINT, START, Cases, FakeStore, World, micros

HOUR = timedelta(hours=1)
ONLY_A = {1: {"a"}}


def clean(world: World, rows: int = 240) -> list[PredictionRow]:
    """A day of rows, not logged yet."""
    cases = Cases.make(START, 1, rows, seed=5)
    made = cases.rows()
    world.log(cases, rows=[])
    return made


def log(world: World, rows: list[PredictionRow]) -> None:
    world.log(Cases(world.cases[0].frame.iloc[:0]), rows=rows)


def by_name(world: World, **how: Any) -> dict[str, FeatureSkew]:
    report = audit(world.task, world.locations, store=world.store, **how)
    return {feature.name: feature for feature in report.features}


def test_a_clean_log_has_no_mismatch_and_every_value_is_checked(world: World) -> None:
    world.log(Cases.make(START, 2, 120, seed=5))
    store = world.store
    report = audit(world.task, world.locations, store=store)
    assert (report.rows, report.checked, report.mismatches, report.unknown) == (240, 240 * 3, 0, ())
    assert [feature.name for feature in report.features] == ["visits", "spend", "plan"]
    (asked,) = store.asked
    assert asked.schema.field("customer").type == pa.int64()
    assert asked.schema.field("basket").type == pa.float64()
    assert asked["event_timestamp"].type == pa.timestamp("us", tz="UTC")
    assert "plan" not in asked.column_names
    json.dumps(report.to_dict())


def test_an_empty_log_is_no_skew(world: World) -> None:
    report = audit(world.task, world.locations)
    assert (report.rows, report.checked, report.mismatches) == (0, 0, 0)


def test_each_kind_of_difference_is_counted_with_its_size(world: World) -> None:
    rows = clean(world)
    at = {name: i for i, name in enumerate(("visits", "spend"))}
    rows[3].numbers[at["visits"]] += 2.5
    rows[4].numbers[at["visits"]] -= 0.5
    rows[5].numbers[at["visits"]] = np.nan
    rows[6] = replace(rows[6], texts=["gone"])
    rows[7] = replace(rows[7], texts=[""])
    frame = world.cases[0].frame
    frame.loc[8, "spend"] = np.nan  # offline has none
    log(world, rows)
    found = by_name(world)
    visits, spend, plan = found["visits"], found["spend"], found["plan"]
    assert (visits.different, visits.missing, visits.extra, visits.mismatches) == (2, 1, 0, 3)
    assert visits.largest == pytest.approx(2.5, abs=1e-6)
    assert (spend.different, spend.missing, spend.extra) == (0, 0, 1)
    assert (plan.different, plan.missing, plan.extra, plan.largest) == (1, 1, 0, 0.0)
    changed, *_ = visits.examples
    assert (changed.request_id, changed.case_id, changed.version) == (rows[3].request_id, rows[3].case_id, 1)
    assert changed.online == pytest.approx(frame["visits"][3] + 2.5, abs=1e-6)
    assert changed.offline == pytest.approx(frame["visits"][3])
    assert visits.examples[2].online is None
    assert spend.examples[0].offline is None
    assert (plan.examples[0].online, plan.examples[0].offline) == ("gone", frame["plan"][6])
    assert (plan.examples[1].online, plan.examples[1].offline) == (None, frame["plan"][7])


def test_no_more_than_five_examples_are_kept(world: World) -> None:
    rows = clean(world)
    for row in rows[:20]:
        row.numbers[0] += 1
    log(world, rows)
    visits = by_name(world)["visits"]
    assert (visits.different, len(visits.examples)) == (20, 5)
    assert [example.request_id for example in visits.examples] == [row.request_id for row in rows[:5]]


def test_null_on_both_sides_is_equal(world: World) -> None:
    rows = clean(world)
    rows[0].numbers[0] = np.nan
    rows[1] = replace(rows[1], texts=[""])
    world.cases[0].frame.loc[0, "visits"] = np.nan
    world.cases[0].frame.loc[1, "plan"] = None
    log(world, rows)
    assert all(feature.mismatches == 0 for feature in by_name(world).values())


def test_the_cause_is_named_where_the_views_tell(world: World) -> None:
    rows = clean(world)
    # The boundary of the hour was not materialized: the view answered with the one before.
    late = {"habits": rows[0].view_times["habits"] - micros(START + HOUR) + micros(START), "account": None}  # type: ignore[operator]
    rows[0] = replace(rows[0], view_times=late)
    rows[0].numbers[0] += 1
    rows[1].numbers[0] += 1  # fresh, and wrong all the same
    rows[2] = replace(rows[2], texts=[""])  # the account view had no row for the key
    rows[3] = replace(rows[3], view_times={})  # the log says nothing
    rows[3].numbers[0] = np.nan
    log(world, rows)
    found = by_name(world)
    assert found["visits"].causes == {"stale": 1, "unexplained": 1, "absent": 1}
    assert found["plan"].causes == {"absent": 1}
    assert found["visits"].examples[0].view_times == {"habits": START - HOUR}
    assert found["plan"].examples[0].view_times == {"account": None}


def test_degraded_answers_are_left_out_and_counted(world: World) -> None:
    rows = clean(world)
    rows[0] = replace(rows[0], degraded=("weather: last good",))
    rows[0].numbers[0] += 1
    log(world, rows)
    report = audit(world.task, world.locations, store=world.store)
    assert (report.set_aside, report.rows, report.mismatches) == ({"degraded": 1}, 239, 0)


def test_start_and_end_bound_the_rows(world: World) -> None:
    world.log(Cases.make(START, 2, 100, seed=5))
    report = audit(world.task, world.locations, store=world.store, start=START + 24 * HOUR)
    assert report.rows == 100
    report = audit(world.task, world.locations, store=world.store, start=START + 12 * HOUR, end=START + 24 * HOUR)
    assert report.rows == 50


def test_a_share_takes_all_rows_of_a_key_or_none(world: World) -> None:
    world.log(Cases.make(START, 4, 240, seed=5))
    table = read_predictions(world.locations.predictions("churn"))
    sample = sample_keys(table, ["customer"], 0.4)
    assert 0.2 < sample.num_rows / table.num_rows < 0.6
    keys = [pc.struct_field(_parsed(t), "customer").to_pylist() for t in (table, sample)]
    assert {key: keys[0].count(key) for key in keys[1]} == {key: keys[1].count(key) for key in keys[1]}
    assert sample_keys(table, ["customer"], 0.4).equals(sample)
    more = sample_keys(table, ["customer"], 0.8)
    assert set(sample["request_id"].to_pylist()) < set(more["request_id"].to_pylist())
    report = audit(world.task, world.locations, store=world.store, share=0.4)
    assert (report.rows, report.mismatches) == (sample.num_rows, 0)
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got 0"):
        audit(world.task, world.locations, store=world.store, share=0)


def test_composite_keys_do_not_run_into_each_other() -> None:
    """(1, 23) and (12, 3) are two keys: of all pairs that read the same run together, some are taken alone."""
    inputs = [json.dumps({"a": a, "b": b}) for a in range(40) for b in range(40)]
    taken = sample_keys(pa.table({"inputs": pa.array(inputs)}), ["a", "b"], 0.5)["inputs"].to_pylist()
    assert 650 < len(taken) < 950
    by_text: dict[str, set[bool]] = {}
    for text in inputs:
        by_text.setdefault("".join(str(key) for key in json.loads(text).values()), set()).add(text in taken)
    assert {True, False} in by_text.values()


def test_versions_with_other_features_are_audited_each_for_its_own() -> None:
    """Reading both segments as one table fills the features of the other version with nulls."""
    both = _table(version=[1, 1, 2, 2], a=[1.0, 1.0, None, None], b=[None, None, 2.0, 2.0])
    report = compare(both, _Recomputed(a=[1.0] * 4, b=[2.0] * 4), features={1: {"a"}, 2: {"b"}})
    assert {feature.name: (feature.checked, feature.mismatches) for feature in report.features} == {
        "a": (2, 0),
        "b": (2, 0),
    }


def test_a_feature_that_stopped_coming_is_missing_whatever_other_versions_have() -> None:
    table = _table(version=[1, 1, 2, 2], a=[1.0, 1.0, None, None])
    report = compare(table, _Recomputed(a=[1.0] * 4), features={1: {"a"}, 2: {"a"}})
    assert (report.features[0].missing, report.mismatches, report.checked) == (2, 2, 4)


def test_a_feature_the_service_no_longer_has_is_said_not_compared() -> None:
    report = compare(_table(version=[1], a=[1.0], old=[3.0]), _Recomputed(a=[1.0]), features={1: {"a", "old"}})
    assert (report.unknown, report.checked) == (("old",), 1)


def test_batches_add_up() -> None:
    size = 1000
    values = np.arange(size, dtype=float)
    wrong = values.copy()
    wrong[::7] += 1
    table = _table(version=[1] * size, a=wrong.tolist())
    at_once = compare(table, _Recomputed(a=values.tolist()), features=ONLY_A)
    in_parts = compare(table, _Recomputed(a=values.tolist()), features=ONLY_A, batch=64)
    assert in_parts.to_dict() == at_once.to_dict()
    assert at_once.mismatches == len(values[::7])


def test_memory_holds_a_batch_and_progress_is_told(world: World) -> None:
    """The log is read in batches: what they find adds up to what one look finds, and every row goes by."""
    rows = clean(world)
    for row in rows[::11]:
        row.numbers[0] += 1
    log(world, rows)
    told: list[tuple[int, int]] = []
    store = world.store
    parts = audit(world.task, world.locations, store=store, batch=50, progress=lambda *seen: told.append(seen))
    assert [asked.num_rows for asked in store.asked[::2]] == [
        50,
        50,
        50,
        50,
        40,
    ]  # every other asks for boundaries before
    assert told == [(240, 240)] * 5  # a segment this small is read at once
    whole = audit(world.task, world.locations, store=world.store)
    assert parts.to_dict() == whole.to_dict()
    assert [each.request_id for each in parts.features[0].examples] == [row.request_id for row in rows[::11][:5]]


def test_examples_are_the_earliest_whatever_order_the_log_has(world: World) -> None:
    rows = clean(world)
    for row in rows[100:]:
        row.numbers[0] += 1
    log(world, rows[::-1])
    for batch in (7, 1000):
        report = audit(world.task, world.locations, store=world.store, batch=batch)
        examples = report.features[0].examples
        assert [each.request_id for each in examples] == [row.request_id for row in rows[100:105]]
        assert examples[0].keys == {"customer": rows[100].inputs["customer"]}
        assert examples[0].answered_at == rows[100].answered_at


def test_versions_of_other_definitions_are_set_aside_by_name(world: World) -> None:
    rows = clean(world)
    rows = [replace(row, version=2) if i % 3 == 0 else row for i, row in enumerate(rows)]
    for row in rows[::3]:
        row.numbers[0] += 1
    log(world, rows)
    how = {"store": world.store, "fingerprints": {1: FINGERPRINT, 2: "another"}}
    report = audit(world.task, world.locations, **how)
    assert (report.rows, report.mismatches, report.set_aside) == (160, 0, {"other definitions": 80})
    how["fingerprints"] = {1: FINGERPRINT}  # nothing is known of version 2: it is judged
    assert audit(world.task, world.locations, **how).mismatches == 80


def test_the_report_says_what_was_looked_at(world: World) -> None:
    rows = clean(world)
    log(world, rows)
    report = audit(world.task, world.locations, store=world.store, share=0.3).to_dict()
    kept = [row for row in rows if row.event_timestamp.isoformat() in (report["first"], report["last"])]
    assert len(kept) == 2
    assert report["share"] == 0.3
    assert set(report) == {
        *("share", "first", "last", "rows", "set_aside", "checked", "mismatches", "not_judged", "unknown", "features")
    }


def test_a_store_that_drops_rows_is_refused(world: World) -> None:
    world.log(Cases.make(START, 1, 100, seed=5))

    class Dropping(FakeStore):
        def get_historical_features(self, entity_df: pa.Table, features: Any) -> Any:
            return super().get_historical_features(entity_df.slice(1), features)

    with pytest.raises(RecomputationError, match="asked for 100 rows and gave 99"):
        audit(world.task, world.locations, store=Dropping(world.cases[0]))  # type: ignore[arg-type]


def test_an_unknown_service_names_the_known_ones(world: World) -> None:
    with pytest.raises(RecomputationError, match=r"no feature service 'churn_v2', only churn_v1\."):
        Recomputation(FakeStore(Cases.make(START, 1, 1, seed=1)), "churn_v2")  # type: ignore[arg-type]


def test_what_does_not_fit_its_type_is_asked_for_as_null(world: World) -> None:
    rows = clean(world, 4)
    inputs = [{"customer": "x"}, {"customer": 7, "basket": None, "more": 1}, {"customer": 2**53 + 1}, {}]
    rows = [replace(row, inputs=given) for row, given in zip(rows, inputs, strict=True)]
    log(world, rows)
    store = world.store
    audit(world.task, world.locations, store=store)  # type: ignore[arg-type]
    assert store.asked[0]["customer"].to_pylist() == [None, 7, 2**53 + 1, None]


class _Recomputed:
    """The training path's answer, given."""

    def __init__(self, **columns: Any) -> None:
        self.table = pa.table({name: pa.array(values) for name, values in columns.items()})
        self.views: dict[str, ViewFacts] = {}
        self.sources: dict[str, tuple[str, ...]] = {}

    fingerprint = "today"

    def earliest(self, view: str) -> int | None:
        return None

    def __call__(self, inputs: pa.ChunkedArray, at: pa.ChunkedArray) -> pa.Table:
        return self.table.take(pc.cast(inputs, pa.int64()))


def _table(*, version: list[int], **features: list[Any]) -> pa.Table:
    size = len(version)
    stamps = pa.array(np.arange(size) + micros(START)).cast(pa.timestamp("us", tz="UTC"))
    columns = {
        "request_id": pa.array([f"r{i}" for i in range(size)]),
        "position": pa.array([0] * size, pa.int32()),
        "case_id": pa.nulls(size, pa.string()),
        "version": pa.array(version, pa.int32()),
        "event_timestamp": stamps,
        "answered_at": stamps,
        "inputs": pa.array([str(i) for i in range(size)]),
        "view_times": pa.array(["{}"] * size),
        "degraded": pa.array([""] * size),
    }
    return pa.table(columns | {f"feature.{name}": pa.array(v, pa.float32()) for name, v in features.items()})


def _parsed(table: pa.Table) -> pa.Array:
    return pa.array([json.loads(text) for text in table["inputs"].to_pylist()])
