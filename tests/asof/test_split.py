"""Rows put aside by part, and what is left on disk when it ends badly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from asof.split import SpillFailed, Split


def batch(codes: list[int], first: int) -> pa.RecordBatch:
    numbers = list(range(first, first + len(codes)))
    words = [None if n % 3 == 0 else f"é{n}" for n in numbers]
    columns = {
        "code": pa.array(codes, pa.int32()),
        "n": pa.array(numbers, pa.int64()),
        "s": pa.array(words, pa.string()),
        "l": pa.array([None if n % 4 == 0 else [n, None] for n in numbers], pa.list_(pa.int64())),
        "d": pa.DictionaryArray.from_arrays(pa.array([n % 2 for n in numbers], pa.int8()), pa.array(["x", "y"])),
    }
    return pa.record_batch(columns)


def test_each_part_has_its_rows_of_any_type_in_the_order_they_came(tmp_path):
    rng = np.random.default_rng(1)
    batches = [batch(rng.integers(0, 7, size).tolist(), 100 * size) for size in (50, 1, 0, 30)]
    with Split(str(tmp_path), 7) as split:
        for rows in batches:
            split.add(rows, rows["code"].to_numpy())
        found = [pa.Table.from_batches(split.part(number)).to_pylist() for number in range(7)]
    everything = pa.Table.from_batches(batches).to_pylist()
    assert found == [[row for row in everything if row["code"] == number] for number in range(7)]


def test_a_part_without_rows_has_their_columns(tmp_path):
    with Split(str(tmp_path), 4) as split:
        split.add(batch([1, 1], 0), np.array([1, 1]))
        (empty,) = split.part(3)
        assert empty.num_rows == 0
        assert empty.schema == batch([], 0).schema


def test_rows_once_looked_at_can_be_looked_at_again(tmp_path):
    with Split(str(tmp_path), 2) as split:
        split.add(batch([0, 1, 0], 0), np.array([0, 1, 0]))
        rows = pa.Table.from_batches(split.part(0))
        split.forget()
        assert rows["n"].to_pylist() == [0, 2]
        assert rows["s"].to_pylist() == [None, "é2"]


def test_a_folder_that_is_not_there_is_made(tmp_path):
    with Split(str(tmp_path / "not/yet"), 2) as split:
        split.add(batch([0], 0), np.array([0]))
        assert len(split.part(0)) == 1


PROGRAM = """
import resource, signal, sys
import numpy as np, pyarrow as pa
from asof.split import SpillFailed, Split

folder, room = sys.argv[1], int(sys.argv[2])
if room:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
rows = pa.record_batch({"code": np.zeros(100_000, np.int32), "n": np.arange(100_000)})
try:
    with Split(folder, 2) as split:
        for _ in range(4):
            split.add(rows, np.zeros(100_000))
        split.part(0)
        print("ready", flush=True)
        sys.stdin.read()
except SpillFailed as error:
    print(error)
"""


def run(folder: Path, room: int) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(room)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_nothing_behind(tmp_path):
    process = run(tmp_path, room=0)
    assert process.stdout.readline() == "ready\n"
    held = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
    assert any(name.startswith(str(tmp_path)) for name in held), "the rows are in that folder"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_with_the_folder_and_what_to_do(tmp_path):
    out, _ = run(tmp_path, room=1_000_000).communicate(timeout=60)
    assert str(tmp_path) in out
    assert "temp_directory" in out
    assert list(tmp_path.iterdir()) == []


def test_a_folder_nobody_can_write_to_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpillFailed, match="file"):
        Split(str(tmp_path / "file"), 2)
