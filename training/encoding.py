"""Texts to numbers by a mapping fitted on training rows only; the mapping goes into the model's graph.

A learner that splits on sets of categories takes numbers without an order (`fit_categories`), any other takes them in
the order of the outcome (`fit_encoding`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

_PRIOR_ROWS = 20.0
"""Weight of the base rate, in rows, in a category's own rate."""
_LEAST_ROWS = 10
"""A category with fewer training rows is treated like one never seen."""


@dataclass(frozen=True, slots=True)
class TextEncoding:
    """Codes of one text feature."""

    codes: dict[str, float]
    unseen: float

    def apply(self, texts: np.ndarray) -> np.ndarray:
        """float32 [N] from object [N] of str."""
        names, index = _distinct(texts)
        return np.array([self.codes.get(name, self.unseen) for name in names], np.float32)[index]


def fit_encoding(texts: np.ndarray, labels: np.ndarray) -> TextEncoding:
    """Ordinal codes, rising with the category's mean label in training.

    Ordered so, one threshold of a tree can separate the risky categories from the others. A category never seen, or
    seen too rarely, gets the place of the base rate.

    Args:
        texts: object [N] of str; the empty string (null) is a category like any other.
        labels: [N], 0 or 1.
    """
    base = float(labels.mean())
    names, index = _distinct(texts)
    counts, positives = np.bincount(index), np.bincount(index, weights=labels)
    rates = (positives + base * _PRIOR_ROWS) / (counts + _PRIOR_ROWS)
    kept = sorted((rate, name) for rate, name, count in zip(rates, names, counts, strict=True) if count >= _LEAST_ROWS)
    codes = {name: float(place) for place, (_, name) in enumerate(kept)}
    return TextEncoding(codes, sum(rate < base for rate, _ in kept) - 0.5)


def fit_categories(texts: np.ndarray) -> TextEncoding:
    """A number from 0 on for each text, in no order that means anything; -1 for one never seen, or seen too rarely.

    Args:
        texts: object [N] of str; the empty string (null) is a category like any other.
    """
    names, index = _distinct(texts)
    kept = [name for name, count in zip(names, np.bincount(index), strict=True) if count >= _LEAST_ROWS]
    return TextEncoding({name: float(code) for code, name in enumerate(kept)}, -1.0)


def _distinct(texts: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The different texts in order, and int64 [N]: which of them each is. Nothing as wide as all texts is made."""
    coded = pa.array(texts, pa.string()).dictionary_encode()
    found = coded.dictionary.to_pylist()
    names = sorted(found)
    place = {name: at for at, name in enumerate(names)}
    return names, np.array([place[name] for name in found], np.int64)[coded.indices.to_numpy()]
