"""Aggregations of one column over windows, exact on every path.

`NULL` and `NaN` are ignored, as SQL ignores nulls. With nothing to aggregate, counts are 0 and everything else is null.
Variance and deviation are of the sample (null below two values). `first` and `last` go by event time, then by when the
event became known; of events equal in both, `first` is the smallest value and `last` the largest, so the answer does
not depend on how the source happens to be stored. Percentiles are exact: the smallest value at or above the rank.
"""

from __future__ import annotations

import re
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from asof import exact
from asof.column import Answer, Floats, Ints, Numbers, Values
from asof.errors import AsofError
from asof.rangequery import count_below, extreme, kth_smallest
from asof.timeline import Axis, Ranges

_SYNONYMS = {"avg": "mean", "stddev": "std", "variance": "var", "nunique": "count_distinct", "median": "percentile_50"}
_ON_NUMBERS = {"sum", "mean", "std", "var"}
_ON_ORDERED = {"min", "max"}
_ON_ANYTHING = {"count", "count_distinct", "first", "last"}
_NUMBERS = {
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "HUGEINT"),
    *("FLOAT", "DOUBLE", "DECIMAL", "BOOLEAN"),
}
_PERCENTILE = re.compile(r"(?:approx_)?percentile_(\d{1,2}(?:\.\d+)?|100)")


class UnknownAggregation(AsofError, ValueError):
    """The function is not one that windows know."""


class AggregationTypeMismatch(AsofError, TypeError):
    """The function cannot be computed over the type of the column."""


class SumOverflow(AsofError, OverflowError):
    """A sum of whole numbers may leave 64 bits."""


def canonical(function: str) -> str:
    """The one name of an aggregation function.

    >>> canonical("AVG")
    'mean'

    Raises:
        UnknownAggregation: no such function.
    """
    name = _SYNONYMS.get(function.lower(), function.lower())
    if name in _ON_NUMBERS | _ON_ORDERED | _ON_ANYTHING:
        return name
    if match := _PERCENTILE.fullmatch(name):
        return f"percentile_{match[1]}"
    known = ", ".join(sorted(_ON_NUMBERS | _ON_ORDERED | _ON_ANYTHING))
    raise UnknownAggregation(f"Unknown aggregation {function!r}.", hint=f"One of {known}, median, percentile_<0-100>.")


def check(function: str, sql_type: str, where: str) -> None:
    """Refuse a function over a type it has no meaning for.

    Args:
        function: a canonical name.
        sql_type: DuckDB's type of the column.
        where: names view and column in the error.

    Raises:
        AggregationTypeMismatch: for example a sum over text.
    """
    plain = sql_type.partition("(")[0]
    number = plain in _NUMBERS
    ordered = number or plain.startswith("TIMESTAMP") or plain == "DATE"
    if function in _ON_NUMBERS:
        fits, wanted = number, "a number or a boolean"
    elif keeps_order(function):
        fits, wanted = ordered, "a number, a boolean or a time"
    else:
        fits, wanted = ordered or plain in ("VARCHAR", "BLOB", "ENUM", "UUID"), "a single value (no list or struct)"
    if not fits:
        raise AggregationTypeMismatch(f"{where}: {function} needs {wanted}, found {sql_type}.")


def keeps_order(function: str) -> bool:
    """Whether the function compares values."""
    return function in _ON_ORDERED or function.startswith("percentile_")


def keeps_type(function: str) -> bool:
    """Whether the function yields one of the column's own values (not a count, sum or mean of them)."""
    return keeps_order(function) or function in ("first", "last")


class WindowColumn:
    """One column over the events of an axis; what several windows share is computed once."""

    def __init__(self, axis: Axis, values: Values | None) -> None:
        self._axis = axis
        if values is None:  # count of rows
            self._numbers: Numbers = np.zeros(len(axis.rows), np.int64)
            self._valid = np.ones(len(axis.rows), bool)
        else:
            self._numbers = values.numbers[axis.rows]
            self._valid = values.valid[axis.rows]

    def aggregate(self, function: str, ranges: Ranges) -> Answer:
        """The function over the window of each question; counts and ranks are int64, means float64."""
        count = self._count(ranges)
        if function == "count":
            return count, np.ones(len(count), bool)
        if function == "count_distinct":
            return self._count_distinct(ranges), np.ones(len(count), bool)
        if function.startswith("percentile_"):
            return self._percentile(float(function.removeprefix("percentile_")), ranges, count)
        if function in ("var", "std"):
            spread = self._variance(ranges, count)
            return (np.sqrt(spread) if function == "std" else spread), count > 1
        value = {
            "sum": self._sum,
            "mean": lambda r: self._sum(r) / np.maximum(count, 1),
            "min": lambda r: self._extreme(r, largest=False),
            "max": lambda r: self._extreme(r, largest=True),
            "first": self._first,
            "last": self._last,
        }[function](ranges)
        return value, count > 0

    @cached_property
    def _counts(self) -> Ints:
        return _prefix(self._valid)

    def _count(self, ranges: Ranges) -> Ints:
        late = _add(self._valid.astype(np.int64)[ranges.late_row], ranges)
        return self._counts[ranges.mid] - self._counts[ranges.lo] + late

    @cached_property
    def _whole(self) -> Ints | None:
        """The column as integers whose sums cannot leave 64 bits, if it is one."""
        if not np.issubdtype(self._numbers.dtype, np.floating):
            largest = max(abs(int(self._numbers.max(initial=0))), abs(int(self._numbers.min(initial=0))))
            if largest * len(self._numbers) >= 1 << 63:
                raise SumOverflow(f"A sum over {len(self._numbers)} values up to {largest} may leave 64 bits.")
            return self._numbers.astype(np.int64)
        largest_float = float(np.abs(self._numbers).max(initial=0.0))
        if largest_float < 1 << 53 and largest_float * len(self._numbers) < 1 << 62:
            whole = self._numbers.astype(np.int64)
            if (whole == self._numbers).all():
                return whole
        return None

    @cached_property
    def _whole_sums(self) -> Ints:
        assert self._whole is not None
        return _prefix(self._whole)

    @cached_property
    def _finite(self) -> Floats:
        numbers = self._numbers.astype(np.float64)
        return np.where(np.isfinite(numbers), numbers, 0.0)

    @cached_property
    def _exact_sums(self) -> exact.ExactSums:
        return exact.ExactSums(self._finite)

    @cached_property
    def _exact_squares(self) -> exact.ExactSums:
        return exact.ExactSums(self._finite, squares=True)

    @cached_property
    def _infinities(self) -> Ints | None:
        """Prefix counts of +inf and of -inf, if there are any."""
        if not np.issubdtype(self._numbers.dtype, np.floating) or not np.isinf(self._numbers).any():
            return None
        return np.stack([_prefix(self._numbers == np.inf), _prefix(self._numbers == -np.inf)])

    def _sum(self, ranges: Ranges) -> Numbers:
        if self._whole is not None:
            total = self._whole_sums[ranges.mid] - self._whole_sums[ranges.lo]
            total = total + _add(self._whole[ranges.late_row], ranges)
            return total if self._numbers.dtype == np.int64 else total.astype(np.float64)
        return self._with_infinities(self._exact_total(ranges).round(), ranges)

    def _exact_total(self, ranges: Ranges) -> exact.Exact:
        total = self._exact_sums.total(ranges.lo, ranges.mid)
        return _add_exact(total, self._finite, ranges, exact.sums_of)

    def _with_infinities(self, total: Floats, ranges: Ranges) -> Floats:
        if self._infinities is None:
            return total
        up, down = self._infinities[:, ranges.mid] - self._infinities[:, ranges.lo]
        up = up + _add((self._numbers == np.inf).astype(np.int64)[ranges.late_row], ranges)
        down = down + _add((self._numbers == -np.inf).astype(np.int64)[ranges.late_row], ranges)
        total = np.where(up > 0, np.inf, np.where(down > 0, -np.inf, total))
        return np.where((up > 0) & (down > 0), np.nan, total)

    def _variance(self, ranges: Ranges, count: Ints) -> Floats:
        squares = self._exact_squares.total_of_squares(ranges.lo, ranges.mid)
        squares = _add_exact(squares, self._finite, ranges, exact.sums_of_squares)
        spread = exact.variance(count, self._exact_total(ranges), squares)
        unbounded = ~np.isfinite(self._with_infinities(np.zeros(len(count)), ranges))
        return np.where(unbounded, np.nan, spread)

    def _extreme(self, ranges: Ranges, *, largest: bool) -> Numbers:
        pick = np.maximum if largest else np.minimum
        floating = np.issubdtype(self._numbers.dtype, np.floating)
        limit = np.inf if floating else np.iinfo(np.int64).max
        nothing = -limit if largest else limit
        numbers = np.where(self._valid, self._numbers, nothing)
        found = extreme(numbers, ranges.lo, ranges.mid, largest=largest)
        found[ranges.lo >= ranges.mid] = nothing
        if len(ranges.late_question):
            question, starts = _groups(ranges)
            found[question] = pick(found[question], pick.reduceat(numbers[ranges.late_row], starts))
        return found

    @cached_property
    def _previous_valid(self) -> Ints:
        """The last row at or before each row that has a value, -1 if none."""
        return np.maximum.accumulate(np.where(self._valid, np.arange(len(self._valid)), -1))

    @cached_property
    def _next_valid(self) -> Ints:
        """The first row at or after each row that has a value, n if none."""
        rows = np.where(self._valid, np.arange(len(self._valid)), len(self._valid))
        return np.append(np.minimum.accumulate(rows[::-1])[::-1], len(self._valid))

    def _last(self, ranges: Ranges) -> Numbers:
        row = np.where(ranges.mid > ranges.lo, self._previous_valid[ranges.mid - 1] if len(self._valid) else -1, -1)
        late = self._valid[ranges.late_row]
        np.maximum.at(row, ranges.late_question[late], ranges.late_row[late])
        return self._tied(largest=True)[np.maximum(row, 0)] if len(self._valid) else np.zeros(len(row))

    def _first(self, ranges: Ranges) -> Numbers:
        end = len(self._valid)
        row = self._next_valid[ranges.lo]
        row = np.where(row < ranges.mid, row, end)
        late = self._valid[ranges.late_row]
        np.minimum.at(row, ranges.late_question[late], ranges.late_row[late])
        return self._tied(largest=False)[np.minimum(row, end - 1)] if end else np.zeros(len(row))

    def _tied(self, *, largest: bool) -> Numbers:
        """Each value replaced by the largest (smallest) among the events it is equal to in key and both times."""
        axis = self._axis
        same = (
            (axis.code[1:] == axis.code[:-1])
            & (axis.event[1:] == axis.event[:-1])
            & (axis.known[1:] == axis.known[:-1])
        )
        if not same.any():
            return self._numbers
        floating = np.issubdtype(self._numbers.dtype, np.floating)
        limit = np.inf if floating else np.iinfo(np.int64).max
        numbers = np.where(self._valid, self._numbers, -limit if largest else limit)
        starts = np.flatnonzero(np.append(True, ~same))
        pick = np.maximum if largest else np.minimum
        return np.repeat(pick.reduceat(numbers, starts), np.diff(np.append(starts, len(numbers))))

    @cached_property
    def _ranks(self) -> tuple[Numbers, Ints]:
        """Distinct values in order, and each row's place among them (rows without a value: one past the end)."""
        distinct, rank = np.unique(self._numbers[self._valid], return_inverse=True)
        ranks = np.full(len(self._valid), len(distinct), np.int64)
        ranks[self._valid] = rank
        return distinct, ranks

    @cached_property
    def _seen_before(self) -> Ints:
        """One past the previous row with the same value (0 if none); n + 1 where there is no value."""
        _, ranks = self._ranks
        order = np.lexsort((np.arange(len(ranks)), ranks))
        seen = np.zeros(len(ranks), np.int64)
        same = ranks[order][1:] == ranks[order][:-1]
        seen[order[1:][same]] = order[:-1][same] + 1
        seen[~self._valid] = len(ranks) + 1
        return seen

    def _count_distinct(self, ranges: Ranges) -> Ints:
        # A value counts where it occurs in the range for the first time.
        distinct = count_below(self._seen_before, ranges.lo + 1, ranges.lo, ranges.mid)
        if not len(ranges.late_question):
            return distinct
        for question, rows in self._late_questions(ranges):
            distinct[question] = len(np.unique(self._ranks[1][rows[self._valid[rows]]]))
        return distinct

    def _percentile(self, percent: float, ranges: Ranges, count: Ints) -> Answer:
        distinct, ranks = self._ranks
        k = np.maximum(np.ceil(percent / 100 * count).astype(np.int64) - 1, 0)
        exists = count > 0
        place = np.zeros(len(count), np.int64)
        whole = exists.copy()
        whole[ranges.late_question] = False
        place[whole] = kth_smallest(ranks, k[whole], ranges.lo[whole], ranges.mid[whole])
        for question, rows in self._late_questions(ranges):
            place[question] = np.sort(ranks[rows])[k[question]] if count[question] else 0
        if not len(distinct):
            return np.zeros(len(count), self._numbers.dtype), exists
        return distinct[np.where(exists, place, 0)], exists

    @staticmethod
    def _late_questions(ranges: Ranges):  # type: ignore[no-untyped-def]
        """Each question that sees late events beyond its run, with all the rows it sees."""
        question, starts = _groups(ranges)
        ends = np.append(starts[1:], len(ranges.late_row))
        for q, start, end in zip(question, starts, ends[: len(starts)], strict=True):
            yield q, np.concatenate([np.arange(ranges.lo[q], ranges.mid[q]), ranges.late_row[start:end]])


def _prefix(numbers: NDArray[np.bool_] | Ints) -> Ints:
    prefix = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(numbers, out=prefix[1:])
    return prefix


def _groups(ranges: Ranges) -> tuple[Ints, Ints]:
    """Questions that see late events, and where the events of each begin."""
    if not len(ranges.late_question):
        return ranges.late_question, np.zeros(0, np.int64)
    starts = np.flatnonzero(np.append(True, np.diff(ranges.late_question) > 0))
    return ranges.late_question[starts], starts


def _add(late: Ints, ranges: Ranges) -> Ints:
    """The late events' numbers, summed by question."""
    total = np.zeros(len(ranges.lo), np.int64)
    if len(late):
        question, starts = _groups(ranges)
        total[question] = np.add.reduceat(late, starts)
    return total


def _add_exact(total, numbers, ranges, sums):  # type: ignore[no-untyped-def]
    if not len(ranges.late_row):
        return total
    question, starts = _groups(ranges)
    late = sums(numbers[ranges.late_row], starts)
    spread = []
    for limb in late.limbs:
        everywhere = np.zeros(len(ranges.lo), np.int64)
        everywhere[question] = limb
        spread.append(everywhere)
    return total + exact.Exact(late.first, spread)
