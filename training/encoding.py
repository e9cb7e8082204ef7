"""Texts to numbers by a mapping fitted on training rows only; the mapping goes into the model's graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_PRIOR_ROWS = 20.0
"""Weight of the base rate, in rows, in a category's own rate."""
_LEAST_ROWS = 10
"""A category with fewer training rows is treated like one never seen."""


@dataclass(frozen=True, slots=True)
class TextEncoding:
    """Ordinal codes of one text feature, rising with the category's rate of positives in training.

    Ordered so, one threshold of a tree can separate the risky categories from the others. A category never seen, or
    seen too rarely, gets the place of the base rate.
    """

    codes: dict[str, float]
    unseen: float

    def apply(self, texts: np.ndarray) -> np.ndarray:
        """float32 [N] from object [N] of str."""
        return np.fromiter((self.codes.get(text, self.unseen) for text in texts), np.float32, len(texts))


def fit_encoding(texts: np.ndarray, labels: np.ndarray) -> TextEncoding:
    """Fit one feature's encoding.

    Args:
        texts: object [N] of str; the empty string (null) is a category like any other.
        labels: [N], 0 or 1.
    """
    base = float(labels.mean())
    names, index, counts = np.unique(texts.astype(str), return_inverse=True, return_counts=True)
    positives = np.bincount(index, weights=labels, minlength=len(names))
    rates = (positives + base * _PRIOR_ROWS) / (counts + _PRIOR_ROWS)
    kept = sorted((rate, name) for rate, name, count in zip(rates, names, counts, strict=True) if count >= _LEAST_ROWS)
    codes = {str(name): float(place) for place, (_, name) in enumerate(kept)}
    return TextEncoding(codes, sum(rate < base for rate, _ in kept) - 0.5)
