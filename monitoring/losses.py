"""What the labels say of answers where NannyML has no figure: mean losses, and what being wrong came to."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from contracts.task import Cost
from monitoring.log_frame import DECISION, LABEL, QUANTILES, SCORE
from monitoring.report import Performance

_TINY = 1e-15
"""Scores are kept this far from 0 and 1 in a logarithm, as scikit-learn does with float64."""


def mean_loss(rows: pd.DataFrame, metric: str) -> Performance:
    """A metric that is a mean over rows, so three standard errors are its band; RMSE is the root of one, band and all.

    Args:
        rows: labelled rows, at least one.
        metric: mae, rmse, pinball, brier or log_loss.
    """
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
    value, low, high = _banded(losses)
    if metric == "rmse":
        value, low, high = np.sqrt([value, low, high]).tolist()
    return Performance(metric, value, low, high)


def mean_cost(rows: pd.DataFrame, cost: Cost, kind: str) -> Performance:
    """What a case cost the business on average, by the task's prices and the decisions that were answered.

    Args:
        rows: labelled rows with their decision, at least one.
        cost: the prices.
        kind: the task's.
    """
    label = rows[LABEL].to_numpy()
    if kind == "binary":
        acted = rows[DECISION].to_numpy() == 1
        losses = np.where(acted, (1 - label) * cost.false_alarm, label * cost.missed)
    else:
        over = rows[SCORE].to_numpy() - label
        losses = np.where(over > 0, over * cost.too_high, -over * cost.too_low)
    return Performance(f"cost in {cost.currency}", *_banded(losses))


def _banded(losses: np.ndarray) -> tuple[float, float, float]:
    value, error = float(losses.mean()), float(losses.std() / np.sqrt(len(losses)))
    return value, max(0.0, value - 3 * error), value + 3 * error


def _pinball(rows: pd.DataFrame, label: np.ndarray) -> np.ndarray:
    """Loss of the logged quantiles, their mean in each row."""
    told = [json.loads(each) for each in rows[QUANTILES]]
    levels = np.array([[float(level) for level in each] for each in told])
    below = label[:, None] - np.array([list(each.values()) for each in told], np.float64)
    found: np.ndarray = np.maximum(levels * below, (levels - 1) * below).mean(axis=1)
    return found
