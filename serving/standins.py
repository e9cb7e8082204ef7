"""What answers for the views of an online store that does not: as the task declares it, and never unsaid."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from contracts.errors import SkewlessError
from contracts.serving_policy import Degradation
from serving.online import Key, Row, ViewSpec

UNREACHABLE = "fallback: online store unavailable"
"""Why a row without a vector is answered with the fallback."""
_SAID = {"last_good": "last good", "default": "default"}
_KEPT = 50_000
"""Rows remembered of a view, at least; at most twice as many."""


class UnknownStandIn(SkewlessError, LookupError):
    """A task declares a stand-in for what its features do not have."""


@dataclass(frozen=True, slots=True)
class StoodIn:
    """Where something stood in for the store, in N rows."""

    reasons: Sequence[Sequence[str]] = ()
    """Per row, which views are not what they should be; empty when none is."""
    refused: frozenset[int] = frozenset()
    """Rows that have no vector."""
    marks: Mapping[str, list[str]] = field(default_factory=dict)
    """View to what stood in, row by row: `last_good`, `default`, `refused`, or nothing."""

    def told(self, statuses: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Statuses of views, in which a row that was only made up says so."""
        for view, marks in self.marks.items():
            pairs = zip(statuses[view], marks, strict=True)
            statuses[view] = [mark if mark in ("default", "refused") else status for status, mark in pairs]
        return statuses


NOTHING = StoodIn()


class StandIns:
    """One plan's stand-ins. May be used from any thread.

    Args:
        policy: what the task declares.
        views: of the plan.
        now: a clock in seconds.
    """

    def __init__(
        self, policy: Degradation, views: Sequence[ViewSpec], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy
        self._now = now
        self._good_for = policy.last_good_for.total_seconds()
        self._memories = {view.name: _LastRows() for view in views if policy.of(view.name) == "last_good"}
        # A default row does not grow old: as far as the plan is told, the view has no TTL.
        self._defaults = {
            view.name: replace(view, empty=self._default(view), ttl=0)
            for view in views
            if policy.of(view.name) == "default"
        }

    def remember(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]], found: Sequence[Sequence[Row | None]]) -> None:
        """Keep what the store answered, of the views whose last row may stand in."""
        if not self._memories:
            return
        now = self._now()
        for (spec, keys), rows in zip(asked, found, strict=True):
            memory = self._memories.get(spec.name)
            if memory is not None:
                memory.put(keys, rows, now)

    def answer(
        self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]], places: Sequence[Sequence[int]], count: int
    ) -> tuple[list[ViewSpec], list[list[Row | None]], StoodIn]:
        """What the store might have said.

        Args:
            asked: views and their distinct keys.
            places: per view, each row's place among the keys; -1 where it has none.
            count: rows.

        Returns:
            The views to judge the rows by, the rows by key, and what is made up about them.
        """
        now = self._now()
        views, found, marks = [], [], {}
        for (spec, keys), place in zip(asked, places, strict=True):
            views.append(self._defaults.get(spec.name, spec))
            memory = self._memories.get(spec.name)
            if memory is not None:
                held = [memory.get(key, now - self._good_for) for key in keys]
                by_key = ["refused" if each is None else "last_good" for each in held]
                found.append([None if each is None else each[0] for each in held])
            else:
                by_key = ["default" if spec.name in self._defaults else "refused"] * len(keys)
                found.append([None] * len(keys))
            marks[spec.name] = [by_key[at] if at >= 0 else "" for at in place]
        refused = frozenset(i for i in range(count) if any(each[i] == "refused" for each in marks.values()))
        reasons = [(UNREACHABLE,) if i in refused else _reasons(marks, i) for i in range(count)]
        return views, found, StoodIn(reasons, refused, marks)

    def _default(self, view: ViewSpec) -> tuple[Any, ...]:
        declared = self._policy.defaults.get(view.name, {})
        never_seen = view.empty or (None,) * len(view.features)
        return tuple([declared.get(name, value) for name, value in zip(view.features, never_seen, strict=True)])


def check(policy: Degradation, views: Sequence[ViewSpec], task: str) -> None:
    """Raise UnknownStandIn where a task declares something for a view, or a feature of one, that it does not read."""
    known = {view.name: view.features for view in views}
    for view in (*policy.views, *policy.defaults):
        _need(view, known, f"Task {task!r}: degradation names the view {view!r}, which its features do not read.")
    for view, values in policy.defaults.items():
        for name in values:
            fact = f"Task {task!r}: degradation.defaults names {name!r}, which is not read of view {view!r}."
            _need(name, known[view], fact)


def _need(name: str, known: Iterable[str], fact: str) -> None:
    names = sorted(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise UnknownStandIn(fact, hint=f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}.")


def _reasons(marks: Mapping[str, list[str]], i: int) -> tuple[str, ...]:
    # In the log a comma separates reasons.
    return tuple([f"{view.replace(',', ';')}: {_SAID[row[i]]}" for view, row in marks.items() if row[i]])


class _LastRows:
    """The row last read of each key, and when: the newer half, and the older half that gives way to it."""

    def __init__(self) -> None:
        self._newer: dict[Key, tuple[Row | None, float]] = {}
        self._older: dict[Key, tuple[Row | None, float]] = {}

    def put(self, keys: Sequence[Key], rows: Sequence[Row | None], now: float) -> None:
        newer = self._newer
        if len(newer) >= _KEPT:
            self._older, self._newer = newer, {}
            newer = self._newer
        for key, row in zip(keys, rows, strict=True):
            newer[key] = row, now

    def get(self, key: Key, since: float) -> tuple[Row | None, float] | None:
        held = self._newer.get(key) or self._older.get(key)
        return held if held is not None and held[1] >= since else None
