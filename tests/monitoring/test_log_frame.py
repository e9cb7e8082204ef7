from __future__ import annotations

import numpy as np
import pyarrow as pa

from contracts.bundle import FeatureSpec
from monitoring.log_frame import CHUNK, SCORE, to_frame
from tests.monitoring.conftest import DAY, START, World, micros

INSTANT = pa.timestamp("us", tz="UTC")


def test_what_is_not_a_value_is_null_and_what_is_not_logged_is_named() -> None:
    log = pa.table(
        {
            "event_timestamp": pa.array([micros(START), micros(START + DAY)], pa.int64()).cast(INSTANT),
            "score": pa.array([0.25, 0.5]),
            "decision": pa.array([0, 1], pa.int8()),
            "feature.rate": pa.array([np.inf, 2.5], pa.float32()),
            "feature.plan": pa.array(["", "pro"], pa.string()),
        }
    )
    specs = [
        FeatureSpec("rate", "number"),
        FeatureSpec("plan", "text"),
        FeatureSpec("x", "number"),
        FeatureSpec("t", "text"),
    ]
    frame, vanished = to_frame(log, specs, chunks=np.array([3, 4]))
    assert vanished == ["x", "t"]
    assert frame["rate"].isna().tolist() == [True, False]
    assert frame["plan"].tolist() == [None, "pro"]
    assert frame["x"].isna().all()
    assert frame["t"].isna().all()
    assert frame[SCORE].tolist() == [0.25, 0.5]
    assert frame[CHUNK].tolist() == [3, 4]


def test_world_logs_what_it_says(world: World) -> None:
    """The fixture itself: what is logged reads back with the features the bundle names."""
    from contracts.predictions import read_predictions
    from tests.monitoring.conftest import Cases

    world.log(Cases.make(START, 1, 50, seed=3))
    table = read_predictions(world.locations.predictions("churn"))
    assert table.num_rows == 50
    assert {f"feature.{spec.name}" for spec in world.bundle.metadata.features} <= set(table.column_names)
