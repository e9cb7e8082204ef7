"""From request columns to model inputs: online rows, the rules of time, on-demand transformations, one vectorised pass.

Three rules make a vector equal to the one training would have built for the same instant: a value older than its
view's TTL is null, a value from after the asking instant (or after the view's last grid point before it) is null, and
a key that a windowed view has never seen has counted zero events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, Literal

import numpy as np

from contracts.bundle import FeatureSpec
from contracts.errors import SkewlessError
from contracts.serving_policy import Degradation
from serving.breaker import Breaker
from serving.guard import GuardedReader
from serving.inputs import Columns, InputField, checked
from serving.online import Key, OnlineReader, Row, StoreBusy, StoreUnavailable, ViewSpec
from serving.standins import NOTHING, StandIns, StoodIn

Status = Literal["present", "not_found", "expired", "future", "default", "refused"]
"""Of a view for a row: its row counts, there is none, it is older than its TTL, or it lies after the asking instant.

In the last two cases the values are withheld: training would not have seen them either. While the online store does
not answer: the task's declared default stands in, or nothing does.
"""
_Layout = dict[str, list[tuple[str, int | None]]]
"""Kind of input to its columns: source and, of an array, the place."""
_Judged = tuple[tuple[Any, ...], Status, int | None]
"""A view's values, what they are, and the event timestamp of the row they come from."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ARRAYS = frozenset(f"Array({inner})" for inner in ("Int32", "Int64", "Float32", "Float64"))
"""Types of features of which a model may read the last places."""


class UnknownFeatures(SkewlessError, LookupError):
    """A model wants inputs that its feature service does not have."""


class TransformFailed(SkewlessError, ValueError):
    """An on-demand view's function failed on a request's values, or gave another number of them: it would again."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of a service."""

    name: str
    """As it is answered."""
    source: str
    """`view__feature`, which no other feature has."""
    kind: Literal["number", "text", "other"]
    """What a model may take it as; the rest can be looked up, and on-demand views may read it."""
    type: str
    """As declared."""


@dataclass(frozen=True, slots=True)
class Transform:
    """One on-demand view."""

    name: str
    inputs: Mapping[str, str]
    """Name under which the function finds a column: an input's name, or the source of a stored feature."""
    outputs: tuple[str, ...]
    run: Callable[[Columns, int], Mapping[str, Sequence[Any]]]
    """Columns and their length to output columns."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """Features of N rows as Python values, in the rows' order."""

    values: Columns
    """Feature to N values; None is null."""
    statuses: dict[str, list[Status]]
    """View to what was found, row by row."""
    view_times: list[dict[str, int | None]]
    """Per row: view name to the event timestamp (microseconds since the epoch) of the row found, None without one.

    It stands even where the row's values were withheld: it says why.
    """
    stood_in: StoodIn = NOTHING


@dataclass(frozen=True, slots=True)
class Vectors:
    """Features of N rows as a model takes them, in the rows' order."""

    numbers: np.ndarray
    """float32 [N, n]; null is NaN."""
    texts: np.ndarray
    """object [N, t] of str; null is the empty string."""
    statuses: dict[str, list[Status]]
    """As in `Lookup`."""
    view_times: list[dict[str, int | None]]
    """As in `Lookup`."""
    stood_in: StoodIn = NOTHING

    def known(self, view: str, i: int) -> bool:
        """Whether the online store has a row of the view for row `i`."""
        return self.statuses[view][i] != "not_found"

    def withheld(self) -> dict[tuple[str, Status], int]:
        """Rows whose value was withheld, by view and reason."""
        reasons: tuple[Status, ...] = ("expired", "future")
        counts = {(view, why): each.count(why) for view, each in self.statuses.items() for why in reasons}
        return {place: count for place, count in counts.items() if count}


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
        features: Sequence[Feature],
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
        self._stand_ins: StandIns | None = None
        self._fallback = False
        self._by_name = {each.name: each for each in features}
        self._model_features = tuple(FeatureSpec(f.name, f.kind) for f in features if f.kind != "other")
        self._sources = [[f"{view.name}__{name}" for name in view.features] for view in views]
        self._view_names = [view.name for view in views]
        self._layouts: list[tuple[Sequence[FeatureSpec], _Layout]] = []

    @property
    def waits(self) -> bool:
        """Whether a look-up waits for a server, so that it does not belong on an event loop."""
        return self._reader.waits

    def guarded(self, policy: Degradation, breaker: Breaker) -> FeaturePlan:
        """The same plan behind a circuit breaker, with what a task declares to stand in while the store is away."""
        plan = copy(self)
        plan._stand_ins = StandIns(policy, self.views)
        plan._fallback = policy.fallback
        plan._reader = GuardedReader(self._reader, breaker, plan._stand_ins.remember)
        return plan

    def views_keyed_by(self, key: str) -> tuple[str, ...]:
        """Names of the views whose only join key is `key`."""
        return tuple(view.name for view in self.views if view.columns == (key,))

    def check(self, features: Sequence[FeatureSpec]) -> None:
        """Raise UnknownFeatures unless the service has each of `features`, of the same kind."""
        for spec in features:
            have = self._by_name.get(spec.place[0] if spec.place else spec.name)
            if have is None or (have.type not in _ARRAYS if spec.place else have.kind != spec.kind):
                found = "nothing of that name" if have is None else f"it as {have.kind} ({have.type})"
                raise UnknownFeatures(
                    f"The model wants {spec.name!r} as {spec.kind}; feature service {self.service!r} has {found}.",
                    hint="train a version on the service as it is now.",
                )

    def look_up(self, columns: Mapping[str, list[Any]], at: Sequence[datetime]) -> Lookup:
        """All features of N rows as they were knowable at each row's instant.

        Args:
            columns: a list of N values for each of `inputs`; None is null; timestamps are aware datetimes.
            at: N instants, timezone-aware.

        Raises:
            WrongInput: a column is missing, or holds what it cannot.
            StoreUnavailable: the online store does not answer.
            TransformFailed: an on-demand view's function failed.
        """
        values, statuses, times, stood_in = self._read(columns, at)
        return Lookup({each.name: values[each.source] for each in self.features}, statuses, times, stood_in)

    def vectors(
        self, columns: Mapping[str, list[Any]], at: Sequence[datetime], features: Sequence[FeatureSpec] | None = None
    ) -> Vectors:
        """What a model takes of N rows; see `look_up`.

        Args:
            columns: as in `look_up`.
            at: as in `look_up`.
            features: the model's inputs in its order; the service's numbers and texts when left out.
        """
        values, statuses, times, stood_in = self._read(columns, at)
        layout = self._layout(self._model_features if features is None else features)
        numbers, texts = (
            [values[source] if place is None else _places(values[source], place) for source, place in layout[kind]]
            for kind in ("number", "text")
        )
        return Vectors(_numbers(numbers, len(at)), _texts(texts, len(at)), statuses, times, stood_in)

    def _layout(self, features: Sequence[FeatureSpec]) -> _Layout:
        """Where a model's inputs come from, by kind; kept for the few models that ask again and again."""
        for known, layout in self._layouts:
            if known is features:
                return layout
        layout = {"number": [], "text": []}
        for spec in features:
            whole = spec.name in self._by_name or spec.place is None
            name, place = (spec.name, None) if whole or spec.place is None else spec.place
            layout[spec.kind].append((self._by_name[name].source, place))
        self._layouts = [(features, layout), *self._layouts[:7]]
        return layout

    def _read(
        self, columns: Mapping[str, list[Any]], at: Sequence[datetime]
    ) -> tuple[Columns, dict[str, list[Status]], list[dict[str, int | None]], StoodIn]:
        count = len(at)
        values = checked(self.inputs, columns, count, self.service)
        instants = _micros(at)
        alike = len(set(instants)) == 1
        statuses: dict[str, list[Status]] = {}
        times: list[tuple[int | None, ...]] = []
        places, asked = self._distinct_keys(columns, count)
        views: Sequence[ViewSpec] = self.views
        stood_in = NOTHING
        try:
            found = self._reader.read(asked)
        except StoreUnavailable as error:
            if self._stand_ins is None or isinstance(error, StoreBusy):
                raise
            views, found, stood_in = self._stand_ins.answer(asked, places, count)
            if stood_in.refused and not self._fallback:
                raise
        for view, sources, place, rows in zip(views, self._sources, places, found, strict=True):
            nothing: _Judged = (None,) * len(view.features), "not_found", None  # of a null key, whose place is -1
            if alike:
                judged = [*[_knowable(view, row, instants[0]) for row in rows], nothing]
                picked = [judged[position] for position in place]
            else:
                picked = [
                    _knowable(view, rows[position], instant) if position >= 0 else nothing
                    for position, instant in zip(place, instants, strict=True)
                ]
            known, said, stamps = zip(*picked, strict=True)
            statuses[view.name] = list(said)
            times.append(stamps)
            values.update(zip(sources, map(list, zip(*known, strict=True)), strict=True))
        for transform in self._transforms:
            # Every transformation sees stored and requested values only, never another one's output.
            for name, column in _computed(transform, values, count).items():
                values[f"{transform.name}__{name}"] = column
        if not times:
            return values, statuses, [{} for _ in at], stood_in
        by_row = [dict(zip(self._view_names, row, strict=True)) for row in zip(*times, strict=True)]
        return values, stood_in.told(statuses), by_row, stood_in

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


def _computed(transform: Transform, values: Mapping[str, Any], count: int) -> dict[str, list[Any]]:
    """A transformation's outputs, `count` values each: one more or less would move those of other features."""
    try:
        computed = transform.run({name: values[source] for name, source in transform.inputs.items()}, count)
        found = {name: list(computed[name]) for name in transform.outputs}
    except Exception as error:
        raise TransformFailed(
            f"On-demand view {transform.name!r} failed on these values: {type(error).__name__}: {error}.",
            hint="a request field may be null; the view's function has to take what a request may hold.",
        ) from error
    for name, column in found.items():
        if len(column) != count:
            raise TransformFailed(
                f"On-demand view {transform.name!r} gave {len(column)} values of {name!r} for {count} rows."
            )
    return found


def _micros(at: Sequence[datetime]) -> list[int]:
    """Instants as microseconds; one that stands there again and again, as in most requests, is computed once."""
    last, micros, found = None, 0, []
    for instant in at:
        if instant is not last:
            last, micros = instant, (instant - _EPOCH) // _MICROSECOND
        found.append(micros)
    return found


def _places(arrays: list[Any], place: int) -> list[Any]:
    """One place of an array feature, null where an array is shorter."""
    return [None if array is None or len(array) < place else array[-place] for array in arrays]


def _knowable(view: ViewSpec, row: Row | None, instant: int) -> _Judged:
    """A view's values for a key at an instant, why they are what they are, and the stamp of what was found."""
    point = instant - instant % view.grid if view.grid else instant
    if row is None:
        # "No events" stays true until an event rewrites it: it is as young as the last grid point.
        empty = view.empty if view.empty and not (view.ttl and instant - point > view.ttl) else None
        return empty or (None,) * len(view.features), "not_found", None
    stamp, found = row
    if stamp > point:
        return (None,) * len(view.features), "future", stamp
    if view.ttl and instant - (point if found == view.empty else stamp) > view.ttl:
        return (None,) * len(view.features), "expired", stamp
    return found, "present", stamp


def _numbers(columns: Sequence[Sequence[Any]], count: int) -> np.ndarray:
    if not columns:
        return np.empty((count, 0), np.float32)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, as it was in training
        flat = np.fromiter(chain.from_iterable(columns), np.float32, len(columns) * count)  # None becomes NaN
        return np.ascontiguousarray(flat.reshape(len(columns), count).T)


def _texts(columns: Sequence[Sequence[Any]], count: int) -> np.ndarray:
    matrix = np.empty((count, len(columns)), object)
    for i, column in enumerate(columns):
        matrix[:, i] = ["" if value is None else value for value in column]
    return matrix
