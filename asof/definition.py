"""A view as the engine sees it: keys, features, windows, source. Free of Feast, whose import takes seconds and memory.

`asof.view` makes them of Feast's definitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from asof.source import Source

if TYPE_CHECKING:
    from feast.field import Field
    from feast.types import FeastType


@dataclass(frozen=True)
class Key:
    """One join key."""

    name: str
    """In the source, and in the online store."""
    column: str
    """In the spine."""
    dtype: pa.DataType
    feast_type: FeastType


@dataclass(frozen=True)
class Feature:
    """One declared feature."""

    name: str
    field: Field
    dtype: pa.DataType | None
    """Arrow type of the declared Feast type; None to keep the source's."""


@dataclass(frozen=True)
class Window:
    """One aggregation that yields one feature."""

    feature: Feature
    function: str
    column: str
    """Empty to count rows."""
    length: int
    """Microseconds; FOREVER when unbounded."""
    slide: int
    """Microseconds; 0 when the window ends at the moment asked for."""


@dataclass(frozen=True)
class Shard:
    """One part of a view's keys: those whose hash leaves `number` when divided by `of`."""

    number: int
    of: int


@dataclass(frozen=True)
class View:
    """What to compute, and from what."""

    name: str
    keys: tuple[Key, ...]
    """Empty for a view without entities."""
    features: tuple[Feature, ...]
    """Those asked for, in that order."""
    declared: tuple[Feature, ...]
    """All of them, by name."""
    windows: tuple[Window, ...]
    """One per feature asked for, in that order; empty for a plain view."""
    source: Source
    ttl: int
    """Microseconds; 0 means forever."""
    every: int
    """Microseconds between grid points; 0 means evaluated at the moment asked for."""
    series: tuple[str, ...] = ()
    """Columns of all declared arrays, asked for or not: events of one moment are in the order of their values."""
    shard: Shard | None = None
    """Read the events of these keys alone; None for all."""

    @property
    def is_windowed(self) -> bool:
        """Whether the features are aggregations."""
        return bool(self.windows)

    @property
    def reach(self) -> int:
        """Microseconds the longest window looks back from the moment asked for."""
        return max((window.slide + window.length for window in self.windows), default=0)
