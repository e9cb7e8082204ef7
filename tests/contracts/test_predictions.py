"""The prediction log: what was committed is read back, once, from live segments and compacted ones alike."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import predictions as log
from contracts.predictions import LogBalance, PredictionRow, append, balance, compact, open_segment, read_predictions

START = datetime(2024, 1, 1, tzinfo=UTC)
FEATURES = [("visits", "number"), ("city", "text"), ("spend", "number")]


def row(number: int, **changes: Any) -> PredictionRow:
    made = PredictionRow(
        request_id=f"r{number:04}",
        position=0,
        variant="champion",
        version=1,
        case_id=f"case-{number}",
        event_timestamp=START + timedelta(minutes=number),
        answered_at=START + timedelta(minutes=number, seconds=1),
        inputs={"user": number, "basket": 1.5},
        numbers=np.array([number, np.nan], dtype=np.float32),
        texts=["Bern"],
        view_times={"visits": 1_700_000_000_000_000, "profile": None},
        score=0.25,
        decision=0,
        latency_ms=2.5,
        degraded=(),
    )
    return replace(made, **changes)


def write(path: Path, rows: list[PredictionRow], *, lost: int = 0, features: Any = FEATURES) -> Path:
    connection = open_segment(path, features)
    answered = sum(each.variant in log.ANSWERED_VARIANTS for each in rows)
    append(connection, rows, answered=answered + lost, lost=lost)
    connection.close()
    return path


def test_a_log_that_does_not_exist_reads_as_empty(tmp_path: Path) -> None:
    table = read_predictions(tmp_path / "nowhere")
    assert table.schema == log.COLUMNS
    assert table.num_rows == 0
    assert balance(tmp_path / "nowhere") == LogBalance(0, 0, 0)


def test_every_value_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    plus_two = timezone(timedelta(hours=2))
    asked = datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=plus_two)
    write(tmp_path / "a.sqlite", [row(7, event_timestamp=asked, case_id=None, degraded=("stale", "fallback"))])
    [found] = read_predictions(tmp_path).to_pylist()
    assert found["event_timestamp"] == asked
    assert found["answered_at"] == START + timedelta(minutes=7, seconds=1)
    assert json.loads(found.pop("inputs")) == {"user": 7, "basket": 1.5}
    assert json.loads(found.pop("view_times")) == {"visits": 1_700_000_000_000_000, "profile": None}
    assert (found["request_id"], found["position"], found["variant"], found["version"]) == ("r0007", 0, "champion", 1)
    assert (found["case_id"], found["score"], found["decision"], found["latency_ms"]) == (None, 0.25, 0, 2.5)
    assert found["degraded"] == "stale,fallback"
    assert (found["feature.visits"], found["feature.city"], found["feature.spend"]) == (7.0, "Bern", None)


def test_a_compacted_segment_of_another_time_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, first in (("a", 0), ("b", 10), ("c", 20)):
        compact(write(tmp_path / f"{name}.sqlite", [row(number) for number in range(first, first + 10)]))
    everything, opened, read = read_predictions(tmp_path), [], pq.read_table

    def reading(path: Path, **how: Any) -> pa.Table:
        opened.append(path.stem)
        return read(path, **how)

    def opens(first: int, last: int) -> str:
        opened.clear()
        start, end = (START + timedelta(minutes=number) for number in (first, last))
        assert read_predictions(tmp_path, start=start, end=end).equals(everything.slice(first, last - first))
        return "".join(opened)

    monkeypatch.setattr(pq, "read_table", reading)
    assert [opens(*span) for span in ((0, 30), (9, 10), (9, 11), (10, 20), (19, 20), (30, 31))] == [
        *("abc", "a", "ab", "b", "b", ""),
    ]
    silent = tmp_path / "a.parquet"
    pq.write_table(read(silent), silent, write_statistics=False)  # as another program may have compacted it
    assert opens(10, 20) == "ab"


def test_column_types_are_those_of_the_format_live_and_compacted(tmp_path: Path) -> None:
    segment = write(tmp_path / "a.sqlite", [row(1)])
    features = [("feature.visits", pa.float32()), ("feature.city", pa.string()), ("feature.spend", pa.float32())]
    expected = pa.schema([*log.COLUMNS, *features])
    assert read_predictions(tmp_path).schema == expected
    compact(segment)
    assert read_predictions(tmp_path).schema.remove_metadata() == expected


@settings(deadline=None, max_examples=20)
@given(
    scores=st.lists(st.floats(0, 1, width=64), min_size=1, max_size=20),
    numbers=st.lists(st.floats(allow_nan=False, width=32), min_size=20, max_size=20),
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)
def test_numbers_and_texts_survive_the_way(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float], numbers: list[float], text: str
) -> None:
    folder = tmp_path_factory.mktemp("log")
    vectors = [np.array([number, 0], dtype=np.float32) for number in numbers]
    rows = [row(i, score=s, numbers=vectors[i], texts=[text]) for i, s in enumerate(scores)]
    segment = write(folder / "a.sqlite", rows)
    for _ in range(2):
        table = read_predictions(folder)
        assert table["score"].to_pylist() == scores
        assert table["feature.visits"].to_pylist() == [float(v[0]) for v in vectors[: len(scores)]]
        assert table["feature.city"].to_pylist() == [text] * len(scores)
        compact(segment)


@pytest.mark.parametrize("compacted", [False, True])
def test_the_window_is_closed_at_its_start_and_open_at_its_end(tmp_path: Path, compacted: bool) -> None:
    segment = write(tmp_path / "a.sqlite", [row(number) for number in range(6)])
    if compacted:
        compact(segment)
    window = read_predictions(tmp_path, start=START + timedelta(minutes=2), end=START + timedelta(minutes=4))
    assert window["request_id"].to_pylist() == ["r0002", "r0003"]
    assert read_predictions(tmp_path, start=START + timedelta(minutes=4)).num_rows == 2
    assert read_predictions(tmp_path, end=START + timedelta(minutes=4)).num_rows == 4


def test_a_window_without_a_zone_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.sqlite", [row(1)])
    with pytest.raises(ValueError, match="no time zone"):
        read_predictions(tmp_path, start=datetime(2024, 1, 1))  # noqa: DTZ001 - the point of the test


@pytest.mark.parametrize("compacted", [False, True])
def test_shadow_rows_are_read_only_when_asked_for(tmp_path: Path, compacted: bool) -> None:
    segment = write(tmp_path / "a.sqlite", [row(1), row(1, variant="shadow", version=2), row(2, variant="canary")])
    if compacted:
        compact(segment)
    assert read_predictions(tmp_path)["variant"].to_pylist() == ["champion", "canary"]
    assert read_predictions(tmp_path, variants=["shadow"])["version"].to_pylist() == [2]


@pytest.mark.parametrize("compacted", [False, True])
def test_vectors_are_left_out_on_request(tmp_path: Path, compacted: bool) -> None:
    segment = write(tmp_path / "a.sqlite", [row(1), row(2)])
    whole = read_predictions(tmp_path)
    if compacted:
        compact(segment)
    assert read_predictions(tmp_path, vectors=False).equals(whole.select(log.COLUMNS.names))


def test_rows_come_in_order_of_their_instants_whatever_segment_holds_them(tmp_path: Path) -> None:
    write(tmp_path / "b.sqlite", [row(3), row(1)])
    compact(write(tmp_path / "a.sqlite", [row(4), row(2), row(2, position=1)]))
    table = read_predictions(tmp_path)
    assert table["request_id"].to_pylist() == ["r0001", "r0002", "r0002", "r0003", "r0004"]
    assert table["position"].to_pylist() == [0, 0, 1, 0, 0]


def test_segments_with_other_features_are_joined_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a.sqlite", [row(1)])
    newer = row(2, numbers=np.array([5.0], dtype=np.float32), texts=[])
    compact(write(tmp_path / "b.sqlite", [newer], features=[("age", "number")]))
    table = read_predictions(tmp_path)
    assert table["feature.visits"].to_pylist() == [1.0, None]
    assert table["feature.age"].to_pylist() == [None, 5.0]


def test_each_version_is_known_by_the_features_its_rows_have(tmp_path: Path) -> None:
    assert log.logged_features(tmp_path) == {}
    nothing = row(1, numbers=np.array([np.nan, np.nan], dtype=np.float32), texts=[""])
    write(tmp_path / "a.sqlite", [nothing, row(2, version=0)])
    newer = row(3, version=2, numbers=np.array([5.0], dtype=np.float32), texts=[])
    compact(write(tmp_path / "b.sqlite", [newer], features=[("age", "number")]))
    sqlite3.connect(tmp_path / "born.sqlite").close()
    whole = {"visits", "city", "spend"}
    assert log.logged_features(tmp_path) == {0: whole, 1: whole, 2: {"age"}}


def test_a_segment_refuses_another_schema_and_accepts_its_own(tmp_path: Path) -> None:
    write(tmp_path / "a.sqlite", [row(1)])
    with pytest.raises(ValueError, match="holds other features"):
        open_segment(tmp_path / "a.sqlite", [("age", "number")])
    write(tmp_path / "a.sqlite", [row(2)])
    assert read_predictions(tmp_path).num_rows == 2


def test_a_row_is_kept_once_as_it_was_first_written(tmp_path: Path) -> None:
    connection = open_segment(tmp_path / "a.sqlite", FEATURES)
    append(connection, [row(1, score=0.1)], answered=1)
    append(connection, [row(1, score=0.9)])
    connection.close()
    assert read_predictions(tmp_path)["score"].to_pylist() == [0.1]
    assert balance(tmp_path) == LogBalance(1, 1, 0)


def test_the_account_counts_answers_not_shadows_live_and_compacted(tmp_path: Path) -> None:
    first = write(tmp_path / "a.sqlite", [row(1), row(1, variant="shadow"), row(2, variant="canary")], lost=3)
    write(tmp_path / "b.sqlite", [row(3)])
    assert balance(tmp_path) == LogBalance(answered=6, logged=3, lost=3)
    assert balance(tmp_path).balanced
    compact(first)
    assert balance(tmp_path) == LogBalance(answered=6, logged=3, lost=3)
    assert not LogBalance(2, 1, 0).balanced


def test_a_failed_append_leaves_neither_rows_nor_counts(tmp_path: Path) -> None:
    connection = open_segment(tmp_path / "a.sqlite", FEATURES)
    broken = row(2, score=None)  # the column is not null
    with pytest.raises(TypeError):
        append(connection, [row(1), broken], answered=2)
    for bad in (row(2, variant=None), row(2, score=float("nan"))):
        with pytest.raises(sqlite3.IntegrityError):
            append(connection, [row(1), bad], answered=2)
    append(connection, [row(3)], answered=1)
    connection.close()
    assert read_predictions(tmp_path)["request_id"].to_pylist() == ["r0003"]
    assert balance(tmp_path) == LogBalance(1, 1, 0)


def test_compaction_removes_the_segment_and_repeats_safely(tmp_path: Path) -> None:
    segment = write(tmp_path / "a.sqlite", [row(1), row(2)])
    before = read_predictions(tmp_path)
    target = compact(segment)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    assert compact(segment) == target
    assert read_predictions(tmp_path).equals(before)


def test_a_kill_between_the_parquet_file_and_the_removal_counts_nothing_twice(tmp_path: Path) -> None:
    segment = write(tmp_path / "a.sqlite", [row(1), row(2)], lost=1)
    shutil.copy(segment, tmp_path / "kept")
    compact(segment)
    shutil.move(tmp_path / "kept", segment)
    assert read_predictions(tmp_path).num_rows == 2
    assert balance(tmp_path) == LogBalance(3, 2, 1)
    compact(segment)
    assert not segment.exists()
    assert read_predictions(tmp_path).num_rows == 2


def test_a_segment_compacted_in_the_middle_of_a_read_is_read_once_and_whole(tmp_path: Path) -> None:
    segment = write(tmp_path / "a.sqlite", [row(1), row(2)])

    def vanishing(path: Path) -> pa.Table:
        compact(path)
        raise sqlite3.OperationalError("unable to open database file")

    def half_read(path: Path) -> pa.Table:
        compact(path)
        return log.COLUMNS.empty_table()

    for live in (vanishing, half_read):
        found = log.prefer_compacted(segment, live, lambda path: pa.table({"path": [path.name]}))
        assert found["path"].to_pylist() == ["a.parquet"]


def test_a_segment_that_cannot_be_read_is_an_error_not_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").mkdir()
    with pytest.raises(sqlite3.OperationalError):
        read_predictions(tmp_path)


def test_a_segment_just_born_reads_as_empty(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "a.sqlite").close()
    assert read_predictions(tmp_path).num_rows == 0
    assert balance(tmp_path) == LogBalance(0, 0, 0)


def test_a_folder_with_odd_characters_is_read(tmp_path: Path) -> None:
    odd = tmp_path / "a?b#c %20"
    write(odd / "x.sqlite", [row(1)])
    assert read_predictions(odd).num_rows == 1


def test_readers_and_compaction_at_once_always_see_every_row_once(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / f"{number:02}.sqlite", [row(number)])
    expected = [f"r{number:04}" for number in range(20)]
    done = threading.Event()

    def compact_all() -> None:
        for number in range(20):
            compact(tmp_path / f"{number:02}.sqlite")
        done.set()

    worker = threading.Thread(target=compact_all)
    worker.start()
    seen = [read_predictions(tmp_path)["request_id"].to_pylist()]
    while not done.is_set():
        seen.append(read_predictions(tmp_path)["request_id"].to_pylist())
    worker.join()
    seen.append(read_predictions(tmp_path)["request_id"].to_pylist())
    assert all(each == expected for each in seen)


class TestOlderPrograms:
    """Segments written before a column was thought of, and after one was added that this program does not know."""

    def _older(self, folder: Path) -> Path:
        path = folder / "old.sqlite"
        connection = open_segment(path, FEATURES)
        append(connection, [row(0)], answered=1)
        for column in ("degraded", "quantiles"):
            connection.execute(f"alter table predictions drop column {column}")
        connection.execute("delete from counters where name = 'settled'")
        connection.execute("alter table predictions add column mood text")
        connection.close()
        return path

    def test_a_live_segment_is_read_beside_one_of_today(self, tmp_path: Path) -> None:
        self._older(tmp_path)
        connection = open_segment(tmp_path / "new.sqlite", FEATURES)
        append(connection, [row(1, degraded=["a"], quantiles={"0.5": 1.0})], answered=1)
        connection.close()
        found = {each["request_id"]: each for each in read_predictions(tmp_path).to_pylist()}
        assert (found["r0000"]["degraded"], found["r0000"]["quantiles"]) == ("", "{}")
        assert (found["r0001"]["degraded"], found["r0001"]["quantiles"]) == ("a", '{"0.5":1.0}')
        assert "mood" not in found["r0000"]
        assert balance(tmp_path).balanced

    def test_it_can_be_compacted(self, tmp_path: Path) -> None:
        before = read_predictions(tmp_path / compact(self._older(tmp_path)).parent)
        assert before["quantiles"].to_pylist() == ["{}"]
        assert balance(tmp_path).answered == 1

    def test_a_compacted_one_is_read_beside_one_of_today(self, tmp_path: Path) -> None:
        import pyarrow.parquet as pq

        connection = open_segment(tmp_path / "a.sqlite", FEATURES)
        append(connection, [row(0)], answered=1)
        connection.close()
        compacted = compact(tmp_path / "a.sqlite")
        table = pq.read_table(compacted, partitioning=None)
        older = table.drop_columns(["quantiles", "case_id"]).append_column("mood", [["good"]])
        pq.write_table(older.replace_schema_metadata(table.schema.metadata), compacted)
        connection = open_segment(tmp_path / "b.sqlite", FEATURES)
        append(connection, [row(1)], answered=1)
        connection.close()
        for vectors in (True, False):
            found = read_predictions(tmp_path, vectors=vectors)
            assert found.column_names[: len(log.COLUMNS)] == log.COLUMNS.names
            assert "mood" not in found.column_names
            by_id = {each["request_id"]: each for each in found.to_pylist()}
            assert (by_id["r0000"]["quantiles"], by_id["r0000"]["case_id"]) == ("{}", None)
        assert balance(tmp_path).balanced
