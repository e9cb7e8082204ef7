"""A log that answers first: what a kill or a full disk takes with it is counted, and what is answered adds up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from contracts.predictions import balance
from serving import log_segments, log_writer
from serving.log_account import settle_accounts
from serving.log_segments import expire
from serving.log_writer import LogUnavailable, LogWriter
from tests.serving.test_log_writer import FEATURES, NOW, logged, row, with_small_disk


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Commits wait for this."""
    go = threading.Event()
    through = log_segments.append
    monkeypatch.setattr(log_segments, "append", lambda *args, **named: (go.wait(20), through(*args, **named))[1])
    yield go
    go.set()


def accounts(folder: Path) -> list[Path]:
    return list(folder.glob("*.account"))


def test_the_answer_does_not_wait_for_the_disk(tmp_path: Path, held: threading.Event) -> None:
    writer = LogWriter(tmp_path, started=NOW, durable=False)
    waits = [writer.submit([row(f"r{i}")], FEATURES, answered=1) for i in range(5)]
    assert all(wait.done() and wait.result() for wait in waits)
    assert (writer.counters.answered, writer.counters.logged, writer.counters.lost) == (5, 0, 0)
    held.set()
    writer.close()
    assert (writer.counters.answered, writer.counters.logged, writer.counters.lost) == (5, 5, 0)
    found = balance(tmp_path)
    assert (found.answered, found.logged, found.lost) == (5, 5, 0)
    assert accounts(tmp_path) == []


def test_answered_rows_gather_unless_somebody_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "_GATHER_SECONDS", 60.0)
    writer = LogWriter(tmp_path, started=NOW, durable=False)
    assert all(writer.submit([row(f"r{i}")], FEATURES, answered=1).done() for i in range(5))
    assert writer.submit([row("mine")], FEATURES, answered=1, once=True).result(10) is True
    assert (writer.counters.logged, writer.counters.commits) == (6, 1)
    writer.submit([row("last")], FEATURES, answered=1)
    writer.close()
    assert (writer.counters.logged, writer.counters.commits) == (7, 2)
    assert balance(tmp_path).balanced


def test_a_request_with_an_id_of_its_own_waits_for_the_log_and_is_counted_once(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, started=NOW, durable=False)
    writer.submit([row("other")], FEATURES, answered=1)
    first, again = (writer.submit([row("mine")], FEATURES, answered=1, once=True) for _ in range(2))
    assert (first.result(10), again.result(10)) == (True, False)
    writer.close()
    found = balance(tmp_path)
    assert (found.answered, found.logged, found.lost) == (2, 2, 0)


def test_a_disk_that_fills_up_loses_what_was_answered_by_then_counts_it_and_refuses_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = with_small_disk(monkeypatch, 12)
    writer = LogWriter(tmp_path, started=NOW, durable=False)
    answered = refused = 0
    for i in range(60):
        try:
            assert writer.submit([row(f"r{i}", inputs={"k": "x" * 3000})], FEATURES, answered=1).result(10)
            answered += 1
        except LogUnavailable:
            refused += 1
        while i % 3 == 0 and writer.counters.waiting:  # requests come slower than the disk takes them
            time.sleep(0.001)
    assert 0 < writer.counters.lost < answered
    assert refused > 0  # once it is known, nobody is answered unlogged
    assert writer.counters.answered == answered
    free()
    assert writer.submit([row("after")], FEATURES, answered=1, once=True).result(10)
    assert writer.submit([row("and on")], FEATURES, answered=1).done()  # asynchronous again
    writer.close()
    found = balance(tmp_path)
    assert (found.answered, found.logged, found.lost) == (answered + 2, answered + 2 - found.lost, writer.counters.lost)
    assert {name for name, _, _ in logged(tmp_path)} >= {"after", "and on"}
    assert accounts(tmp_path) == []


def test_a_loss_that_was_never_written_down_is_settled_by_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log_segments, "append", full)
    writer = LogWriter(tmp_path, started=NOW, durable=False)
    writer.submit([row("a"), row("a", 1)], FEATURES, answered=2)
    writer.close()
    assert len(accounts(tmp_path)) == 1
    monkeypatch.undo()
    LogWriter(tmp_path, started=NOW, durable=False).close()
    found = balance(tmp_path)
    assert (found.answered, found.logged, found.lost) == (2, 0, 2)
    assert accounts(tmp_path) == []


def test_where_no_account_can_be_kept_it_is_durable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = LogWriter(tmp_path / "file" / "log", started=NOW, durable=False)
    with pytest.raises(LogUnavailable, match="cannot be written"):
        writer.submit([row("a")], FEATURES, answered=1).result(10)
    writer.close()


def test_the_account_of_a_living_writer_is_left_alone(tmp_path: Path, held: threading.Event) -> None:
    writer = LogWriter(tmp_path, started=NOW, durable=False)
    writer.submit([row("a")], FEATURES, answered=1)
    assert settle_accounts(tmp_path) == 0
    assert len(accounts(tmp_path)) == 1
    held.set()
    writer.close()


WRITER = """
import sys, time
from pathlib import Path
from serving import log_segments, log_writer
from tests.serving.test_log_writer import FEATURES, NOW, row
from serving.log_writer import LogWriter
through = log_segments.append
log_segments.append = lambda *a, **k: (time.sleep(0.02), through(*a, **k))[1]
writer = LogWriter(Path(sys.argv[1]), started=NOW, durable=False, segment_rows=int(sys.argv[2]))
i = 0
while True:
    if writer.submit([row(f"r{i}"), row(f"r{i}", variant="shadow")], FEATURES, answered=1).result():
        i += 1
        sys.stdout.write(f"{i}\\n")
        sys.stdout.flush()
    time.sleep(0.001)
"""


@pytest.mark.parametrize(("kill_after", "segment_rows"), [(1, 1000), (60, 1000), (200, 20)])
def test_what_a_killed_writer_had_answered_is_logged_or_counted_as_lost(
    tmp_path: Path, kill_after: int, segment_rows: int
) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "log"), str(segment_rows)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    for _ in range(kill_after):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    told = [kill_after, *(int(line) for line in process.stdout.read().split("\n")[:-1])]
    process.wait()
    settle_accounts(tmp_path / "log")
    assert settle_accounts(tmp_path / "log") == 0  # once is enough
    found = balance(tmp_path / "log")
    assert found.balanced
    assert told[-1] <= found.answered <= told[-1] + 1  # one may have been answered and not been told of
    assert found.lost > 0
    LogWriter(tmp_path / "log", started=NOW).close()  # takes over, compacts, changes nothing
    assert balance(tmp_path / "log") == found
    assert {path.suffix for path in (tmp_path / "log").iterdir()} == {".parquet"}


class TestRetention:
    def test_what_is_older_than_the_log_is_kept_goes_whole_and_the_rest_adds_up(self, tmp_path: Path) -> None:
        for day in (0, 1, 5, 9):
            writer = LogWriter(tmp_path, started=NOW)
            writer.submit([row(f"d{day}", at=NOW + timedelta(days=day))], FEATURES, answered=1).result(10)
            writer.close()
        assert expire(tmp_path, timedelta(days=30)) == []
        assert len(expire(tmp_path, timedelta(days=4))) == 2
        assert {name for name, _, _ in logged(tmp_path)} == {"d5", "d9"}
        found = balance(tmp_path)
        assert (found.answered, found.logged) == (2, 2)

    def test_a_writer_removes_as_it_compacts(self, tmp_path: Path) -> None:
        writer = LogWriter(tmp_path, started=NOW, keep=timedelta(days=2))
        for day in range(6):
            writer.submit([row(f"d{day}", at=NOW + timedelta(days=day))], FEATURES, answered=1).result(10)
        writer.close()
        assert {name for name, _, _ in logged(tmp_path)} == {"d3", "d4", "d5"}


def test_readers_see_every_acknowledged_row_once_while_segments_turn_into_parquet(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, started=NOW, segment_rows=15)
    acknowledged: set[str] = set()

    def ask(name: str) -> None:
        for i in range(60):
            writer.submit([row(f"{name}{i}")], FEATURES, answered=1).result(20)
            acknowledged.add(f"{name}{i}")

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    looks = 0
    while any(thread.is_alive() for thread in threads):
        known = set(acknowledged)
        seen = [name for name, _, _ in logged(tmp_path)]
        assert known <= set(seen)
        assert len(seen) == len(set(seen))
        assert balance(tmp_path).balanced
        looks += 1
    writer.close()
    assert looks > 1
    assert len(list(tmp_path.glob("*.parquet"))) > 5
    assert len(logged(tmp_path)) == 180


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A file system of its own, of 1 MB, made where this user may mount one."""
    mounted: list[Path] = []

    def make() -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        mount = shutil.which("mount")
        done = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
        if not done or done.returncode:
            pytest.skip("this user may not mount a file system")
        mounted.append(folder)
        return folder

    yield make
    for each in mounted:
        subprocess.run(["umount", "-l", str(each)], check=True)


class TestRealDisks:
    def test_a_full_one_refuses_and_keeps_what_it_acknowledged(self, small_disk: Callable[..., Path]) -> None:
        folder = small_disk()
        writer = LogWriter(folder / "log", started=NOW)
        acknowledged, refused = set(), 0
        for i in range(400):
            try:
                writer.submit([row(f"r{i}", inputs={"k": os.urandom(2000).hex()})], FEATURES, answered=1).result(10)
                acknowledged.add(f"r{i}")
            except LogUnavailable:
                refused += 1
        assert acknowledged
        assert refused
        assert {name for name, _, _ in logged(folder / "log")} == acknowledged
        files = set((folder / "log").iterdir())
        for _ in range(20):  # another schema wants a new segment, for which there is no room either
            with pytest.raises(LogUnavailable):
                writer.submit([row("x", texts=[])], (("y", "number"),), answered=1).result(10)
        assert set((folder / "log").iterdir()) == files
        subprocess.run(["mount", "-o", "remount,size=20m", str(folder)], check=True)
        assert writer.submit([row("after")], FEATURES, answered=1).result(10)
        writer.close()
        found = balance(folder / "log")
        assert (found.answered, found.logged, found.lost) == (len(acknowledged) + 1, len(acknowledged) + 1, 0)

    def test_one_that_becomes_unwritable_refuses_until_it_is_writable_again(
        self, small_disk: Callable[..., Path]
    ) -> None:
        folder = small_disk()
        writer = LogWriter(folder / "log", started=NOW, segment_rows=1)  # every request wants a new file
        writer.submit([row("before")], FEATURES, answered=1).result(10)
        time.sleep(0.1)
        moved = folder / "moved"
        (folder / "log").rename(moved)  # the folder is gone, and a file in its place cannot hold one
        (folder / "log").write_text("")
        with pytest.raises(LogUnavailable):
            writer.submit([row("meanwhile")], FEATURES, answered=1).result(10)
        (folder / "log").unlink()
        moved.rename(folder / "log")
        assert writer.submit([row("after")], FEATURES, answered=1).result(10)
        writer.close()
        assert {name for name, _, _ in logged(folder / "log")} == {"before", "after"}
