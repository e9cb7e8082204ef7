"""What a window holds, aggregated: every function of many windows at once, exact on every path.

Grain: R = one event of an axis, Q = one question. Each function is a difference of two beginnings of the axis (see
`asof.timeline`), or of a beginning and the late events in it. All take time and memory n log n in events and questions,
whatever is late.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from asof import exact
from asof.column import Answer, Floats, Ints, Mask, Numbers, Values
from asof.errors import AsofError
from asof.rangequery import count_below, extreme, extreme_of_late, kth_smallest
from asof.timeline import Axis, Ranges


class SumOverflow(AsofError, OverflowError):
    """A sum of whole numbers may leave 64 bits."""


@dataclass(frozen=True, slots=True)
class Late:
    """Rows that became known after they happened (grain: such a row, in order of known time)."""

    rows: Ints
    """Where they are on the axis."""
    rank: Ints
    """Place of each among them in order of event time."""
    before: Ints
    """How many of them are among the first rows of the axis, for each number of rows."""
    known: Ints
    """How many of them are among the rows first known, for each number of rows."""


class WindowColumn:
    """One column over the events of an axis; what several windows share is computed once."""

    def __init__(self, axis: Axis, values: Values | None) -> None:
        self.axis = axis
        self.order = axis.by_known
        if values is None:  # count of rows
            self.numbers: Numbers = np.zeros(len(axis.rows), np.int64)
        else:
            self.numbers = values.numbers[axis.rows]
        self.complete = values is None or values.complete
        """Whether every row has a value."""
        self.valid = np.ones(len(axis.rows), bool) if values is None or values.complete else values.valid[axis.rows]

    @property
    def floating(self) -> bool:
        """Whether the numbers are floats."""
        return bool(np.issubdtype(self.numbers.dtype, np.floating))

    @cached_property
    def counts(self) -> exact.Prefix:
        """Rows with a value."""
        return exact.Prefix(self.valid, self.order)

    @cached_property
    def _integers(self) -> tuple[Ints, int] | None:
        """The column as integers whose sums cannot leave 64 bits, if it is one, and the largest size among them."""
        if not self.floating:
            largest = max(abs(int(self.numbers.max(initial=0))), abs(int(self.numbers.min(initial=0))))
            return (self.numbers, largest) if largest * len(self.numbers) < 1 << 63 else None
        largest_float = float(np.abs(self.numbers).max(initial=0.0))
        if largest_float < 1 << 53 and largest_float * len(self.numbers) < 1 << 62:
            whole = self.numbers.astype(np.int64)
            if (whole == self.numbers).all():
                return whole, int(largest_float)
        return None

    @cached_property
    def whole(self) -> exact.Prefix | None:
        """Sums of the column as integers that cannot leave 64 bits, if it is one."""
        return None if self._integers is None else exact.Prefix(self._integers[0], self.order)

    @cached_property
    def whole_squares(self) -> exact.Prefix | None:
        """Sums of squares likewise; only where those of the column are."""
        if self._integers is None:
            return None
        numbers, largest = self._integers
        return exact.Prefix(numbers * numbers, self.order) if largest**2 * len(numbers) < 1 << 63 else None

    @cached_property
    def halves(self) -> tuple[exact.Prefix, exact.Prefix]:
        """Sums of the lower 32 bits and of the rest, of integers whose sums may leave 64 bits."""
        return exact.Prefix(self.numbers & exact.MASK, self.order), exact.Prefix(self.numbers >> exact.BITS, self.order)

    @cached_property
    def finite(self) -> Floats:
        """The numbers, 0 where they are not finite."""
        numbers = self.numbers.astype(np.float64)
        return np.where(np.isfinite(numbers), numbers, 0.0)

    @cached_property
    def sums(self) -> exact.ExactSums:
        """Exact sums of floats."""
        return exact.ExactSums(self.finite, self.order)

    @cached_property
    def squares(self) -> exact.ExactSquares:
        """Exact sums of squares."""
        return exact.ExactSquares(self.finite, self.order)

    @cached_property
    def infinities(self) -> tuple[exact.Prefix, exact.Prefix] | None:
        """Counts of +inf and of -inf, if there are any."""
        if not self.floating or not np.isinf(self.numbers).any():
            return None
        return exact.Prefix(self.numbers == np.inf, self.order), exact.Prefix(self.numbers == -np.inf, self.order)

    @cached_property
    def late(self) -> Late | None:
        """The rows that became known after they happened, if there are any."""
        if self.order is None:
            return None
        is_late = self.axis.known > self.axis.event
        rows = self.order[is_late[self.order]]
        before = exact.cumulated(is_late)
        return Late(rows, before[rows], before, exact.cumulated(is_late[self.order]))

    @cached_property
    def punctual(self) -> Mask:
        """Rows with a value that were known when they happened."""
        return self.valid if self.order is None else self.valid & (self.axis.known == self.axis.event)

    @cached_property
    def previous(self) -> Ints:
        """The last punctual row at or before each row, -1 if none; -1 once more at the end."""
        rows = np.maximum.accumulate(np.where(self.punctual, np.arange(len(self.valid)), -1))
        return np.append(rows, -1)

    @cached_property
    def following(self) -> Ints:
        """The first punctual row at or after each row, n if none."""
        rows = np.where(self.punctual, np.arange(len(self.valid)), len(self.valid))
        return np.append(np.minimum.accumulate(rows[::-1])[::-1], len(self.valid))

    def tied(self, *, largest: bool) -> Numbers:
        """Each value replaced by the largest (smallest) among the events it is equal to in key and both times."""
        axis = self.axis
        same = (
            (axis.code[1:] == axis.code[:-1])
            & (axis.event[1:] == axis.event[:-1])
            & (axis.known[1:] == axis.known[:-1])
        )
        if not same.any():
            return self.numbers
        pick = np.maximum if largest else np.minimum
        numbers = np.where(self.valid, self.numbers, self.nothing(largest=largest))
        starts = np.flatnonzero(np.append(True, ~same))
        return np.repeat(pick.reduceat(numbers, starts), np.diff(np.append(starts, len(numbers))))

    def nothing(self, *, largest: bool) -> Any:
        """What loses against every number when the largest (smallest) is looked for."""
        limit = np.inf if self.floating else np.iinfo(np.int64).max
        return -limit if largest else limit

    @cached_property
    def ranks(self) -> tuple[Numbers, Ints]:
        """Distinct values in order, and each row's place among them (rows without a value: one past the end)."""
        distinct, rank = np.unique(self.numbers[self.valid], return_inverse=True)
        ranks = np.full(len(self.valid), len(distinct), np.int64)
        ranks[self.valid] = rank
        return distinct, ranks

    @cached_property
    def seen_before(self) -> tuple[Ints, exact.Prefix]:
        """What counting distinct values takes.

        Of each row, in order of known time: one past the last row, in order of event time, that had its value and was
        known before (0 if none); n + 1 for rows that add nothing, being without a value or older than such a row. And
        the rows that do add something, counted.
        """
        count = len(self.valid)
        ranks = self.ranks[1]
        by_known = np.arange(count) if self.order is None else self.order
        grouped = by_known[np.argsort(ranks[by_known], kind="stable")]
        # One key's rows all precede the next one's, so a value's last row in another key lies before any window.
        newest = np.maximum.accumulate(ranks[grouped] * (count + 1) + grouped + 1) - ranks[grouped] * (count + 1)
        before = np.zeros(count, np.int64)
        same = ranks[grouped][1:] == ranks[grouped][:-1]
        before[grouped[1:][same]] = newest[:-1][same]
        adds = self.valid & (before <= np.arange(count))
        before[~adds] = count + 1
        return before[by_known], exact.Prefix(adds)


class Windowed:
    """One column over the windows of the questions (grain Q); what several functions share is computed once."""

    def __init__(self, column: WindowColumn, ranges: Ranges) -> None:
        self._column = column
        self._ranges = ranges

    def aggregate(self, function: str) -> Answer:
        """The function over the window of each question; counts and ranks are int64, means float64.

        Raises:
            SumOverflow: a sum of whole numbers leaves 64 bits.
        """
        count = self._count
        if function == "count":
            return count, np.ones(len(count), bool)
        if function == "count_distinct":
            return self._count_distinct(), np.ones(len(count), bool)
        if function.startswith("percentile_"):
            return self._percentile(float(function.removeprefix("percentile_")))
        if function in ("var", "std"):
            spread = self._variance()
            return (np.sqrt(spread) if function == "std" else spread), count > 1
        value = {
            "sum": self._sum,
            "mean": self._mean,
            "min": lambda: self._extreme(largest=False),
            "max": lambda: self._extreme(largest=True),
            "first": self._first,
            "last": self._last,
        }[function]()
        return value, count > 0

    @cached_property
    def _count(self) -> Ints:
        if self._column.complete:
            return self._ranges.seen - self._ranges.gone
        return self._between(self._column.counts)

    def _between(self, prefix: exact.Prefix) -> Ints:
        return prefix.between(self._ranges.gone, self._ranges.seen)

    def _sum(self) -> Numbers:
        column = self._column
        if column.whole is not None:
            return self._totals.astype(np.float64) if column.floating else self._totals
        if column.floating:
            return self._totals
        low, high = (self._between(half) for half in column.halves)
        high = high + (low >> exact.BITS)
        limit = 1 << (63 - exact.BITS)
        if ((high >= limit) | (high < -limit)).any():
            raise SumOverflow("a sum leaves 64 bits", hint="Declare the column Float64, or sum over a shorter window.")
        return (high << exact.BITS) + (low & exact.MASK)

    def _mean(self) -> Floats:
        return self._totals / np.maximum(self._count, 1)

    @cached_property
    def _totals(self) -> Numbers:
        """Exact sums as integers where they fit, else rounded to the nearest float."""
        column = self._column
        if column.whole is not None:
            return self._between(column.whole)
        if not column.floating:
            return exact.Exact(0, [self._between(half) for half in column.halves]).round()
        return self._with_infinities(self._exact_total.round())

    @cached_property
    def _exact_total(self) -> exact.Exact:
        return self._column.sums.total(self._ranges.gone, self._ranges.seen)

    def _with_infinities(self, total: Floats) -> Floats:
        if self._column.infinities is None:
            return total
        up, down = (self._between(counted) for counted in self._column.infinities)
        total = np.where(up > 0, np.inf, np.where(down > 0, -np.inf, total))
        return np.where((up > 0) & (down > 0), np.nan, total)

    def _variance(self) -> Floats:
        column = self._column
        if column.whole is not None and column.whole_squares is not None:
            return exact.variance_of_whole(
                self._count, self._between(column.whole), self._between(column.whole_squares)
            )
        squares = column.squares.total(self._ranges.gone, self._ranges.seen)
        spread = exact.variance(self._count, self._exact_total, squares)
        unbounded = ~np.isfinite(self._with_infinities(np.zeros(len(self._count))))
        return np.where(unbounded, np.nan, spread)

    def _extreme(self, *, largest: bool) -> Numbers:
        column, ranges = self._column, self._ranges
        nothing = column.nothing(largest=largest)
        numbers = column.numbers if column.punctual.all() else np.where(column.punctual, column.numbers, nothing)
        found = extreme(numbers, ranges.gone, ranges.happened, largest=largest)
        found[ranges.gone >= ranges.happened] = nothing
        numbers = np.where(column.valid, column.numbers, nothing)
        return self._with_late(found, numbers, nothing, largest=largest)

    def _with_late(self, found: Numbers, numbers: Numbers, nothing: Any, *, largest: bool) -> Numbers:
        """The larger (smaller) of what was found and the numbers of late rows."""
        late = self._column.late
        if late is None:
            return found
        gone, seen = late.before[self._ranges.gone], late.known[self._ranges.seen]
        best = extreme_of_late(numbers[late.rows], late.rank, gone, seen, nothing, largest=largest)
        return np.maximum(found, best) if largest else np.minimum(found, best)

    def _last(self) -> Numbers:
        row = self._column.previous[self._ranges.happened - 1]
        row = np.where(row >= self._ranges.gone, row, -1)
        rows = np.where(self._column.valid, np.arange(len(self._column.valid)), -1)
        return self._at(self._with_late(row, rows, -1, largest=True), largest=True)

    def _first(self) -> Numbers:
        end = len(self._column.valid)
        row = self._column.following[self._ranges.gone]
        row = np.where(row < self._ranges.happened, row, end)
        rows = np.where(self._column.valid, np.arange(end), end)
        return self._at(self._with_late(row, rows, end, largest=False), largest=False)

    def _at(self, row: Ints, *, largest: bool) -> Numbers:
        """The value of a row; any value where there is no such row."""
        values = self._column.tied(largest=largest)
        return values[np.clip(row, 0, len(values) - 1)] if len(values) else np.zeros(len(row), values.dtype)

    def _count_distinct(self) -> Ints:
        # A value counts by the rows that become known with no later row of it known. Each stands for its value from the
        # window's end on while the one before it has left the window, and until it has left the window itself.
        before, adds = self._column.seen_before
        gone, seen = self._ranges.gone, self._ranges.seen
        nothing = np.zeros_like(gone)
        return count_below(before, gone + 1, nothing, seen) - adds.between(nothing, gone)

    def _percentile(self, percent: float) -> Answer:
        distinct, ranks = self._column.ranks
        order = self._column.order
        exists = self._count > 0
        if not len(distinct):
            return np.zeros(len(exists), self._column.numbers.dtype), exists
        k = np.maximum(np.ceil(percent / 100 * self._count).astype(np.int64) - 1, 0)[exists]
        gone, seen = self._ranges.gone[exists], self._ranges.seen[exists]
        place = np.zeros(len(exists), np.int64)
        place[exists] = kth_smallest(ranks, k, gone, seen, None if order is None else ranks[order])
        return distinct[place], exists
