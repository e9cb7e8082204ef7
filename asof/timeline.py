"""Events of many keys on one time axis each, and which of them a window may see.

Grain: R = one event, sorted by (key, event time, known time); Q = one question (key, time b).

A window of length W at b holds the events with b - W < event <= b that are known at b (known <= b; an event is never
known before it happens). An event that became known W or more after it happened is in no window of length W at all.
With those set aside, every event that happened at or before b - W is known at b. So a window is a difference of two
beginnings: what is known at b, less what happened by b - W. The first is a run of the events sorted by when they became
known, the second of the events sorted by when they happened; late events cost a second order, nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

FOREVER = 1 << 62
"""The length, in microseconds, of a window without a length."""

ROWS_AT_ONCE = 1 << 20
"""Events worked on together: bounds the memory of everything computed per event, and keeps it near the processor."""

RUNS_MERGED = 256
"""As many runs, each sorted by key, are merged; events in more of them are sorted by time, and then by key."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Of each question the events inside its window (grain Q), as places on an axis."""

    gone: Ints
    """So many events, in order of event time, belong to smaller keys or happened before the window."""
    seen: Ints
    """So many events, in order of known time, belong to smaller keys or are known."""
    happened: Ints
    """So many events, in order of event time, belong to smaller keys or have happened."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions (grain Q), and what has happened and is known by then; the same for windows of every length."""

    code: Ints
    at: Ints
    seen: Ints
    happened: Ints


@dataclass(frozen=True, slots=True)
class Batch:
    """Questions, and the events they may see: few enough to work on at once."""

    rows: slice
    """Of the sorted events."""
    questions: slice
    """Of the sorted questions."""
    first_code: int
    """The smallest key."""
    end_code: int
    """One past the largest key."""
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
        self._until = until
        self.late = known is not event and bool((known > event).any())
        self.order = _order(code, event, known if self.late else None)
        self.event = event[self.order]
        # Whatever becomes known after the last question is equally unknown to all of them.
        self.known = np.minimum(known, until + 1)[self.order] if self.late else self.event
        self.starts = np.append(0, np.cumsum(np.bincount(code, minlength=keys)))

    def batches(self, code: Ints, at: Ints, reach: int) -> Iterator[Batch]:
        """Split sorted questions, with the events they may see, into batches.

        A batch holds whole keys, or a stretch of time of one key that has too many events.

        Args:
            code: key of each question, ascending.
            at: the times asked for, ascending within a key.
            reach: length of the longest window, microseconds.
        """
        if not len(code):
            return
        origin = int(min(at.min(), self.event.min(initial=at.min()))) - 1
        # Up to one past `until`: the last questions may ask about a slide boundary that events have passed.
        span = self._until - origin + 3
        keys_at_once = int(FOREVER) // span
        first, last = 0, len(self.starts) - 1
        while first < last:
            end = int(np.searchsorted(self.starts, self.starts[first] + ROWS_AT_ONCE, "right")) - 1
            end = min(max(end, first + 1), first + keys_at_once, last)
            questions = slice(*np.searchsorted(code, [first, end]).tolist())
            if questions.start < questions.stop:
                rows = slice(int(self.starts[first]), int(self.starts[end]))
                whole = Batch(rows, questions, first, end, origin, span)
                if end == first + 1 and rows.stop - rows.start > ROWS_AT_ONCE:
                    yield from self._stretches(whole, at, reach)
                else:
                    yield whole
            first = end

    def _stretches(self, whole: Batch, at: Ints, reach: int) -> Iterator[Batch]:
        """Split the questions of one key by time, each part with the events its windows reach back to."""
        event = self.event[whole.rows]
        asked = at[whole.questions]
        ends = np.searchsorted(event, asked, "right")
        begins = np.searchsorted(event, asked - min(reach, whole.span), "right")
        done = 0
        while done < len(asked):
            # As far ahead as a window reaches back, so that no event is in more than a few parts.
            ahead = max(ROWS_AT_ONCE, int(ends[done] - begins[done]))
            upto = int(np.searchsorted(ends, ends[done] + ahead, "right"))
            rows = slice(whole.rows.start + int(begins[done]), whole.rows.start + int(ends[upto - 1]))
            questions = slice(whole.questions.start + done, whole.questions.start + upto)
            yield Batch(rows, questions, whole.first_code, whole.end_code, whole.origin, whole.span)
            done = upto


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
        starts = timeline.starts[batch.first_code : batch.end_code + 1]
        counts = np.diff(np.clip(starts, batch.rows.start, batch.rows.stop))
        self.code = np.repeat(np.arange(batch.first_code, batch.end_code), counts)[chosen]
        self.event = timeline.event[batch.rows][chosen]
        self.known = timeline.known[batch.rows][chosen]
        self._by_event = self._axis(self.code, self.event)
        self.by_known: Ints | None = None
        """The rows in order of (key, known time); None when that is their own order."""
        self._by_known = self._by_event
        if timeline.late:
            known = self._axis(self.code, self.known)
            self.by_known = np.argsort(known, kind="stable")
            self._by_known = known[self.by_known]

    def asked(self, code: Ints, at: Ints) -> Asked:
        """Questions of the batch."""
        axis = self._axis(code, at)
        happened = np.searchsorted(self._by_event, axis, "right")
        seen = happened if self.by_known is None else np.searchsorted(self._by_known, axis, "right")
        return Asked(code, at, seen, happened)

    def ranges(self, asked: Asked, length: int) -> Ranges:
        """What the window of `length` microseconds that ends at each question holds."""
        before = self._axis(asked.code, np.maximum(asked.at - length, self._batch.origin))
        return Ranges(np.searchsorted(self._by_event, before, "right"), asked.seen, asked.happened)

    def _axis(self, code: Ints, time: Ints) -> Ints:
        return (code.astype(np.int64) - self._batch.first_code) * self._batch.span + (time - self._batch.origin)


def axes(timeline: Timeline, batch: Batch, lengths: Iterable[int]) -> dict[int, Axis]:
    """The axis to use for each window length; one object serves all lengths that see the same events."""
    everything = Axis(timeline, batch)
    if not timeline.late:
        return dict.fromkeys(lengths, everything)
    delay = everything.known - everything.event
    chosen: dict[int, Axis] = {}
    for length in lengths:
        keep = delay < length
        chosen[length] = everything if keep.all() else Axis(timeline, batch, keep)
    return chosen


def _order(code: Ints, event: Ints, known: Ints | None) -> Ints:
    """Positions that sort by (code, event, known); a log that is already in time order is sorted by its keys alone."""
    order: Ints | None = None
    if known is not None:
        order = np.lexsort((known, event))
    elif (event[1:] < event[:-1]).any():
        first = int(event.min())
        span = int(event.max()) - first + 1
        few_runs = np.count_nonzero(code[1:] < code[:-1]) < RUNS_MERGED
        if few_runs and (int(code.max()) + 1) * span < FOREVER:
            # A stable sort merges what is sorted already. In ten million events by time it would find nothing to merge.
            return np.argsort(code.astype(np.int64) * span + (event - first), kind="stable")
        order = np.argsort(event, kind="stable")
    return sort_codes(code, order)


def sort_codes(code: NDArray[np.integer], order: Ints | None = None) -> Ints:
    """Positions that sort by key, and within a key by `order` (as they come if None).

    Small numbers numpy sorts by counting, in half the time, as long as they stay near the processor. Otherwise key and
    place are packed into one number, of 63 bits at most, which it sorts in registers; no two are equal, so that any
    sort is stable.
    """
    code = code if order is None else code[order]
    if len(code) <= ROWS_AT_ONCE and int(code.max(initial=0)) < 1 << 16:
        sorted_ = np.argsort(code.astype(np.uint16), kind="stable")
        return sorted_ if order is None else order[sorted_]
    bits = max(len(code) - 1, 0).bit_length()
    packed = code.astype(np.int64)
    packed <<= bits
    packed |= np.arange(len(code))
    packed.sort()
    packed &= (1 << bits) - 1
    return packed if order is None else order[packed]


def consecutive(starts: Ints, lengths: Ints) -> Ints:
    """start, start + 1, ... for each start, so many as its length, one after another."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)


def sort_questions(code: Ints, at: Ints) -> Ints:
    """Positions that sort questions by (key, time)."""
    if not len(code):
        return np.zeros(0, np.int64)
    origin = int(at.min())
    span = int(at.max()) - origin + 1
    if (int(code.max()) + 1) * span > FOREVER:
        return np.lexsort((at, code))
    return np.argsort(code.astype(np.int64) * span + (at - origin))  # equal ones are the same question


@dataclass(frozen=True)
class Distinct:
    """Each question once (grain Q), sorted by key and time: what DuckDB and the windows both like."""

    code: Ints
    at: Ints
    which: Ints
    """The question of each that asks (grain A)."""

    @classmethod
    def of(cls, code: Ints, at: Ints) -> Distinct:
        """The questions among those asked (grain A)."""
        order = sort_questions(code, at)
        code, at = code[order], at[order]
        new = np.append(True, (code[1:] != code[:-1]) | (at[1:] != at[:-1]))[: len(code)]
        which = np.empty(len(code), np.int64)
        which[order] = np.cumsum(new) - 1
        return cls(code[new], at[new], which)
