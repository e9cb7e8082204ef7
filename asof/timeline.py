"""Events of many keys on one time axis each, and which of them a window may see.

Grain: R = one event, sorted by (key, event time, known time); Q = one question (key, time b).

A window of length W at b holds the events with b - W < event <= b that are known at b (known <= b; an event is never
known before it happens). Sorted by event time, those are a run [lo, mid) in which everything is known, followed by a
short stretch [mid, hi) where late events must be looked at one by one. An event that became known W or more after it
happened is in no window of length W at all, so one hopelessly late row does not stretch the tail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

FOREVER = 1 << 62
"""The length, in microseconds, of a window without a length."""

ROWS_AT_ONCE = 1 << 21
"""Events worked on together: bounds the memory of everything computed per event."""

PAIRS_AT_ONCE = 1 << 22
"""Late candidates looked at together."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Of each question the events inside its window: rows [lo, mid), and the pairs (question, row) beyond mid."""

    lo: Ints
    mid: Ints
    late_question: Ints
    """Ascending; empty when nothing is late."""
    late_row: Ints


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole keys, few enough events to work on at once."""

    rows: slice
    """Of the sorted events."""
    questions: slice
    """Of the sorted questions."""
    first_code: int
    """The smallest key."""
    origin: int
    """Microseconds; before every event and every question."""
    span: int
    """Microseconds; longer than the time between any two of them."""


class Timeline:
    """Sorted events of all keys.

    Args:
        code: key of each event, 0 <= code < keys.
        event: event time, microseconds.
        known: when the event became known, microseconds, never before `event`.
        keys: number of keys.
        until: the latest time that will be asked for; events after it must be left out by the caller.
    """

    def __init__(self, code: Ints, event: Ints, known: Ints, keys: int, until: int) -> None:
        self.late = bool((known > event).any())
        self.order = _order(code, event, known if self.late else None)
        self.code = code[self.order]
        self.event = event[self.order]
        # Whatever becomes known after the last question is equally unknown to all of them.
        self.known = np.minimum(known, until + 1)[self.order] if self.late else self.event
        self.starts = np.searchsorted(self.code, np.arange(keys + 1))

    def batches(self, code: Ints, at: Ints) -> Iterator[Batch]:
        """Split sorted questions, with the events of their keys, into batches of whole keys.

        Args:
            code: key of each question, ascending.
            at: the times asked for.
        """
        if not len(code):
            return
        origin = int(min(at.min(), self.event.min(initial=at.min()))) - 1
        span = int(at.max()) - origin + 2
        keys_at_once = int(FOREVER) // span
        first, last = 0, len(self.starts) - 1
        while first < last:
            end = int(np.searchsorted(self.starts, self.starts[first] + ROWS_AT_ONCE, "right")) - 1
            end = min(max(end, first + 1), first + keys_at_once, last)
            questions = slice(*np.searchsorted(code, [first, end]).tolist())
            if questions.start < questions.stop:
                yield Batch(slice(int(self.starts[first]), int(self.starts[end])), questions, first, origin, span)
            first = end


class Axis:
    """The events of one batch that can be in a window of some length, searchable by (key, time) in one go.

    Args:
        timeline: the sorted events.
        batch: the part to work on.
        keep: which events of the batch to use; all when None.
    """

    def __init__(self, timeline: Timeline, batch: Batch, keep: NDArray[np.bool_] | None = None) -> None:
        self._batch = batch
        chosen = slice(None) if keep is None else keep
        self.rows = timeline.order[batch.rows][chosen]
        """Where each event was in the arrays the timeline was built from."""
        self.code = timeline.code[batch.rows][chosen]
        self.event = timeline.event[batch.rows][chosen]
        self.known = timeline.known[batch.rows][chosen]
        self._by_event = self._axis(self.code, self.event)
        # The time by which everything up to and including a row is known: ascending, so it can be searched.
        self._known_so_far = np.maximum.accumulate(self._axis(self.code, self.known)) if timeline.late else None

    def ranges(self, code: Ints, at: Ints, length: int) -> Ranges:
        """Rows inside the window of `length` microseconds that ends at `at`, for each question of the batch."""
        asked = self._axis(code, at)
        hi = np.searchsorted(self._by_event, asked, "right")
        lo = np.searchsorted(self._by_event, self._axis(code, np.maximum(at - length, self._batch.origin)), "right")
        nothing = np.zeros(0, np.int64)
        if self._known_so_far is None:
            return Ranges(lo, hi, nothing, nothing)
        mid = np.clip(np.searchsorted(self._known_so_far, asked, "right"), lo, hi)
        found = [(nothing, nothing)]
        for question, row in _pairs(mid, hi):
            inside = self.known[row] <= at[question]
            found.append((question[inside], row[inside]))
        questions, rows = (np.concatenate(column) for column in zip(*found, strict=True))
        return Ranges(lo, mid, questions, rows)

    def _axis(self, code: Ints, time: Ints) -> Ints:
        return (code.astype(np.int64) - self._batch.first_code) * self._batch.span + (time - self._batch.origin)


def axes(timeline: Timeline, batch: Batch, lengths: Iterable[int]) -> dict[int, Axis]:
    """The axis to use for each window length; one object serves all lengths that see the same events."""
    everything = Axis(timeline, batch)
    delay = everything.known - everything.event
    chosen: dict[int, Axis] = {}
    for length in lengths:
        keep = delay < length
        chosen[length] = everything if keep.all() else Axis(timeline, batch, keep)
    return chosen


def _pairs(start: Ints, stop: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Every (question, row) with start <= row < stop, questions ascending, a bounded number at a time."""
    size = stop - start
    ends = np.cumsum(size)
    done = 0
    while done < len(size):
        before = int(ends[done - 1]) if done else 0
        upto = max(int(np.searchsorted(ends, before + PAIRS_AT_ONCE, "right")), done + 1)
        part = size[done:upto]
        question = np.repeat(np.arange(done, upto), part)
        first = np.repeat(ends[done:upto] - part - before, part)
        yield question, np.arange(len(question)) - first + start[question]
        done = upto


def _order(code: Ints, event: Ints, known: Ints | None) -> Ints:
    """Positions that sort by (code, event, known); a log that is already in time order costs one pass per 16 bits."""
    order: Ints | None = None
    if known is not None:
        order = np.lexsort((known, event))
    elif (event[1:] < event[:-1]).any():
        order = np.argsort(event, kind="stable")
    for shift in range(0, max(int(code.max(initial=0)).bit_length(), 1), 16):
        digit = ((code >> shift) & 0xFFFF).astype(np.uint16)  # numpy sorts 16 bits by counting
        order = np.argsort(digit, kind="stable") if order is None else order[np.argsort(digit[order], kind="stable")]
    assert order is not None
    return order


def sort_questions(code: Ints, at: Ints) -> Ints:
    """Positions that sort questions by (key, time)."""
    if not len(code):
        return np.zeros(0, np.int64)
    origin = int(at.min())
    span = int(at.max()) - origin + 1
    if (int(code.max()) + 1) * span > FOREVER:
        return np.lexsort((at, code))
    return np.argsort(code.astype(np.int64) * span + (at - origin))  # equal ones are the same question
