"""Array features in the audit: every place is a value of its own, and a difference is named with its place."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from contracts.segment_rows import COLUMNS
from monitoring.recompute import ViewFacts
from monitoring.skew import compare

START = datetime(2024, 3, 1, 6, tzinfo=UTC)
HOUR = timedelta(hours=1)
INSTANT = pa.timestamp("us", tz="UTC")
ARRAYS = [[1, 2, 3], [4, 5], [], None, [6, 7, 8, 9]]
"""What training says at the full hour, row by row; the model reads three places."""


class Recompute:
    """Arrays that are known for the full hours only; an hour before they lacked their last value."""

    def __init__(self, kind: pa.DataType) -> None:
        self.kind = pa.list_(kind)
        self.views = {"steps": ViewFacts("steps", HOUR, timedelta(0), {"d": timedelta(days=1)})}
        self.sources = {"d": ("steps",), "odd[-1]": ()}
        self.fingerprint = ""

    def __call__(self, inputs: pa.ChunkedArray, at: pa.ChunkedArray) -> pa.Table:
        rows = [json.loads(each)["row"] for each in inputs.to_pylist()]
        fresh = [when >= START for when in at.to_pylist()]
        told = [
            ARRAYS[row] if now or not ARRAYS[row] else ARRAYS[row][:-1] for row, now in zip(rows, fresh, strict=True)
        ]
        return pa.table({"d": pa.array(told, self.kind), "odd[-1]": pa.array([float(row) for row in rows])})

    def earliest(self, view: str) -> int | None:
        return None


def logged(**changes: Any) -> pa.Table:
    """The log of a version that read three places of `d`, each as training says, but for `changes`."""
    count = len(ARRAYS)
    stamps = pa.array([START + timedelta(minutes=row) for row in range(count)], INSTANT)
    boundary = int(START.timestamp() * 1_000_000)
    columns: dict[str, Any] = {field.name: pa.nulls(count, field.type) for field in COLUMNS}
    columns |= {"event_timestamp": stamps, "answered_at": stamps, "version": pa.array([1] * count, pa.int32())}
    columns |= {"request_id": [f"r{row}" for row in range(count)], "position": pa.array([0] * count, pa.int32())}
    columns["inputs"] = [json.dumps({"row": row}) for row in range(count)]
    columns["view_times"] = [json.dumps({"steps": boundary})] * count
    for place in (3, 2, 1):
        values = [row[-place] if row and len(row) >= place else None for row in ARRAYS]
        columns[f"feature.d[-{place}]"] = pa.array(values, pa.float32())
    columns["feature.odd[-1]"] = pa.array(np.arange(count), pa.float32())
    for name, (row, value) in changes.items():
        told = columns[f"feature.{name}"].to_pylist()
        told[row] = value
        columns[f"feature.{name}"] = pa.array(told, pa.float32())
    return pa.table(columns)


def found(table: pa.Table, kind: Any = None, settling: timedelta = timedelta(0)) -> Any:
    names = {name.removeprefix("feature.") for name in table.column_names if name.startswith("feature.")}
    return compare(table, Recompute(kind or pa.int64()), features={1: names}, keys=(), settling=settling)


def test_every_place_of_every_row_is_checked_and_a_name_like_a_place_is_itself():
    report = found(logged())
    assert (report.checked, report.mismatches, report.unknown) == (4 * 5, 0, ())
    assert {feature.name for feature in report.features} == {"d[-3]", "d[-2]", "d[-1]", "odd[-1]"}


def test_a_difference_is_found_at_its_place():
    report = found(logged(**{"d[-2]": (0, 2.5), "d[-3]": (1, 4.0), "d[-1]": (4, None)}))
    wrong = {each.name: (each.different, each.extra, each.missing) for each in report.features if each.mismatches}
    assert wrong == {"d[-2]": (1, 0, 0), "d[-3]": (0, 1, 0), "d[-1]": (0, 0, 1)}
    (example,) = next(each for each in report.features if each.name == "d[-2]").examples
    assert (example.request_id, example.online, example.offline) == ("r0", 2.5, 2.0)


def test_whole_numbers_must_be_the_same_and_others_may_be_one_step_of_a_float_apart():
    next_one = float(np.nextafter(np.float32(3), np.float32(4)))
    assert found(logged(**{"d[-1]": (0, next_one)})).mismatches == 1
    assert found(logged(**{"d[-1]": (0, next_one)}), pa.float64()).mismatches == 0


def test_the_array_of_the_hour_before_is_spared_while_its_successor_may_be_late():
    before = {"d[-1]": (0, 2.0), "d[-2]": (0, 1.0), "d[-3]": (0, None)}
    assert found(logged(**before), settling=timedelta(minutes=5)).not_judged == {"settling": 3}
    assert found(logged(**before)).mismatches == 3
