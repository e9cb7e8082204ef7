"""Synthetic drift, put into copies of logged rows: what changed is known, so detectors can be held against it.

Every kind takes rows as a model's inputs have them and a size, and gives changed copies. Rows keep their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from contracts.bundle import FeatureSpec
from monitoring.log_frame import LABEL

UNHEARD_OF = "__never_seen__"
"""The new category."""
_MOST = 3
"""Features that a kind changes at once."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a kind may change in these rows."""

    numbers: tuple[tuple[str, ...], ...]
    """Columns of number features, those with most different values first; an array's places belong together."""
    texts: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    """Number features that go together most, each in one pair."""
    usual: pd.DataFrame
    """Rows that are known to be usual: what a standard deviation is."""
    binary: bool


@dataclass(frozen=True, slots=True)
class Injection:
    """One kind of drift."""

    kind: str
    sizes: tuple[float, ...]
    """Rising; the largest must be seen."""
    unit: str
    apply: Callable[[pd.DataFrame, Target, float, np.random.Generator], pd.DataFrame | None]
    """None: these rows have nothing that this kind could change."""
    needs_labels: bool = False
    """Whether inputs stay as they are, so that only outcomes can show it."""
    draws_rows: bool = False
    """Whether rows stay as they are, and only how many there are of each sort changes."""


def find_target(usual: pd.DataFrame, specs: Sequence[FeatureSpec], *, binary: bool) -> Target:
    """Choose what is changed: features that vary, and the pair of numbers with the strongest rank correlation."""
    groups: dict[str, list[str]] = {}
    for spec in specs:
        if spec.kind == "number" and spec.type != "bool":
            groups.setdefault(spec.place[0] if spec.place else spec.name, []).append(spec.name)
    distinct = {name: int(usual[columns[0]].nunique()) for name, columns in groups.items()}
    order = sorted((name for name in groups if distinct[name] > 1), key=lambda name: (-distinct[name], name))
    texts = [spec.name for spec in specs if spec.kind == "text" and usual[spec.name].nunique() > 1]
    single = [name for name in order if len(groups[name]) == 1 and usual[name].notna().mean() > 0.5][:20]
    return Target(
        numbers=tuple(tuple(groups[name]) for name in order),
        texts=tuple(texts),
        pairs=_closest(usual, single),
        usual=usual,
        binary=binary,
    )


def _closest(usual: pd.DataFrame, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    if len(names) < 2:
        return ()
    strength = usual[list(names)].rank().corr().abs().to_numpy(copy=True)
    strength[~(strength < 0.999)] = -1  # itself, a twin, or undefined
    pairs: list[tuple[str, str]] = []
    while len(pairs) < _MOST and strength.max() > 0:
        first, second = divmod(int(strength.argmax()), len(names))
        pairs.append((names[first], names[second]))
        strength[[first, second], :] = strength[:, [first, second]] = -1
    return tuple(pairs)


def _shifted(rows: pd.DataFrame, target: Target, size: float, _: np.random.Generator) -> pd.DataFrame | None:
    chosen = [name for group in target.numbers[:_MOST] for name in group]
    return rows.assign(**{name: rows[name] + size * target.usual[name].std() for name in chosen}) if chosen else None


def _swapped_units(rows: pd.DataFrame, target: Target, size: float, _: np.random.Generator) -> pd.DataFrame | None:
    if not target.numbers:
        return None
    return rows.assign(**{name: rows[name] * size for name in target.numbers[0]})


def _stuck(rows: pd.DataFrame, target: Target, size: float, random: np.random.Generator) -> pd.DataFrame | None:
    if not target.numbers:
        return None
    stuck = random.random(len(rows)) < size
    changed = {}
    for name in target.numbers[0]:
        known = rows[name].dropna()
        last = float(known.iloc[0]) if len(known) else 0.0
        changed[name] = rows[name].where(~stuck, last)
    return rows.assign(**changed)


def _new_category(rows: pd.DataFrame, target: Target, size: float, random: np.random.Generator) -> pd.DataFrame | None:
    if not target.texts:
        return None
    new = random.random(len(rows)) < size
    return rows.assign(**{target.texts[0]: rows[target.texts[0]].where(~new, UNHEARD_OF)})


def _rotated(rows: pd.DataFrame, target: Target, size: float, _: np.random.Generator) -> pd.DataFrame | None:
    """Pairs of numbers turned about their mean in units of their deviation: they vary as before, but not together."""
    if not target.pairs:
        return None
    angle, changed = np.radians(size), {}
    for pair in target.pairs:
        middle, spread = ([float(each) for each in found] for found in _moments(target.usual, pair))
        x, y = ((rows[name] - middle[i]) / spread[i] for i, name in enumerate(pair))
        changed[pair[0]] = middle[0] + spread[0] * (x * np.cos(angle) - y * np.sin(angle))
        changed[pair[1]] = middle[1] + spread[1] * (x * np.sin(angle) + y * np.cos(angle))
    return rows.assign(**changed)


def _moments(usual: pd.DataFrame, pair: tuple[str, str]) -> tuple[pd.Series, pd.Series]:
    return usual[list(pair)].mean(), usual[list(pair)].std()


def _prior(rows: pd.DataFrame, target: Target, size: float, random: np.random.Generator) -> pd.DataFrame | None:
    """Outcomes of the rarer sort, drawn `size` times as often, with the inputs that belong to them."""
    label = rows[LABEL]
    rare = label > (0.5 if target.binary else target.usual[LABEL].median())
    if target.binary and rare.mean() > 0.5:
        rare = ~rare
    if not 0 < rare.mean() < 1:
        return None
    weight = np.where(rare, size, 1.0)
    drawn = random.choice(len(rows), len(rows), p=weight / weight.sum())
    return rows.iloc[np.sort(drawn)].reset_index(drop=True)


def _concept(rows: pd.DataFrame, target: Target, size: float, random: np.random.Generator) -> pd.DataFrame | None:
    """Other outcomes of the same inputs, in a share of the rows: the opposite one, or somebody else's."""
    other = random.random(len(rows)) < size
    label = rows[LABEL].to_numpy()
    strange = 1 - label if target.binary else target.usual[LABEL].max() + target.usual[LABEL].std() - label
    return rows.assign(**{LABEL: np.where(other, strange, label)})


KINDS = (
    Injection("shifted mean", (0.5, 1.0, 2.0), "standard deviations", _shifted),
    Injection("new category", (0.1, 0.3, 0.6), "share of rows", _new_category),
    Injection("swapped units", (1.609, 3.281, 60.0), "factor", _swapped_units),
    Injection("stuck sensor", (0.3, 0.6, 1.0), "share of rows", _stuck),
    Injection("covariate rotation", (30.0, 60.0, 90.0), "degrees", _rotated),
    Injection("prior shift", (2.0, 5.0, 20.0), "times as often", _prior, draws_rows=True),
    Injection("concept shift", (0.1, 0.25, 0.5), "share of outcomes", _concept, needs_labels=True),
)
