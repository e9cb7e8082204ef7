"""What is watched of an array feature: how long it is, its mean, and its last value.

Its places are inputs of the model one by one, but drift of the fifth last value says nothing that a person could act
on, and thirty-two such columns would outvote every other feature. Each array is three columns instead. What they do not
show, such as another order of the same values, no univariate method would; the drift of the score shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from contracts.bundle import FeatureSpec


def watched(features: Sequence[FeatureSpec]) -> tuple[FeatureSpec, ...]:
    """The columns that stand for a model's inputs: each as itself, the places of an array as its three summaries."""
    found: dict[str, FeatureSpec] = {}
    for spec in features:
        for name in _summaries(spec.place[0]) if spec.place else [spec.name]:
            found.setdefault(name, FeatureSpec(name, spec.kind, "" if spec.place else spec.type))
    return tuple(found.values())


def summarised(frame: pd.DataFrame, features: Sequence[FeatureSpec]) -> pd.DataFrame:
    """A frame with the summaries of arrays in place of their places; other columns stay.

    Args:
        frame: a column for each of `features`, null where a place is empty.
        features: a model's inputs.
    """
    arrays: dict[str, list[tuple[int, str]]] = {}
    for spec in features:
        if spec.place:
            arrays.setdefault(spec.place[0], []).append((spec.place[1], spec.name))
    if not arrays:
        return frame
    places_of_all = {name for places in arrays.values() for _, name in places}
    columns: dict[str, Any] = {name: frame[name] for name in frame.columns if name not in places_of_all}
    for feature, places in arrays.items():
        values = frame[[name for _, name in sorted(places)]].to_numpy(np.float64)  # the last one first
        present = ~np.isnan(values)
        count = present.sum(axis=1)
        mean = np.where(present, values, 0.0).sum(axis=1) / np.where(count, count, 1)
        last = values[np.arange(len(values)), present.argmax(axis=1)]
        summaries = (count.astype(np.float64), np.where(count, mean, np.nan), last)
        columns |= dict(zip(_summaries(feature), summaries, strict=True))
    return pd.DataFrame(columns)


def _summaries(feature: str) -> tuple[str, str, str]:
    return f"{feature}[length]", f"{feature}[mean]", f"{feature}[last]"
