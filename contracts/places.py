"""Array features place by place: `delays[-1]` is the last value of the array `delays`, `delays[-2]` the one before.

A model reads a fixed number of places, each an input of its own, null where the array is shorter. So graph, reference
and prediction log hold numbers and texts only.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_PLACE = re.compile(r"(.+)\[-(\d+)\]")


def place_name(feature: str, place: int) -> str:
    """What the input for a place of an array feature is called; 1 is the last.

    >>> place_name("delays", 2)
    'delays[-2]'
    """
    return f"{feature}[-{place}]"


def place_of(name: str) -> tuple[str, int] | None:
    """The feature and the place from its end that an input's name says; None for any other name."""
    found = _PLACE.fullmatch(name)
    return (found[1], int(found[2])) if found else None


class Arrays:
    """A column of arrays, to be read place by place.

    Args:
        column: lists, null or empty where there is none.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        arrays = column.combine_chunks()
        lengths = pc.fill_null(pc.list_value_length(arrays), 0)
        self._lengths = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
        self._ends = np.cumsum(self._lengths)
        self._values = arrays.flatten()

    def at(self, place: int) -> pa.Array:
        """The value of each row at a place from its end, in the values' own type; null where the array is shorter."""
        there = self._lengths >= place
        return self._values.take(pa.array(np.where(there, self._ends - place, 0), mask=~there))
