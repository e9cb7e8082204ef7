"""Array features as places (`contracts.places`): the last so many values of each, the last one last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from contracts.bundle import FeatureSpec
from contracts.places import Arrays, place_name, place_of


def is_array(kind: pa.DataType) -> bool:
    """Whether a column holds an array of numbers a row."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    inner = kind.value_type
    return bool(pa.types.is_integer(inner) or pa.types.is_floating(inner))


def places(name: str, column: pa.ChunkedArray, count: int) -> Iterator[tuple[str, pa.Array]]:
    """The last `count` values of each row's array, a float32 column a place, the last one last."""
    arrays = Arrays(column)
    for place in range(count, 0, -1):
        told = arrays.at(place).cast(pa.float64(), safe=False).cast(pa.float32(), safe=False)
        yield place_name(name, place), pc.if_else(pc.is_nan(told), pa.scalar(None, pa.float32()), told)


def feature_kinds(specs: Sequence[FeatureSpec]) -> dict[str, str]:
    """Kind of each feature by its name in the service: "number", "text" or "array"."""
    return {
        feature: "array" if feature != spec.name else spec.kind for spec in specs for feature in [feature_of(spec.name)]
    }


def sequences(specs: Sequence[FeatureSpec]) -> tuple[tuple[int, ...], ...]:
    """For each array feature the places among the number inputs, the last one last."""
    found: dict[str, list[int]] = {}
    for at, spec in enumerate(spec for spec in specs if spec.kind == "number"):
        if feature_of(spec.name) != spec.name:
            found.setdefault(feature_of(spec.name), []).append(at)
    return tuple(tuple(each) for each in found.values())


def feature_of(name: str) -> str:
    """The feature that an input of this name is, or is a place of."""
    place = place_of(name)
    return place[0] if place else name
