"""Batches and chunks are an economy of memory: they change no answer."""

from __future__ import annotations

import numpy as np
import pytest

from asof import timeline
from asof.timeline import FOREVER, Axis, Timeline, axes, sort_codes


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
    for batch in line.batches(ask_code[order], ask_at[order], length):
        batches += 1
        axis = axes(line, batch, [length])[length]
        asked = axis.asked(ask_code[order][batch.questions], ask_at[order][batch.questions])
        ranges = axis.ranges(asked, length)
        for place in range(len(ranges.gone)):
            by_known = np.arange(len(axis.rows)) if axis.by_known is None else axis.by_known
            seen, gone = set(by_known[: ranges.seen[place]].tolist()), set(range(ranges.gone[place]))
            assert gone <= seen
            found[order[batch.questions][place]] = sorted(axis.rows[sorted(seen - gone)].tolist())
    return found, batches


@pytest.mark.parametrize("rows_at_once", [1, 7, 10_000])
@pytest.mark.parametrize("length", [1, 15, 400, FOREVER])
@pytest.mark.parametrize("late", [False, True])
def test_any_batch_size(monkeypatch, rows_at_once, length, late):
    monkeypatch.setattr(timeline, "ROWS_AT_ONCE", rows_at_once)
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


@pytest.mark.parametrize("late", [0, 9])
def test_an_event_past_the_last_slide_boundary_does_not_run_into_the_next_key(late):
    code, event = np.array([0, 0]), np.array([100, 160])
    line = Timeline(code, event, event + late, 2, 161)
    (batch,) = line.batches(np.array([1]), np.array([150]), FOREVER)
    axis = Axis(line, batch)
    ranges = axis.ranges(axis.asked(np.array([1]), np.array([150])), FOREVER)
    assert ranges.gone.tolist() == ranges.seen.tolist() == ranges.happened.tolist() == [2]


@pytest.mark.parametrize("late", [False, True])
def test_one_hot_key_is_split_by_time_and_no_event_is_worked_on_often(monkeypatch, late):
    monkeypatch.setattr(timeline, "ROWS_AT_ONCE", 50)
    rng = np.random.default_rng(7)
    code, event = np.zeros(1000, np.int64), np.sort(rng.integers(0, 10_000, 1000))
    known = event + (rng.choice([0, 0, 3, 50, 400], 1000) if late else 0)
    ask_at = np.sort(rng.integers(0, 11_000, 300))
    line = Timeline(code, event, known, 1, 11_000)
    for length, most in ((100, 150), (1_500, 500)):  # 1,500 hold about 150 events
        sizes = [b.rows.stop - b.rows.start for b in line.batches(np.zeros(300, np.int64), ask_at, length)]
        assert len(sizes) > 3
        assert max(sizes) < most
        assert sum(sizes) < 3 * 1000
    got, _ = ranges_by_timeline(code, event, known, np.zeros(300, np.int64), ask_at, 1_500)
    assert got == ranges_by_loop(code, event, known, np.zeros(300, np.int64), ask_at, 1_500)


def test_more_keys_than_sixteen_bits():
    rng = np.random.default_rng(6)
    code, event = rng.integers(0, 200_000, 5_000), rng.integers(0, 50, 5_000)
    line = Timeline(code, event, event, 200_000, 50)
    assert code[line.order].tolist() == np.repeat(np.arange(200_000), np.diff(line.starts)).tolist()
    same = np.diff(code[line.order]) == 0
    assert (np.diff(line.event)[same] >= 0).all()


def test_keys_times_span_beyond_64_bits_are_split():
    code, event = np.array([0, 1, 2]), np.array([0, 2**60, 2**61])
    line = Timeline(code, event, event, 3, 2**61)
    ask_code, ask_at = np.array([0, 1, 2]), np.array([2**61] * 3)
    assert len(list(line.batches(ask_code, ask_at, 10))) == 3
    got, _ = ranges_by_timeline(code, event, event, ask_code, ask_at, 10)
    assert got == [[], [], [2]]


@pytest.mark.parametrize("rows", [0, 1, 30, 1_000])
@pytest.mark.parametrize("keys", [1, 5, 1 << 16, 1 << 40])
def test_keys_are_sorted_and_equal_ones_stay_as_they_come(rows, keys):
    rng = np.random.default_rng(8)
    code = rng.integers(0, keys, rows) // 3 * 3
    assert sort_codes(code).tolist() == sorted(range(rows), key=lambda row: code[row])
    order = rng.permutation(rows)
    assert sort_codes(code, order).tolist() == sorted(order.tolist(), key=lambda row: code[row])
