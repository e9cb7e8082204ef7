"""Batches of the prediction log are what one read gives, in parts, whatever happens to its segments meanwhile."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from contracts import prediction_batches as module
from contracts.prediction_batches import count_rows, prediction_batches
from contracts.predictions import PredictionRow, append, compact, open_segment, read_predictions

START = datetime(2024, 1, 1, tzinfo=UTC)
FEATURES = [("visits", "number"), ("city", "text")]
MINUTE = timedelta(minutes=1)


def row(number: int, **changes: Any) -> PredictionRow:
    made = PredictionRow(
        request_id=f"r{number:04}",
        position=0,
        variant=("champion", "canary", "shadow")[number % 3],
        version=1,
        case_id=None,
        event_timestamp=START + number * MINUTE,
        answered_at=START + number * MINUTE,
        inputs={"user": number},
        numbers=np.array([number or np.nan], dtype=np.float32),
        texts=["Bern"],
        view_times={"visits": None},
        score=0.25,
        decision=0,
        latency_ms=2.5,
    )
    return replace(made, **changes)


def write(path: Path, numbers: range, features: Any = FEATURES) -> Path:
    connection = open_segment(path, features)
    append(connection, [row(number) for number in numbers])
    connection.close()
    return path


def in_order(table: pa.Table) -> pa.Table:
    names = ("event_timestamp", "request_id", "position", "variant")
    return table.select(sorted(table.column_names)).sort_by([(name, "ascending") for name in names])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Four segments: two compacted, two live, one of other features, one without a row."""
    folder = tmp_path / "log"
    compact(write(folder / "a.sqlite", range(50)))
    write(folder / "b.sqlite", range(50, 70))
    compact(write(folder / "c.sqlite", range(70, 120), [("spend", "number"), ("town", "text")]))
    write(folder / "d.sqlite", range(0))
    return folder


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
@pytest.mark.parametrize(
    "how", [{}, {"start": START + 10 * MINUTE, "end": START + 90 * MINUTE}, {"variants": ["shadow"]}]
)
def test_all_rows_come_once_in_batches_of_the_size(
    log: Path, size: int, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_READ", 9)
    batches = list(prediction_batches(log, rows=size, **how))
    expected = read_predictions(log, **how)
    assert [batch.rows.num_rows for batch in batches[:-1]] == [size] * (len(batches) - 1)
    together = pa.concat_tables([batch.rows for batch in batches], promote_options="default")
    assert in_order(together).equals(in_order(expected))
    passed = [batch.passed for batch in batches]
    assert passed == sorted(passed)
    assert passed[-1] <= count_rows(log) == 120


def test_a_log_that_does_not_exist_has_no_batch(tmp_path: Path) -> None:
    assert list(prediction_batches(tmp_path / "nowhere")) == []
    assert count_rows(tmp_path / "nowhere") == 0


def test_a_segment_compacted_under_the_reader_is_read_once_and_whole(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_READ", 5)
    seen = []
    for batch in prediction_batches(log, rows=5, variants=("champion", "canary", "shadow")):
        seen += batch.rows["request_id"].to_pylist()
        if "r0055" in seen and (log / "b.sqlite").exists():
            compact(log / "b.sqlite")
    assert sorted(seen) == [f"r{number:04}" for number in range(120)]


@pytest.mark.parametrize("moment", ["before it is opened", "before its snapshot is known to be whole"])
def test_a_segment_that_becomes_parquet_while_it_is_opened_is_read_from_there(
    log: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Its writer was killed, so its rows are in the write-ahead log, which is gone when the reader looks for it."""
    (log / "b.sqlite").unlink()
    writer = open_segment(log / "b.sqlite", FEATURES)  # not closed: closing moves the rows to the file itself
    append(writer, [row(number) for number in range(50, 70)])
    opened = module.open_to_read

    def late(segment: Path) -> Any:
        if segment.name != "b.sqlite":
            return opened(segment)
        if moment == "before it is opened":
            compact(segment)
        connection = opened(segment)
        if segment.exists():
            compact(segment)
        return connection

    monkeypatch.setattr(module, "open_to_read", late)
    (batch,) = prediction_batches(log, variants=("champion", "canary", "shadow"))
    assert sorted(batch.rows["request_id"].to_pylist()) == [f"r{number:04}" for number in range(120)]
    writer.close()


def test_rows_written_meanwhile_do_no_harm(log: Path) -> None:
    """A reader sees every row that was there when it began, whatever a writer adds."""
    stop = threading.Event()

    def keep_writing() -> None:
        connection = open_segment(log / "b.sqlite", FEATURES)
        number = 1000
        while not stop.is_set():
            append(connection, [row(number)])
            number += 1
        connection.close()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        for _ in range(20):
            rows = [batch.rows["request_id"].to_pylist() for batch in prediction_batches(log, rows=10)]
            flat = [each for part in rows for each in part]
            assert len(flat) == len(set(flat))
            assert {f"r{number:04}" for number in range(120) if number % 3 < 2} <= set(flat)
    finally:
        stop.set()
        writer.join()
