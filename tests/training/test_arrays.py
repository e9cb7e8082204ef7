from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.bundle import FeatureSpec
from training.arrays import feature_kinds, is_array, places, sequences
from training.frame import Frame
from training.pipeline import make_version


@settings(deadline=None)
@given(st.lists(st.none() | st.lists(st.none() | st.integers(-9, 9), max_size=5), max_size=6), st.integers(1, 4))
def test_a_place_holds_what_counting_from_the_end_finds(rows, count):
    column = pa.chunked_array([pa.array(rows[:2], pa.list_(pa.int64())), pa.array(rows[2:], pa.list_(pa.int64()))])
    found = dict(places("x", column, count))
    assert list(found) == [f"x[-{place}]" for place in range(count, 0, -1)]
    for place in range(1, count + 1):
        expected = [row[-place] if row and len(row) >= place else None for row in rows]
        assert found[f"x[-{place}]"].to_pylist() == expected


def test_the_inputs_of_an_array_are_known_by_their_names():
    specs = [FeatureSpec(name, kind) for name, kind in [("a", "number"), ("city", "text"), ("x[-2]", "number")]]
    specs += [FeatureSpec("x[-1]", "number"), FeatureSpec("b", "number"), FeatureSpec("y[-1]", "number")]
    assert feature_kinds(specs) == {"a": "number", "city": "text", "x": "array", "b": "number", "y": "array"}
    assert sequences(specs) == ((1, 2), (4,))


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.float32(), pa.string(), pa.list_(pa.list_(pa.int32()))])
def test_only_an_array_of_numbers_is_one(kind):
    assert not is_array(kind)
    assert is_array(pa.list_(pa.float32()))
    assert is_array(pa.large_list(pa.int64()))


def test_a_frame_holds_places_and_a_network_reads_them_in_order(make_frame, make_task):
    pytest.importorskip("torch", reason="the extra 'sequences' is not installed: see CONTRIBUTING.md")
    plain = make_frame()
    size = plain.table.num_rows
    rng = np.random.default_rng(0)
    lists = [rng.normal(size=n).tolist() for n in rng.integers(2, 7, size)]
    spine = plain.table.select([name for name in plain.table.column_names if not name.startswith("feature.")])
    late = pa.array([int(each[-1] > each[-2]) for each in lists])
    spine = spine.set_column(spine.column_names.index("late"), "late", late)
    features = pa.table({"noise": plain.table["feature.noise"], "steps": pa.array(lists, pa.list_(pa.float32()))})
    task = make_task(training={"window": "30d", "validation": "5d", "holdout": "7d", "params": {"epochs": 10}})
    frame = Frame.of(spine, features, plain.roles, array_places=4)
    assert [spec.name for spec in frame.specs] == ["noise", "steps[-4]", "steps[-3]", "steps[-2]", "steps[-1]"]
    assert frame.feature_names == ["noise", "steps"]
    made = make_version(task, frame, datetime(2024, 3, 1, tzinfo=UTC), None, lap=lambda _: None, say=lambda _: None)
    assert made.learner == "torch_sequence"
    assert made.evaluation.metrics["roc_auc"].value > 0.9
    assert made.evaluation.parity < 1e-5
