"""Exact sums of floats over ranges: the reason a window has one value whichever path computes it.

A float64 is an integer times a power of two. Writing every value into fixed-point limbs of 32 bits turns prefix sums
into integer arithmetic, so the sum over rows [lo, hi) is the exact difference of two prefixes wherever the scan began,
and it is rounded once, to the nearest float64. Variances use the exact integer n * sum(x^2) - sum(x)^2.

Grain: R = one row of a column, Q = one range asked for. Limb j weighs 2**(32 * (j)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BITS = 32
MASK = np.int64((1 << BITS) - 1)

Scaled = tuple[Ints, Ints]
"""Whole numbers and the power of two each is multiplied by."""


@dataclass(frozen=True, slots=True)
class Exact:
    """One exact number per range: sum over j of limbs[j] * 2**(32 * (first + j)); limbs are signed."""

    first: int
    limbs: list[Ints]

    def __add__(self, other: Exact) -> Exact:
        first = min(self.first, other.first)
        last = max(self.first + len(self.limbs), other.first + len(other.limbs))
        zero = np.zeros_like(self.limbs[0])
        limbs = [zero] * (last - first)
        for number in (self, other):
            for j, limb in enumerate(number.limbs, number.first - first):
                limbs[j] = limbs[j] + limb
        return Exact(first, limbs)

    def round(self) -> Floats:
        """The nearest float64 of each number, ties to even."""
        negative, magnitude = self._sign_magnitude()
        size = len(magnitude)
        stack = np.stack(magnitude)
        top = size - 1 - np.argmax(stack[::-1] != 0, axis=0)
        at = np.arange(stack.shape[1])

        def limb(below: int) -> NDArray[np.uint64]:
            j = top - below
            return np.where(j >= 0, stack[np.maximum(j, 0), at], 0).astype(np.uint64)

        first, second, third = limb(0), limb(1), limb(2)
        lead = (BITS - np.frexp(first.astype(np.float64))[1]).astype(np.uint64)
        # 64 leading bits, then a sticky bit for all that follows: converting rounds to nearest exactly once.
        head = (((first << np.uint64(BITS)) | second) << lead) | (third >> (np.uint64(BITS) - lead))
        sticky = (third & ((np.uint64(1) << (np.uint64(BITS) - lead)) - np.uint64(1))) != 0
        nonzero_below = np.cumsum(stack != 0, axis=0)
        sticky |= (top >= 3) & (nonzero_below[np.maximum(top - 3, 0), at] > 0)
        head |= sticky.astype(np.uint64)
        exponent = BITS * (self.first + top - 1) - lead.astype(np.int64)
        with np.errstate(over="ignore"):
            value = np.ldexp(head.astype(np.float64), exponent)
        return np.where(negative, -value, value)

    def _sign_magnitude(self) -> tuple[NDArray[np.bool_], list[Ints]]:
        limbs = _carried(self.limbs)
        negative = limbs[-1] < 0
        sign = np.where(negative, -1, 1)
        limbs = _carried([limb * sign for limb in limbs])
        while len(limbs) > 1 and not limbs[-1].any():
            limbs.pop()
        return negative, limbs


def _carried(limbs: list[Ints]) -> list[Ints]:
    """The same number with every limb in [0, 2**32) but the last, which holds the sign."""
    out: list[Ints] = []
    carry = np.zeros_like(limbs[0])
    for limb in [*limbs, np.zeros_like(limbs[0])]:
        total = limb + carry
        out.append(total & MASK)
        carry = total >> BITS
    out[-1] |= carry << BITS
    return out


class ExactSums:
    """Prefix sums of one float64 column (grain R) that subtract without error.

    Args:
        values: finite float64; whatever is to be ignored must be 0.
        order: another order of the rows, in which the ends of ranges are counted; None for their own.
    """

    def __init__(self, values: Floats, order: Ints | None = None) -> None:
        self._sum = _Prefixes(_split(values), order)

    def total(self, lo: Ints, hi: Ints) -> Exact:
        """The exact sum of the first `hi` rows less that of the first `lo`, for each range."""
        return self._sum.between(lo, hi)


class ExactSquares:
    """Prefix sums of the squares of one float64 column, for variances; see `ExactSums`."""

    def __init__(self, values: Floats, order: Ints | None = None) -> None:
        self._sum = _Prefixes(_split_squares(values), order)

    def total(self, lo: Ints, hi: Ints) -> Exact:
        """The exact sum of squares of the first `hi` rows less that of the first `lo`, for each range."""
        return self._sum.between(lo, hi)


class Prefix:
    """Prefix sums of whole numbers, counted in one order where ranges begin and in another where they end."""

    def __init__(self, numbers: NDArray[np.bool_] | Ints, order: Ints | None = None) -> None:
        self._begun = cumulated(numbers)
        self._ended = self._begun if order is None else cumulated(numbers[order])

    def between(self, lo: Ints, hi: Ints) -> Ints:
        """The sum of the first `hi` rows less that of the first `lo`, for each range; it wraps around at 64 bits."""
        return self._ended[hi] - self._begun[lo]


class _Prefixes:
    def __init__(self, parts: list[Scaled], order: Ints | None) -> None:
        self._first, limbs = _limbs(parts)
        self._limbs = [Prefix(limb, order) for limb in limbs]

    def between(self, lo: Ints, hi: Ints) -> Exact:
        return Exact(self._first, [limb.between(lo, hi) for limb in self._limbs])


def variance(count: Ints, total: Exact, squares: Exact) -> Floats:
    """Sample variance; NaN where fewer than two values.

    Args:
        count: number of values in each range, below 2**31.
        total: their exact sum.
        squares: the exact sum of their squares.
    """
    _, limbs = total._sign_magnitude()
    size = len(limbs)
    minus_square = [np.zeros_like(count) for _ in range(2 * size + 1)]
    for i in range(size):
        for j in range(size):
            product = limbs[i].astype(np.uint64) * limbs[j].astype(np.uint64)
            minus_square[i + j] -= (product & np.uint64(MASK)).astype(np.int64)
            minus_square[i + j + 1] -= (product >> np.uint64(BITS)).astype(np.int64)
    scaled = Exact(squares.first, [limb * count for limb in _carried(squares.limbs)])
    return _of_sample(count, (scaled + Exact(2 * total.first, minus_square)).round())


def variance_of_whole(count: Ints, total: Ints, squares: Ints) -> Floats:
    """As `variance`, of whole numbers whose sums are of 64 bits; the same to the last bit, and far cheaper."""
    if int(count.max(initial=0)) * int(squares.max(initial=0)) < 1 << 63:  # which the square of the sum never exceeds
        return _of_sample(count, (count * squares - total * total).astype(np.float64))
    return variance(count, Exact(0, [total]), Exact(0, [squares]))


def _of_sample(count: Ints, spread: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 1, spread / (count.astype(np.float64) * (count - 1)), np.nan)


def _split(values: Floats) -> list[Scaled]:
    return [_scaled(*np.frexp(values))]


def _split_squares(values: Floats) -> list[Scaled]:
    """x * x as three numbers whose sum is exact: halves of 26 bits multiply without rounding."""
    mantissa, exponent = np.frexp(values)
    high = np.rint(mantissa * (1 << 26)) / (1 << 26)
    low = mantissa - high
    return [_scaled(part, 2 * exponent) for part in (high * high, 2 * high * low, low * low)]


def _scaled(mantissa: Floats, exponent: NDArray[np.int32]) -> Scaled:
    normal, more = np.frexp(mantissa)
    return np.ldexp(normal, 53).astype(np.int64), exponent.astype(np.int64) + more - 53


def cumulated(numbers: NDArray[np.bool_] | Ints) -> Ints:
    """The sum of the first rows, for each number of rows from none to all."""
    prefix = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(numbers, out=prefix[1:])
    return prefix


def _limbs(parts: list[Scaled]) -> tuple[int, list[Ints]]:
    """The sum of `parts`, value by value: (index of the first limb, signed limbs)."""
    lowest = [exponent[whole != 0] for whole, exponent in parts]
    used = [int(edge) // BITS for exponent in lowest if len(exponent) for edge in (exponent.min(), exponent.max())]
    first, last = (min(used), max(used) + 2) if used else (0, 0)
    limbs = [np.zeros(len(parts[0][0]), np.int64) for _ in range(last - first + 1)]
    for whole, exponent in parts:
        index, shift = exponent // BITS, exponent % BITS
        low = (whole & MASK) << shift  # at most 63 bits
        high = (whole >> BITS) << shift
        contributions = (low & MASK, (low >> BITS) + (high & MASK), high >> BITS)
        for j in range(first, last + 1):
            for offset, contribution in enumerate(contributions):
                limbs[j - first] += np.where(index + offset == j, contribution, 0)
    return first, limbs
