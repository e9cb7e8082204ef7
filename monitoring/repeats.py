"""One number that a chunk shows far more often than is usual: a sensor that is stuck, a default that stands in.

Such a heap hardly moves a distance between distributions where days differ anyway; counted by itself it stands out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from contracts.bundle import FeatureSpec
from monitoring.log_frame import CHUNK

_DEVIATIONS = 3
_NORMAL = 1.4826
"""Median absolute deviations of a normal distribution that make one standard deviation."""


class Repeats:
    """How often usual chunks show one and the same number.

    What is usual of a feature is the share of the commonest number in a chunk: its median over the reference's chunks
    and three deviations, measured so that one odd chunk does not count. What is usual of a number is the largest share
    it ever had: a calm day is no stuck wind gauge.

    Args:
        reference: usual rows with `CHUNK`.
        features: what is watched; texts and booleans are left out, they are all repetition.
        min_rows: the least rows of a reference chunk; with no chunk of that size the reference is one.
    """

    def __init__(self, reference: pd.DataFrame, features: Sequence[FeatureSpec], *, min_rows: int) -> None:
        chunks = [rows for _, rows in reference.groupby(CHUNK) if len(rows) >= min_rows] or [reference]
        self._limits: dict[str, float] = {}
        self._largest: dict[str, dict[float, float]] = {}
        for spec in features:
            if spec.kind != "number" or spec.type == "bool":
                continue
            commonest, largest = [], dict[float, float]()
            for rows in chunks:
                numbers, shares = _shares(rows[spec.name].to_numpy())
                commonest.append(float(shares.max(initial=0.0)))
                for number, share in zip(numbers.tolist(), shares.tolist(), strict=True):
                    largest[number] = max(share, largest.get(number, 0.0))
            middle = float(np.median(commonest))
            spread = _NORMAL * float(np.median(np.abs(np.array(commonest) - middle)))
            self._limits[spec.name], self._largest[spec.name] = middle + _DEVIATIONS * spread, largest

    def excess(self, name: str, values: np.ndarray) -> float:
        """By which share of a chunk's rows one number is more frequent than is usual; 0 where none is.

        `values` are the feature's, float64 [N] with NaN for what is missing where it is a number.
        """
        if name not in self._limits:
            return 0.0
        limit, largest = self._limits[name], self._largest[name]
        numbers, shares = _shares(values)
        heaps = shares > limit
        found = zip(numbers[heaps].tolist(), shares[heaps].tolist(), strict=True)
        return max([0.0, *(share - max(limit, largest.get(number, 0.0)) for number, share in found)])


def _shares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different numbers and their shares of all rows, those without a value included: what is rare is not stuck."""
    numbers, counts = np.unique(values[~np.isnan(values)], return_counts=True)
    return numbers, counts / max(len(values), 1)
