"""The prediction log's writer: nothing acknowledged is lost, nothing is counted twice, whatever dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.predictions import PredictionRow, balance, open_segment, read_predictions
from serving import log_segments
from serving.log_segments import OWN_ID, claim_orphans
from serving.log_writer import LogUnavailable, LogWriter, Overloaded

NOW = datetime(2024, 3, 5, 10, tzinfo=UTC)
FEATURES = (("x", "number"), ("t", "text"))


def row(
    request: str, position: int = 0, *, variant: str = "champion", at: datetime = NOW, **changes: Any
) -> PredictionRow:
    content: dict[str, Any] = {
        "request_id": request,
        "position": position,
        "variant": variant,
        "version": 1,
        "case_id": f"c{position}",
        "event_timestamp": at,
        "answered_at": at,
        "inputs": {"k": request},
        "numbers": np.array([1.5], np.float32),
        "texts": ["a"],
        "view_times": {"v": None},
        "score": 0.25,
        "decision": 0,
        "latency_ms": 1.0,
    }
    return PredictionRow(**content | changes)


def logged(folder: Path) -> list[tuple[str, int, str]]:
    table = read_predictions(folder, variants=("champion", "canary", "shadow"))
    return list(zip(*(table[name].to_pylist() for name in ("request_id", "position", "variant")), strict=True))


@pytest.fixture
def writer(tmp_path: Path) -> Any:
    made = LogWriter(tmp_path / "log", started=NOW)
    yield made
    made.close()


def test_an_acknowledged_row_can_be_read_at_once(writer: LogWriter, tmp_path: Path) -> None:
    assert writer.submit([row("a"), row("a", 1)], FEATURES, answered=2).result(10) is True
    assert logged(tmp_path / "log") == [("a", 0, "champion"), ("a", 1, "champion")]
    assert balance(tmp_path / "log").balanced


def test_a_crowd_shares_commits_and_keeps_the_account(writer: LogWriter, tmp_path: Path) -> None:
    def ask(name: str) -> None:
        for i in range(40):
            writer.submit([row(f"{name}{i}"), row(f"{name}{i}", variant="shadow")], FEATURES, answered=1).result(20)

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (writer.counters.answered, writer.counters.shadow, writer.counters.waiting) == (320, 320, 0)
    assert writer.counters.commits <= 320
    found = balance(tmp_path / "log")
    assert (found.answered, found.logged, found.lost) == (320, 320, 0)


def test_closing_leaves_one_compacted_file_and_is_final(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, started=NOW)
    waits = [writer.submit([row(f"r{i}")], FEATURES, answered=1) for i in range(20)]
    writer.close()
    writer.close()
    assert all(wait.result(0) for wait in waits)
    assert [path.suffix for path in tmp_path.iterdir()] == [".parquet"]
    assert balance(tmp_path).logged == 20
    with pytest.raises(Overloaded):
        writer.submit([row("late")], FEATURES, answered=1)
    assert not writer.is_alive()


def test_a_request_that_comes_again_is_logged_and_counted_once(writer: LogWriter, tmp_path: Path) -> None:
    first = writer.submit([row("mine"), row("mine", 1)], FEATURES, answered=2, once=True)
    again = writer.submit([row("mine"), row("mine", 1)], FEATURES, answered=2, once=True)
    assert (first.result(10), again.result(10)) == (True, False)
    assert writer.submit([row("mine", version=2)], FEATURES, answered=1, once=True).result(10) is False
    assert [(each.position, each.version, each.case_id) for each in writer.find("mine")] == [(0, 1, "c0"), (1, 1, "c1")]
    assert writer.find("nobody's") == []
    assert writer.counters.repeated == 2
    found = balance(tmp_path / "log")
    assert (found.answered, found.logged) == (2, 2)


def test_a_repeated_request_is_known_after_its_segment_was_compacted(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, started=NOW, segment_rows=1)
    writer.submit([row("mine")], FEATURES, answered=1, once=True).result(10)
    writer.submit([row("other")], FEATURES, answered=1, once=True).result(10)
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert writer.submit([row("mine")], FEATURES, answered=1, once=True).result(10) is False
    assert [each.case_id for each in writer.find("mine")] == ["c0"]
    writer.close()
    assert balance(tmp_path).answered == 2


def test_a_new_day_and_a_full_segment_begin_a_new_file(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, started=NOW, segment_rows=2)
    for i in range(3):
        writer.submit([row(f"a{i}")], FEATURES, answered=1).result(10)
    writer.submit([row("b", at=NOW + timedelta(days=1))], FEATURES, answered=1).result(10)
    writer.submit([row("back")], FEATURES, answered=1).result(10)  # a straggler of yesterday stays in today's
    writer.close()
    assert sorted(len(read_predictions_of(path)) for path in tmp_path.glob("*.parquet")) == [1, 2, 2]
    assert balance(tmp_path).logged == 5


def read_predictions_of(path: Path) -> list[Any]:
    import pyarrow.parquet as pq

    return pq.read_table(path, partitioning=None).to_pylist()


def test_another_schema_has_a_segment_of_its_own(writer: LogWriter, tmp_path: Path) -> None:
    other = (("y", "number"),)
    writer.submit([row("a")], FEATURES, answered=1).result(10)
    writer.submit([row("b", texts=[])], other, answered=1).result(10)
    writer.submit([row("c")], FEATURES, answered=1).result(10)
    assert len(list((tmp_path / "log").glob("*.sqlite"))) == 2
    table = read_predictions(tmp_path / "log")
    assert table["feature.x"].to_pylist() == [1.5, None, 1.5]
    assert table["feature.y"].to_pylist() == [None, 1.5, None]


def test_more_rows_than_the_writer_takes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    through = log_segments.append
    monkeypatch.setattr(log_segments, "append", lambda *args, **named: (go.wait(20), through(*args, **named))[1])
    writer = LogWriter(tmp_path, started=NOW, most_waiting=3)
    waits = [writer.submit([row(f"r{i}")], FEATURES, answered=1) for i in range(3)]
    with pytest.raises(Overloaded, match="3 rows wait"):
        writer.submit([row("r3")], FEATURES, answered=1)
    go.set()
    assert all(wait.result(20) for wait in waits)
    writer.close()
    assert balance(tmp_path).answered == 3


def with_small_disk(monkeypatch: pytest.MonkeyPatch, pages: int) -> Callable[[], None]:
    """Let SQLite itself report a full disk; returns what frees it."""
    opened: list[sqlite3.Connection] = []

    def limited(path: Path, features: Any) -> sqlite3.Connection:
        connection = open_segment(path, features)
        connection.execute(f"pragma max_page_count = {pages}")
        opened.append(connection)
        return connection

    monkeypatch.setattr(log_segments, "open_segment", limited)
    return lambda: [each.execute("pragma max_page_count = 100000") for each in opened] and None


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = with_small_disk(monkeypatch, 12)
    writer = LogWriter(tmp_path, started=NOW)
    outcomes: dict[str, bool] = {}
    reasons: set[bool] = set()
    for i in range(60):
        try:
            outcomes[f"r{i}"] = writer.submit([row(f"r{i}", inputs={"k": "x" * 3000})], FEATURES, answered=1).result(10)
        except LogUnavailable as error:
            outcomes[f"r{i}"] = False
            reasons.add("full" in error.fact)
    acknowledged = {name for name, done in outcomes.items() if done}
    assert 0 < len(acknowledged) < 60
    assert reasons == {True}
    assert {name for name, _, _ in logged(tmp_path)} == acknowledged
    free()
    assert writer.submit([row("after")], FEATURES, answered=1).result(10) is True
    writer.close()
    found = balance(tmp_path)
    assert (found.answered, found.logged) == (len(acknowledged) + 1,) * 2
    assert writer.counters.failed == 60 - len(acknowledged)


def test_a_folder_that_cannot_be_made_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = LogWriter(tmp_path / "file" / "log", started=NOW)
    with pytest.raises(LogUnavailable, match="cannot be written"):
        writer.submit([row("a")], FEATURES, answered=1).result(10)
    writer.close()


def test_one_bad_row_does_not_drag_others_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered = threading.Event()
    writer = LogWriter(tmp_path, started=NOW)
    held = writer._commit
    monkeypatch.setattr(writer, "_commit", lambda entries: (gathered.wait(20), held(entries))[1])
    first = writer.submit([row("first")], FEATURES, answered=1)
    waits = [
        writer.submit([row(name, inputs={"k": object()} if name == "bad" else {})], FEATURES, answered=1)
        for name in ("good", "bad", "fine")
    ]
    gathered.set()
    assert first.result(10)
    assert (waits[0].result(10), waits[2].result(10)) == (True, True)
    with pytest.raises(LogUnavailable):
        waits[1].result(10)
    writer.close()
    assert {name for name, _, _ in logged(tmp_path)} == {"first", "good", "fine"}
    assert balance(tmp_path).balanced


def test_a_caller_that_goes_away_is_logged_and_takes_nobody_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = threading.Event()
    through = log_segments.append
    monkeypatch.setattr(log_segments, "append", lambda *args, **named: (gone.wait(20), through(*args, **named))[1])
    writer = LogWriter(tmp_path, started=NOW)

    async def leave() -> None:
        asked = asyncio.wrap_future(writer.submit([row("gone")], FEATURES, answered=1))
        asked.cancel()
        await asyncio.sleep(0)  # until the cancellation has been passed on

    asyncio.run(leave())
    other = writer.submit([row("stays")], FEATURES, answered=1)
    gone.set()
    assert other.result(10) is True
    assert writer.is_alive()
    writer.close()
    assert {name for name, _, _ in logged(tmp_path)} == {"gone", "stays"}
    assert balance(tmp_path).balanced


def test_a_segment_that_cannot_be_compacted_stays_and_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(log_segments, "compact", broken)
    writer = LogWriter(tmp_path, started=NOW)
    writer.submit([row("a")], FEATURES, answered=1).result(10)
    writer.close()
    assert logged(tmp_path) == [("a", 0, "champion")]
    monkeypatch.undo()
    LogWriter(tmp_path, started=NOW).close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".parquet"]


def test_a_file_that_is_no_segment_keeps_nobody_from_starting(tmp_path: Path) -> None:
    (tmp_path / "wreck.sqlite").write_bytes(b"not a database, not by far" * 100)
    writer = LogWriter(tmp_path, started=NOW)
    assert writer.submit([row("a")], FEATURES, answered=1).result(10) is True
    writer.close()
    assert (tmp_path / "wreck.sqlite").exists()


def test_the_segment_of_a_living_writer_is_left_alone(writer: LogWriter, tmp_path: Path) -> None:
    writer.submit([row("a")], FEATURES, answered=1).result(10)
    assert claim_orphans(tmp_path / "log") == []


WRITER = """
import sys
from pathlib import Path
from test_log_writer import FEATURES, NOW, row
from serving.log_writer import LogWriter
writer = LogWriter(Path(sys.argv[1]), started=NOW)
waits = []
i = 0
while True:
    waits.append((i, writer.submit([row(f"r{i}"), row(f"r{i}", variant="shadow")], FEATURES, answered=1, once=True)))
    i += 1
    if len(waits) >= 8:
        number, wait = waits.pop(0)
        if wait.result():
            sys.stdout.write(f"r{number}\\n")
            sys.stdout.flush()
"""


@pytest.mark.parametrize("kill_after", [1, 40, 150])
def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, kill_after: int) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    acknowledged = {process.stdout.readline().strip() for _ in range(kill_after)}
    process.send_signal(signal.SIGKILL)
    acknowledged |= set(process.stdout.read().split("\n")[:-1])
    process.wait()
    assert acknowledged <= {name for name, _, variant in logged(tmp_path / "log") if variant == "champion"}
    assert balance(tmp_path / "log").balanced
    # The next writer takes over: the orphan is compacted, and its requests are still recognised.
    successor = LogWriter(tmp_path / "log", started=NOW)
    name = sorted(acknowledged)[0]
    assert successor.submit([row(name)], FEATURES, answered=1, once=True).result(20) is False
    assert [each.inputs for each in successor.find(name)] == [f'{{"k":"{name}"}}']
    successor.close()
    assert not list((tmp_path / "log").glob("*.sqlite*"))
    assert acknowledged <= {found for found, _, variant in logged(tmp_path / "log") if variant == "champion"}
    assert balance(tmp_path / "log").balanced


def test_ids_made_by_serving_are_not_remembered(tmp_path: Path) -> None:
    abandoned = LogWriter(tmp_path, started=NOW)
    abandoned.submit([row(f"{OWN_ID}1")], FEATURES, answered=1).result(10)
    abandoned.submit([row("mine")], FEATURES, answered=1).result(10)
    for segment in abandoned._segments.values():  # as if the process were gone
        segment._lock.close()
    successor = LogWriter(tmp_path, started=NOW)
    assert list(successor._earlier) == ["mine"]
    successor.close()
    abandoned._segments.clear()
    abandoned.close()
