"""What stands for an array where drift is watched, against plain Python."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from contracts.bundle import FeatureSpec
from contracts.operations_policy import Monitoring
from monitoring.array_summaries import summarised, watched
from monitoring.log_frame import to_frame
from monitoring.quality import quality
from monitoring.usual import Usual

SPECS = tuple(
    FeatureSpec(name, kind)
    for name, kind in [("age", "number"), ("d[-3]", "number"), ("d[-2]", "number"), ("d[-1]", "number"), ("c", "text")]
)


def test_an_array_is_watched_as_three_numbers_where_its_places_were():
    names = ["age", "d[length]", "d[mean]", "d[last]", "c"]
    assert watched(SPECS) == tuple(FeatureSpec(name, "text" if name == "c" else "number") for name in names)
    assert watched(SPECS[:1]) == SPECS[:1]


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=3), max_size=6))
def test_length_mean_and_last_of_each_row(rows):
    padded = [[np.nan] * (3 - len(row)) + row for row in rows]
    frame = pd.DataFrame(np.array(padded).reshape(-1, 3), columns=["d[-3]", "d[-2]", "d[-1]"])
    frame = frame.assign(age=1.0, c="x", other=7)
    found = summarised(frame, SPECS)
    assert set(found.columns) == {"age", "c", "other", "d[length]", "d[mean]", "d[last]"}
    for row, length, mean, last in zip(rows, found["d[length]"], found["d[mean]"], found["d[last]"], strict=True):
        assert length == len(row)
        assert (np.isnan(mean), np.isnan(last)) == (not row, not row)
        if row:
            assert last == row[-1]
            assert np.isclose(mean, sum(row) / len(row), atol=1e-6)


def test_an_array_that_vanished_from_the_log_is_named_once():
    stamps = pa.array([0], pa.timestamp("us", "UTC"))
    log = pa.table(
        {"event_timestamp": stamps, "score": [0.5], "decision": [0], "feature.age": [1.0], "feature.c": ["x"]}
    )
    frame, vanished = to_frame(log, SPECS, chunks=np.array([0]))
    assert vanished == ["d"]
    assert frame["d[length]"].tolist() == [0.0]


def test_an_array_that_grows_shorter_drifts_and_one_of_constant_length_does_not():
    rng = np.random.default_rng(3)

    def chunks(first: int, count: int, length: int) -> pd.DataFrame:
        size = 300 * count
        frame = pd.DataFrame(rng.normal(size=(size, 3)), columns=["d[-3]", "d[-2]", "d[-1]"])
        frame.iloc[:, : 3 - length] = np.nan
        frame = frame.assign(age=rng.normal(size=size), c=rng.choice(["x", "y"], size))
        frame["__chunk__"], frame["__score__"] = first + np.repeat(np.arange(count), 300), rng.uniform(size=size)
        return summarised(frame, SPECS)

    reference = chunks(0, 8, 3)
    analysis = pd.concat([chunks(20, 1, 3), chunks(21, 1, 1)], ignore_index=True)
    rules = Monitoring(performance_floor=0.7, min_rows=100)
    usual = Usual(reference, watched(SPECS), rules, "roc_auc")
    found = usual.drift(analysis)
    drifted = {chunk: {each.column for each in features if each.drifted} for chunk, (features, _) in found.items()}
    assert "d[length]" not in drifted[20]
    assert "d[length]" in drifted[21]
    assert len(found[20][0]) == 5
    checked = {each.feature: each for each in quality(reference, analysis, usual.features, usual.repeats)[21]}
    assert checked["d[length]"].unseen == 1.0
