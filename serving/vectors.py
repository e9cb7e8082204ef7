"""From request columns to model inputs: online rows, the rules of time, on-demand transformations, one vectorised pass.

Three rules make a vector equal to the one training would have built for the same instant: a value older than its
view's TTL is null, a value from after the asking instant (or after the view's last grid point before it) is null, and
a key that a windowed view has never seen has counted zero events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

import numpy as np

from contracts.bundle import FeatureSpec
from contracts.errors import SkewlessError

InputType = Literal["integer", "number", "text", "boolean", "timestamp"]
Key = tuple[Any, ...]
Row = tuple[int, tuple[Any, ...]]
"""What a view holds for a key: event timestamp (microseconds since the epoch), values in the order of its features."""
Columns = dict[str, list[Any]]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class UnknownFeatures(SkewlessError, LookupError):
    """A model wants inputs that its feature service does not have."""


@dataclass(frozen=True, slots=True)
class InputField:
    """One value a caller sends: a join key, or a field that on-demand views read from the request."""

    name: str
    type: InputType
    role: Literal["key", "request"]
    bits: Literal[32, 64] = 64
    """Width of an integer."""


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """One stored view, as a plan reads it."""

    name: str
    """Under which its features are known: the alias, where the service gives one."""
    table: str
    """The view's own name in the registry."""
    join_keys: tuple[str, ...]
    """As stored, in sorted order."""
    columns: tuple[str, ...]
    """Request columns that give the join keys, in their order."""
    features: tuple[str, ...]
    ttl: int
    """Microseconds; 0 is for ever."""
    grid: int
    """Microseconds between the instants at which the view takes a new value; 0 is every instant."""
    empty: tuple[Any, ...] | None = None
    """A windowed view's values where no event is in any window: zero for counts, else None. None for a plain view."""


@dataclass(frozen=True, slots=True)
class Transform:
    """One on-demand view."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[Columns, int], Mapping[str, Sequence[Any]]]
    """Columns and their length to output columns."""


class OnlineReader(Protocol):
    """Where stored rows come from."""

    def read(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[list[Row | None]]:
        """Rows of each view for its (distinct, null-free) keys, in their order; None where there is no row."""
        ...


@dataclass(frozen=True, slots=True)
class Vectors:
    """Features of N rows, in the rows' order."""

    numbers: np.ndarray
    """float32 [N, n]; null is NaN."""
    texts: np.ndarray
    """object [N, t] of str; null is the empty string."""
    view_times: list[dict[str, int | None]]
    """Per row: view name to the event timestamp (microseconds since the epoch) of the row found, None without one.

    It stands even where the row's values were withheld: it says why.
    """
    known: dict[str, list[bool]]
    """View name to whether the online store has a row for the key, row by row."""
    expired: dict[str, int] = field(default_factory=dict)
    """View name to rows whose value was older than the TTL."""
    future: dict[str, int] = field(default_factory=dict)
    """View name to rows whose value lay after the asking instant, which training would not have seen."""


class FeaturePlan:
    """A compiled feature service; may be used from any thread.

    Args:
        service: its name.
        fingerprint: hash of the definitions the plan was compiled from.
        features: all features of the service, in its order.
        inputs: what a request row must carry.
        views: the stored views it reads.
        transforms: the on-demand views it computes.
        reader: the online store.
    """

    def __init__(
        self,
        *,
        service: str,
        fingerprint: str,
        features: Sequence[FeatureSpec],
        inputs: Sequence[InputField],
        views: Sequence[ViewSpec],
        transforms: Sequence[Transform],
        reader: OnlineReader,
    ) -> None:
        self.service = service
        self.fingerprint = fingerprint
        self.features = tuple(features)
        self.inputs = tuple(inputs)
        self.views = tuple(views)
        self._transforms = tuple(transforms)
        self._reader = reader

    def views_keyed_by(self, key: str) -> tuple[str, ...]:
        """Names of the views whose only join key is `key`."""
        return tuple(view.name for view in self.views if view.columns == (key,))

    def check(self, features: Sequence[FeatureSpec]) -> None:
        """Raise UnknownFeatures unless the service has each of `features`, of the same kind."""
        have = {spec.name: spec.kind for spec in self.features}
        for spec in features:
            if have.get(spec.name) != spec.kind:
                found = have.get(spec.name, "nothing of that name")
                raise UnknownFeatures(
                    f"The model wants {spec.name!r} as {spec.kind}; feature service {self.service!r} has {found}.",
                    hint="train a version on the service as it is now.",
                )

    def vectors(
        self, columns: Mapping[str, list[Any]], at: Sequence[datetime], features: Sequence[FeatureSpec] | None = None
    ) -> Vectors:
        """Features of N rows as they were knowable at each row's instant.

        Args:
            columns: a list of N values for each of `inputs`; None is null; timestamps are aware datetimes.
            at: N instants, timezone-aware.
            features: the model's inputs in its order; the whole service when left out.

        Raises:
            Exception: whatever the online store or a transformation raises.
        """
        instants = [(instant - _EPOCH) // _MICROSECOND for instant in at]
        values: Columns = dict(columns)
        count = len(instants)
        times: list[dict[str, int | None]] = [{} for _ in range(count)]
        known: dict[str, list[bool]] = {}
        expired: dict[str, int] = {}
        future: dict[str, int] = {}
        places, asked = self._distinct_keys(columns, count)
        for view, place, rows in zip(self.views, places, self._reader.read(asked), strict=True):
            nulls = (None,) * len(view.features)
            judged: dict[tuple[int, int], tuple[tuple[Any, ...], str]] = {}
            picked: list[tuple[Any, ...]] = []
            seen: list[bool] = []
            for row_times, position, instant in zip(times, place, instants, strict=True):
                row = rows[position] if position >= 0 else None
                row_times[view.name] = None if row is None else row[0]
                seen.append(row is not None)
                if position < 0:
                    picked.append(nulls)
                    continue
                asking = position, instant
                if asking not in judged:
                    judged[asking] = _knowable(view, row, instant)
                found, withheld = judged[asking]
                if withheld:
                    counts = expired if withheld == "expired" else future
                    counts[view.name] = counts.get(view.name, 0) + 1
                picked.append(found)
            known[view.name] = seen
            for name, column in zip(view.features, zip(*picked, strict=True), strict=True):
                values[name] = list(column)
        for transform in self._transforms:
            # Every transformation sees stored and requested values only, never another one's output.
            given = {name: values[name] for name in transform.inputs}
            computed = transform.run(given, count)
            values |= {name: list(computed[name]) for name in transform.outputs}
        wanted = self.features if features is None else features
        numbers = [values[spec.name] for spec in wanted if spec.kind == "number"]
        texts = [values[spec.name] for spec in wanted if spec.kind == "text"]
        return Vectors(_numbers(numbers, count), _texts(texts, count), times, known, expired, future)

    def _distinct_keys(
        self, columns: Mapping[str, list[Any]], count: int
    ) -> tuple[list[list[int]], list[tuple[ViewSpec, list[Key]]]]:
        """Per view: each row's place among the distinct keys (-1 for a null key), and those keys."""
        cache: dict[tuple[str, ...], tuple[list[int], list[Key]]] = {}
        places, asked = [], []
        for view in self.views:
            if view.columns not in cache:
                index: dict[Key, int] = {}
                keys = zip(*(columns[name] for name in view.columns), strict=True) if view.columns else [()] * count
                place = [-1 if None in key else index.setdefault(key, len(index)) for key in keys]
                cache[view.columns] = place, list(index)
            place, distinct = cache[view.columns]
            places.append(place)
            asked.append((view, distinct))
        return places, asked


def _knowable(view: ViewSpec, row: Row | None, instant: int) -> tuple[tuple[Any, ...], str]:
    """A view's values for a key at an instant; and "expired" or "future" where it has a row but may not tell it."""
    nulls = (None,) * len(view.features)
    point = instant - instant % view.grid if view.grid else instant
    stamp, found = row or (point, view.empty or nulls)
    if stamp > point:
        return nulls, "future"
    # "No events" stays true until an event rewrites it: it is as young as the last grid point.
    if view.ttl and instant - (point if found == view.empty else stamp) > view.ttl:
        return nulls, "expired" if row else ""
    return found, ""


def _numbers(columns: Sequence[Sequence[Any]], count: int) -> np.ndarray:
    if not columns:
        return np.empty((count, 0), np.float32)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, as it was in training
        return np.ascontiguousarray(np.array(columns, np.float32).T)  # None becomes NaN


def _texts(columns: Sequence[Sequence[Any]], count: int) -> np.ndarray:
    matrix = np.empty((count, len(columns)), object)
    for i, column in enumerate(columns):
        matrix[:, i] = ["" if value is None else value for value in column]
    return matrix
