"""The one door to NannyML: drift, estimated and realized performance of rows that are already cut into chunks.

Frames are pandas, one row a prediction, with an integer column `CHUNK`; NannyML sees those chunks and no others.
Importing this module takes seconds: import it inside the function that needs it.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd

_before = dict(os.environ)
os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nannyml as nml  # reads a stray .env into the environment and builds a telemetry client
    from nannyml.chunk import Chunk, Chunker
os.environ.clear()
os.environ.update(_before, NML_DISABLE_USAGE_LOGGING="1")  # NannyML asks again on every call

CHUNK = "__chunk__"
"""Column that numbers the chunk of each row."""
ESTIMABLE = ("roc_auc", "average_precision")
"""Metrics that NannyML both estimates without labels and computes with them."""
ESTIMABLE_ERRORS = ("mae", "rmse")
"""Metrics of a regression that it estimates without labels."""
_SCORE, _LABEL = "__score__", "__label__"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of one chunk. A value NannyML could not compute is None, and then nothing alerts."""

    name: str
    """The column or metric."""
    chunk: int
    value: float | None
    low: float | None
    """Lower end of the confidence band (three sampling errors); None for drift."""
    high: float | None
    lower_threshold: float | None
    """Reference chunks vary between the thresholds (mean and three standard deviations)."""
    upper_threshold: float | None
    alert: bool


class _GivenChunks(Chunker):
    """Splits by the number in the `CHUNK` column; NannyML's own chunkers cannot align to the epoch or skip chunks."""

    def __init__(self) -> None:
        super().__init__(CHUNK)

    def _split(self, data: pd.DataFrame) -> list[Chunk]:
        return [Chunk(key=str(number), data=rows) for number, rows in data.groupby(CHUNK, sort=True)]


def univariate_drift(
    reference: pd.DataFrame, analysis: pd.DataFrame, *, numbers: Sequence[str], texts: Sequence[str]
) -> list[Figure]:
    """Jensen-Shannon distance of every column and analysis chunk from the whole reference.

    Both frames hold the columns and `CHUNK`. A column without a single value in the reference has no distance and is
    left out. The upper threshold is how far the reference's own chunks are from it.
    """
    numbers = [name for name in numbers if reference[name].notna().any()]
    texts = [name for name in texts if reference[name].notna().any()]
    columns = [*numbers, *texts]
    if not columns:
        return []
    calculator = nml.UnivariateDriftCalculator(
        column_names=columns,
        treat_as_numerical=numbers,
        treat_as_categorical=texts,
        timestamp_column_name=CHUNK,
        continuous_methods=["jensen_shannon"],
        categorical_methods=["jensen_shannon"],
        chunker=_GivenChunks(),
    )
    with _quiet():
        calculator.fit(reference[[*columns, CHUNK]])
        result = calculator.calculate(analysis[[*columns, CHUNK]]).filter(period="analysis").to_df()
    figures = []
    for chunk, (_, row) in zip(result[("chunk", "chunk", "key")].astype(int), result.iterrows(), strict=True):
        for name in columns:
            value = _number(row[(name, "jensen_shannon", "value")])
            figures.append(
                Figure(
                    name=name,
                    chunk=chunk,
                    value=value,
                    low=None,
                    high=None,
                    lower_threshold=None,
                    upper_threshold=_number(row[(name, "jensen_shannon", "upper_threshold")]),
                    alert=value is not None and bool(row[(name, "jensen_shannon", "alert")]),
                )
            )
    return figures


def estimate_performance(
    reference: pd.DataFrame, analysis: pd.DataFrame, *, metric: str, score: str, label: str
) -> list[Figure]:
    """Performance of each analysis chunk estimated without labels (CBPE), with its confidence band.

    `reference` needs `score`, `label` (0 or 1, both present, no nulls) and `CHUNK`; `analysis` needs `score` and
    `CHUNK`. `metric` is one of `ESTIMABLE`.
    """
    estimator = nml.CBPE(
        metrics=[metric],
        y_pred_proba=_SCORE,
        y_true=_LABEL,
        problem_type="classification_binary",
        timestamp_column_name=CHUNK,
        chunker=_GivenChunks(),
    )
    with _quiet():
        estimator.fit(_scores(reference, score, label))
        result = estimator.estimate(_scores(analysis, score)).filter(period="analysis").to_df()
    return _performance(result, metric, banded=True)


def estimate_errors(
    reference: pd.DataFrame,
    analysis: pd.DataFrame,
    *,
    metric: str,
    score: str,
    label: str,
    numbers: Sequence[str],
    texts: Sequence[str],
) -> list[Figure]:
    """Error of each analysis chunk's values estimated without labels (DLE), with its confidence band.

    A second model learns on `reference` how large the error is, given the features and the value. Both frames need the
    columns, `score` and `CHUNK`; `reference` also `label` without nulls. `metric` is one of `ESTIMABLE_ERRORS`.
    """
    columns = [*numbers, *texts]
    estimator = nml.DLE(
        feature_column_names=columns,
        y_pred=_SCORE,
        y_true=_LABEL,
        timestamp_column_name=CHUNK,
        chunker=_GivenChunks(),
        metrics=[metric],
        hyperparameters={"num_threads": 1, "deterministic": True, "force_row_wise": True, "verbosity": -1, "seed": 1},
    )
    with _quiet():
        estimator.fit(_values(reference, columns, texts, score, label))
        result = estimator.estimate(_values(analysis, columns, texts, score)).filter(period="analysis").to_df()
    return _performance(result, metric, banded=True)


def realized_performance(
    reference: pd.DataFrame, analysis: pd.DataFrame, *, metric: str, score: str, label: str
) -> list[Figure]:
    """Performance of each analysis chunk on its labels; None where all labels of a chunk agree.

    Both frames need `score`, `label` without nulls, and `CHUNK`.
    """
    calculator = nml.PerformanceCalculator(
        metrics=[metric],
        y_pred_proba=_SCORE,
        y_true=_LABEL,
        problem_type="classification_binary",
        timestamp_column_name=CHUNK,
        chunker=_GivenChunks(),
    )
    with _quiet():
        calculator.fit(_scores(reference, score, label))
        result = calculator.calculate(_scores(analysis, score, label)).filter(period="analysis").to_df()
    return _performance(result, metric, banded=False)


def _performance(result: pd.DataFrame, metric: str, *, banded: bool) -> list[Figure]:
    figures = []
    for chunk, (_, row) in zip(result[("chunk", "key")].astype(int), result.iterrows(), strict=True):
        value, error = _number(row[(metric, "value")]), _number(row[(metric, "sampling_error")])
        low: float | None = None
        high: float | None = None
        if banded:
            low = _number(row[(metric, "lower_confidence_boundary")])
            high = _number(row[(metric, "upper_confidence_boundary")])
        elif value is not None and error is not None:
            low, high = max(0.0, value - 3 * error), min(1.0, value + 3 * error)
        figures.append(
            Figure(
                name=metric,
                chunk=chunk,
                value=value,
                low=low,
                high=high,
                lower_threshold=_number(row[(metric, "lower_threshold")]),
                upper_threshold=_number(row[(metric, "upper_threshold")]),
                alert=value is not None and bool(row[(metric, "alert")]),
            )
        )
    return figures


def _scores(frame: pd.DataFrame, score: str, label: str | None = None) -> pd.DataFrame:
    columns = {_SCORE: frame[score].astype("float64"), CHUNK: frame[CHUNK]}
    if label is not None:
        columns[_LABEL] = frame[label].astype("int64")
    return pd.DataFrame(columns).reset_index(drop=True)


def _values(
    frame: pd.DataFrame, columns: Sequence[str], texts: Sequence[str], score: str, label: str | None = None
) -> pd.DataFrame:
    found = frame[[*columns, CHUNK]].reset_index(drop=True)
    found[list(texts)] = found[list(texts)].astype("object")
    found[_SCORE] = frame[score].astype("float64").to_numpy()
    if label is not None:
        found[_LABEL] = frame[label].astype("float64").to_numpy()
    return found


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """What NannyML warns of (few chunks, one-class chunks) is a field of our report, not a line on the terminal."""
    logger = logging.getLogger("nannyml")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
