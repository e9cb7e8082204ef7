"""What NannyML is asked of a frame of chunks, and what is computed beside it where NannyML has no answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from contracts.bundle import FeatureSpec
from monitoring.chunks import deal_reference, split_factor
from monitoring.log_frame import CHUNK, LABEL, QUANTILES, SCORE
from monitoring.report import Drift, Performance

_ESTIMABLE = ("roc_auc", "average_precision")
_ERRORS = ("mae", "rmse")
"""A regression's metrics that can be estimated."""
_TINY = 1e-15
"""Scores are kept this far from 0 and 1 in a logarithm, as scikit-learn does with float64."""


def estimated_metric(metric: str) -> str:
    """The metric estimated for a task's primary metric: itself, or the nearest of which an estimate exists."""
    if metric == "pinball":
        return "mae"
    return metric if metric in (*_ESTIMABLE, *_ERRORS) else "roc_auc"


def measure_drift(
    reference: pd.DataFrame, analysis: pd.DataFrame, features: Sequence[FeatureSpec], *, min_rows: int
) -> dict[int, tuple[tuple[Drift, ...], Drift]]:
    """Drift of every feature, and of the score, for each chunk of `analysis`.

    Each chunk is held against reference chunks of about its own size, so its figures depend on nothing but the chunk
    and the reference. Feature order is kept; a feature that has no value in the reference has drifted if the chunk has
    one. Empty when the reference is too small to be cut into chunks.
    """
    from monitoring import nannyml_door as door

    found: dict[int, tuple[tuple[Drift, ...], Drift]] = {}
    numbers = [*(spec.name for spec in features if spec.kind == "number"), SCORE]
    texts = [spec.name for spec in features if spec.kind == "text"]
    for factor, rows in _by_factor(reference, analysis, min_rows).items():
        dealt = _deal(reference, factor, min_rows)
        if dealt is None:
            return {}
        figures = {(f.name, f.chunk): f for f in door.univariate_drift(dealt, rows, numbers=numbers, texts=texts)}
        for chunk, part in _chunks_of(rows):
            drifts = {}
            for name in (*(spec.name for spec in features), SCORE):
                figure = figures.get((name, chunk))
                present = bool(part[name].notna().any())
                if figure is None:
                    drifts[name] = Drift(name, None, None, drifted=present)
                else:
                    # NannyML gives no distance for a chunk without values; a feature that stopped coming has drifted.
                    drifts[name] = Drift(name, figure.value, figure.upper_threshold, figure.alert or not present)
            found[chunk] = (tuple(drifts[spec.name] for spec in features), drifts[SCORE])
    return found


def estimate(
    reference: pd.DataFrame, analysis: pd.DataFrame, features: Sequence[FeatureSpec], *, metric: str, min_rows: int
) -> dict[int, Performance]:
    """Performance of each chunk estimated without labels. Empty when the reference cannot teach the estimator.

    Args:
        reference: labelled rows that are known to be usual.
        analysis: rows by chunk.
        features: what a regression's error is estimated from; a probability carries its own.
        metric: as `estimated_metric` names it.
        min_rows: of a chunk.
    """
    from monitoring import nannyml_door as door

    usual = _deal(reference, 1, min_rows)
    if usual is None or usual[LABEL].nunique() < 2 or analysis.empty:
        return {}
    if metric in _ERRORS:
        # A column that is empty on either side has no type in common with the other, and nothing to tell.
        told = [each for each in features if usual[each.name].notna().any() and analysis[each.name].notna().any()]
        numbers, texts = ([each.name for each in told if each.kind == kind] for kind in ("number", "text"))
        figures = door.estimate_errors(
            usual, analysis, metric=metric, score=SCORE, label=LABEL, numbers=numbers, texts=texts
        )
    else:
        figures = door.estimate_performance(usual, analysis, metric=metric, score=SCORE, label=LABEL)
    return {figure.chunk: Performance(metric, figure.value, figure.low, figure.high) for figure in figures}


def realize(reference: pd.DataFrame, analysis: pd.DataFrame, *, metric: str, min_rows: int) -> dict[int, Performance]:
    """Performance of each chunk on the rows whose label is known; no entry for a chunk without any."""
    labelled = analysis[analysis[LABEL].notna()]
    if labelled.empty:
        return {}
    if metric not in _ESTIMABLE:
        return {chunk: _mean_loss(rows, metric) for chunk, rows in _chunks_of(labelled)}
    from monitoring import nannyml_door as door

    usual = _deal(reference, 1, min_rows)
    # Without a usable reference the chunks stand in for it: it sets NannyML's thresholds only, which nobody reads here.
    basis = labelled if usual is None or usual[LABEL].nunique() < 2 else usual
    figures = door.realized_performance(basis, labelled, metric=metric, score=SCORE, label=LABEL)
    return {figure.chunk: Performance(metric, figure.value, figure.low, figure.high) for figure in figures}


def _mean_loss(rows: pd.DataFrame, metric: str) -> Performance:
    """A mean over rows, so three standard errors are its band; RMSE is the root of one, band and all."""
    score, label = rows[SCORE].to_numpy(), rows[LABEL].to_numpy()
    if metric == "mae":
        losses = np.abs(score - label)
    elif metric == "pinball":
        losses = _pinball(rows, label)
    elif metric in ("brier", "rmse"):
        losses = (score - label) ** 2
    else:
        sure = np.clip(score, _TINY, 1 - _TINY)
        losses = -(label * np.log(sure) + (1 - label) * np.log1p(-sure))
    value, error = float(losses.mean()), float(losses.std() / np.sqrt(len(losses)))
    figures = np.array([value, max(0.0, value - 3 * error), value + 3 * error])
    value, low, high = (np.sqrt(figures) if metric == "rmse" else figures).tolist()
    return Performance(metric, value, low, high)


def _pinball(rows: pd.DataFrame, label: np.ndarray) -> np.ndarray:
    """Loss of the logged quantiles, their mean in each row."""
    told = [json.loads(each) for each in rows[QUANTILES]]
    levels = np.array([[float(level) for level in each] for each in told])
    below = label[:, None] - np.array([list(each.values()) for each in told], np.float64)
    found: np.ndarray = np.maximum(levels * below, (levels - 1) * below).mean(axis=1)
    return found


def _by_factor(reference: pd.DataFrame, analysis: pd.DataFrame, min_rows: int) -> dict[int, pd.DataFrame]:
    """Analysis rows grouped by how finely the reference must be dealt to be comparable with their chunk."""
    usual = reference[CHUNK].to_numpy()
    factors = {chunk: split_factor(usual, len(rows), min_rows=min_rows) for chunk, rows in _chunks_of(analysis)}
    wanted = analysis[CHUNK].map(factors)
    return {int(factor): analysis[wanted == factor] for factor in sorted(set(factors.values()))}


def _chunks_of(frame: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame]]:
    for chunk in np.unique(frame[CHUNK]).tolist():
        yield chunk, frame[frame[CHUNK] == chunk]


def _deal(reference: pd.DataFrame, factor: int, min_rows: int) -> pd.DataFrame | None:
    dealt = deal_reference(reference[CHUNK].to_numpy(), factor, min_rows=min_rows)
    return None if dealt is None else reference.assign(**{CHUNK: dealt})[dealt >= 0].reset_index(drop=True)
