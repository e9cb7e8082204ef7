"""Array features as places: the last so many values of each, the last one last, null where the array is shorter.

A place is an input of its own, `delays[-1]` the last value and `delays[-2]` the one before, so that frame, graph and
reference hold numbers and texts only, whatever a feature is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.bundle import FeatureSpec


def is_array(kind: pa.DataType) -> bool:
    """Whether a column holds an array of numbers a row."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    inner = kind.value_type
    return bool(pa.types.is_integer(inner) or pa.types.is_floating(inner))


def places(name: str, column: pa.ChunkedArray, count: int) -> Iterator[tuple[str, pa.Array]]:
    """The last `count` values of each row's array, a float32 column a place, the last one last."""
    arrays = column.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(arrays), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = arrays.flatten().cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float32)
    ends = np.cumsum(lengths)
    for place in range(count, 0, -1):
        there = lengths >= place
        told = np.full(len(lengths), np.nan, np.float32)
        told[there] = values[ends[there] - place]
        yield f"{name}[-{place}]", pa.array(told, from_pandas=True)


def feature_kinds(specs: Sequence[FeatureSpec]) -> dict[str, str]:
    """Kind of each feature by its name in the service: "number", "text" or "array"."""
    return {feature: "array" if feature != spec.name else spec.kind for spec in specs for feature in [_feature(spec)]}


def sequences(specs: Sequence[FeatureSpec]) -> tuple[tuple[int, ...], ...]:
    """For each array feature the places among the number inputs, the last one last."""
    found: dict[str, list[int]] = {}
    for at, spec in enumerate(spec for spec in specs if spec.kind == "number"):
        if _feature(spec) != spec.name:
            found.setdefault(_feature(spec), []).append(at)
    return tuple(tuple(each) for each in found.values())


def _feature(spec: FeatureSpec) -> str:
    return spec.place[0] if spec.place else spec.name
