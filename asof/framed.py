"""Many values as one parameter of an SQL statement: SQLite takes them apart itself, and Python touches none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asof.wire_columns import content, sizes

PADDING = 4
"""A frame may be so many times the size of what it holds: SQLite keeps two copies of it."""
SMALL = 1 << 16
"""Bytes of a frame whose padding does not matter."""


@dataclass(frozen=True)
class Frame:
    """Values of one width: each is its length in digits, its bytes, and zeros."""

    content: bytes
    """Row by row; of each row a value per column."""
    digits: int
    width: int
    """Of the bytes and zeros."""
    nulls: bool
    """Whether there are nulls; then lengths are counted from 1, and 0 is null."""

    @classmethod
    def of(cls, columns: Sequence[pa.LargeBinaryArray]) -> Self | None:
        """Values of columns of one length; None where they differ so much in size that padding were most of it."""
        held = [pc.fill_null(column, b"") if column.null_count else column for column in columns]
        size = np.stack([sizes(column) for column in held], axis=1)
        width = int(size.max(initial=0))
        digits = len(str(width + 1))
        if size.size * width > max(SMALL, PADDING * int(size.sum())):
            return None
        cells = np.zeros((*size.shape, digits + width), np.uint8)
        for place, column in enumerate(held):
            cells[:, place, digits:][np.arange(width) < size[:, place, None]] = content(column)
        nulls = any(column.null_count for column in columns)
        if nulls:
            size += np.stack([column.is_valid().to_numpy(zero_copy_only=False) for column in columns], axis=1)
        for place in range(digits):
            cells[:, :, place] = size // 10 ** (digits - 1 - place) % 10 + ord("0")
        return cls(cells.tobytes(), digits, width, nulls)

    def sql(self, parameter: str, place: str) -> str:
        """SQL for the value at a place, counted from 0: bytes, or null.

        Args:
            parameter: that the content is given as.
            place: SQL for a number.
        """
        start = f"({self.digits + self.width}) * ({place})"
        size = f"cast(substr({parameter}, 1 + {start}, {self.digits}) as integer)"
        if self.nulls:
            size = f"nullif({size}, 0) - 1"
        return f"substr({parameter}, {1 + self.digits} + {start}, {size})"
