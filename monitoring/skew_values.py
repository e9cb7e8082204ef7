"""When a logged value equals its recomputation.

Numbers are compared as the model sees them, as float32: equal when at most one float32 value apart (whole numbers and
booleans: when the same), null and NaN being one. Texts are equal or not, null and the empty text being one.

Grain: N = rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

EQUAL, DIFFERENT, MISSING, EXTRA = range(4)
"""Kinds: MISSING is null online and a value offline, EXTRA the reverse."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One feature of N rows, online against offline."""

    kinds: np.ndarray
    """int8 [N]"""
    online: np.ndarray | pa.ChunkedArray
    """float32, or texts; [N]"""
    offline: np.ndarray | pa.ChunkedArray

    @property
    def wrong(self) -> np.ndarray:
        """Rows that are not equal, rising."""
        return np.flatnonzero(self.kinds)

    def pair(self, row: int) -> tuple[float | str | None, float | str | None]:
        """Both values of a row, null as None."""
        return _plain(self.online[row]), _plain(self.offline[row])

    def largest(self, rows: np.ndarray) -> float:
        """Largest difference of two numbers among rows that are DIFFERENT; 0 for texts."""
        rows = rows[self.kinds[rows] == DIFFERENT]
        if isinstance(self.online, pa.ChunkedArray) or not len(rows):
            return 0.0
        pairs = (self.online[rows].astype(np.float64), self.offline[rows].astype(np.float64))
        return float(np.abs(pairs[0] - pairs[1]).max())


def compare_values(online: pa.ChunkedArray, offline: pa.ChunkedArray) -> Compared:
    """Compare a logged column with the recomputed one, row by row."""
    if pa.types.is_string(online.type):
        return _compare_texts(online.fill_null(""), offline.cast(pa.string()).fill_null(""))
    a, b = _numbers(online), _numbers(offline)
    null = np.isnan(a), np.isnan(b)
    kinds = np.zeros(len(a), np.int8)
    suspects = np.flatnonzero((a != b) & ~(null[0] & null[1]))
    if len(suspects):
        exact = pa.types.is_integer(offline.type) or pa.types.is_boolean(offline.type)
        apart = np.abs(_ordered(a[suspects]) - _ordered(b[suspects])) > (0 if exact else 1)
        kinds[suspects] = _kinds(apart, null[0][suspects], null[1][suspects])
    return Compared(kinds, a, b)


def _compare_texts(online: pa.ChunkedArray, offline: pa.ChunkedArray) -> Compared:
    kinds = np.zeros(len(online), np.int8)
    suspects = np.flatnonzero(pc.not_equal(online, offline).to_numpy())
    if len(suspects):
        rows = pa.array(suspects)
        empty = (pc.equal(each.take(rows), "").to_numpy() for each in (online, offline))
        kinds[suspects] = _kinds(np.ones(len(suspects), bool), *empty)
    return Compared(kinds, online, offline)


def _kinds(apart: np.ndarray, online_null: np.ndarray, offline_null: np.ndarray) -> np.ndarray:
    return np.select(
        [online_null & offline_null, online_null, offline_null, apart],
        [EQUAL, MISSING, EXTRA, DIFFERENT],
        default=EQUAL,
    ).astype(np.int8)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """float32 values as the model gets them; null is NaN."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    wide = column if pa.types.is_float32(column.type) else column.cast(pa.float64(), safe=False)
    values: np.ndarray = wide.cast(pa.float32(), safe=False).to_numpy()
    return values


def _ordered(values: np.ndarray) -> np.ndarray:
    """Whole numbers as far apart as the float32 values are; 0 and -0 are one."""
    bits = np.ascontiguousarray(values).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _plain(value: np.float32 | pa.StringScalar) -> float | str | None:
    if isinstance(value, pa.Scalar):
        return value.as_py() or None
    return None if np.isnan(value) else float(value)
