"""A source column as the numbers that windows work on, and the way back to its own type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Numbers = NDArray[Any]
"""int64 or float64."""
Answer = tuple[Numbers, Mask]
"""Values and which of them exist (grain Q)."""


class Values:
    """One source column as numbers, and the way back (grain: rows as scanned)."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        valid = pc.is_valid(column).to_numpy(zero_copy_only=False)
        self._dictionary: pa.Array | None = None
        self._time: pa.DataType | None = None
        numbers = self._numbers(column)
        if np.issubdtype(numbers.dtype, np.floating):
            valid = valid & ~np.isnan(numbers)
        self.valid = valid
        self.complete = bool(valid.all())
        """Whether every row has a value."""
        self.numbers = numbers if self.complete else np.where(valid, numbers, 0)

    def _numbers(self, column: pa.Array) -> Numbers:
        dtype = column.type
        if pa.types.is_floating(dtype) or pa.types.is_decimal(dtype):
            return _filled(column.cast(pa.float64()))
        if pa.types.is_timestamp(dtype) or pa.types.is_date(dtype):
            self._time = pa.timestamp("us", tz="UTC")
            return _filled(column.cast(pa.timestamp("us"), safe=False).cast(pa.int64()))
        if pa.types.is_integer(dtype) or pa.types.is_boolean(dtype) or pa.types.is_null(dtype):
            return _filled(column.cast(pa.int64()))
        if pa.types.is_dictionary(dtype):
            column = column.cast(dtype.value_type)
        # Text counts and compares as its rank among the values seen.
        coded = column.dictionary_encode()
        ranked = pc.sort_indices(coded.dictionary)
        rank = np.empty(len(ranked), np.int64)
        rank[ranked.to_numpy()] = np.arange(len(ranked))
        self._dictionary = coded.dictionary.take(ranked)
        indices = _filled(coded.indices)
        return rank[indices] if len(rank) else np.zeros(len(indices), np.int64)

    def restore(self, answer: Answer) -> pa.Array:
        """Values of this column (not counts or means of it), back in its own type."""
        values, exists = answer
        if self._dictionary is not None:
            return self._dictionary.take(pa.array(values, pa.int64(), mask=~exists))
        column = pa.array(values, mask=~exists)
        return column.cast(self._time) if self._time is not None else column


def _filled(column: pa.Array) -> Numbers:
    """The numbers, 0 where there is none; no copy when all are there."""
    return (pc.fill_null(column, 0) if column.null_count else column).to_numpy()
