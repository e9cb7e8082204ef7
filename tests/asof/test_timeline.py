"""Batches and chunks are an economy of memory: they change no answer."""

from __future__ import annotations

import numpy as np
import pytest

from asof import timeline
from asof.timeline import FOREVER, Timeline, axes


def ranges_by_loop(code, event, known, ask_code, ask_at, length):
    return [
        sorted(i for i in range(len(code)) if code[i] == c and t - length < event[i] and known[i] <= t)
        for c, t in zip(ask_code, ask_at, strict=True)
    ]


def ranges_by_timeline(code, event, known, ask_code, ask_at, length):
    order = np.lexsort((ask_at, ask_code))
    line = Timeline(code, event, known, int(code.max()) + 2, int(ask_at.max()))
    found: list = [None] * len(ask_code)
    batches = 0
    for batch in line.batches(ask_code[order], ask_at[order]):
        batches += 1
        axis = axes(line, batch, [length])[length]
        ranges = axis.ranges(ask_code[order][batch.questions], ask_at[order][batch.questions], length)
        for place in range(len(ranges.lo)):
            rows = [*range(ranges.lo[place], ranges.mid[place]), *ranges.late_row[ranges.late_question == place]]
            found[order[batch.questions][place]] = sorted(axis.rows[rows].tolist())
    return found, batches


@pytest.mark.parametrize("rows_at_once", [1, 7, 10_000])
@pytest.mark.parametrize("pairs_at_once", [1, 10_000])
@pytest.mark.parametrize("length", [1, 15, 400, FOREVER])
@pytest.mark.parametrize("late", [False, True])
def test_any_batch_size(monkeypatch, rows_at_once, pairs_at_once, length, late):
    monkeypatch.setattr(timeline, "ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr(timeline, "PAIRS_AT_ONCE", pairs_at_once)
    rng = np.random.default_rng(5)
    code, event = rng.integers(0, 6, 80), rng.integers(-100, 100, 80)
    known = event + (rng.choice([0, 0, 3, 50, 10**9], 80) if late else 0)
    ask_code, ask_at = rng.integers(0, 7, 40), rng.integers(-120, 150, 40)
    keep = event <= ask_at.max()  # as the scan does
    code, event, known = code[keep], event[keep], known[keep]
    want = ranges_by_loop(code, event, known, ask_code, ask_at, length)
    got, batches = ranges_by_timeline(code, event, known, ask_code, ask_at, length)
    assert got == want
    assert (batches > 1) == (rows_at_once < 80)


def test_more_keys_than_sixteen_bits():
    rng = np.random.default_rng(6)
    code, event = rng.integers(0, 200_000, 5_000), rng.integers(0, 50, 5_000)
    line = Timeline(code, event, event, 200_000, 50)
    assert (np.diff(line.code) >= 0).all()
    same = np.diff(line.code) == 0
    assert (np.diff(line.event)[same] >= 0).all()


def test_keys_times_span_beyond_64_bits_are_split():
    code, event = np.array([0, 1, 2]), np.array([0, 2**60, 2**61])
    line = Timeline(code, event, event, 3, 2**61)
    ask_code, ask_at = np.array([0, 1, 2]), np.array([2**61] * 3)
    assert len(list(line.batches(ask_code, ask_at))) == 3
    got, _ = ranges_by_timeline(code, event, event, ask_code, ask_at, 10)
    assert got == [[], [], [2]]
