"""Array features in the skew audit: recomputed as arrays, compared place by place, as the log has them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pyarrow as pa

from contracts.places import Arrays, place_of
from monitoring.recompute import ViewFacts
from monitoring.skew_causes import Recompute


def by_place(recompute: Recompute, names: Iterable[str]) -> Recompute:
    """The same recomputation, with a column for each of `names` that is a place of one of its array features."""
    places = {name: place for name in names if name not in recompute.sources and (place := place_of(name))}
    places = {name: place for name, place in places.items() if place[0] in recompute.sources}
    return _ByPlace(recompute, places) if places else recompute


class _ByPlace:
    def __init__(self, recompute: Recompute, places: dict[str, tuple[str, int]]) -> None:
        self._recompute = recompute
        self._places = places
        self.sources = recompute.sources | {name: recompute.sources[feature] for name, (feature, _) in places.items()}
        self.views = {view: self._with_places(facts) for view, facts in recompute.views.items()}

    def __call__(self, inputs: pa.ChunkedArray, at: pa.ChunkedArray) -> pa.Table:
        table = self._recompute(inputs, at)
        arrays = {feature: Arrays(table[feature]) for feature, _ in self._places.values()}
        for name, (feature, place) in self._places.items():
            table = table.append_column(name, arrays[feature].at(place))
        return table

    @property
    def fingerprint(self) -> str:
        return self._recompute.fingerprint

    def earliest(self, view: str) -> int | None:
        return self._recompute.earliest(view)

    def _with_places(self, facts: ViewFacts) -> ViewFacts:
        if facts.windows is None:
            return facts
        own = {name: facts.windows[at[0]] for name, at in self._places.items() if at[0] in facts.windows}
        return replace(facts, windows={**facts.windows, **own})
