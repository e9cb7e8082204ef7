"""The one door to NannyML: drift, estimated and realized performance of rows that are already cut into chunks.

Frames are pandas, one row a prediction, with an integer column `CHUNK`; NannyML sees those chunks and no others.
Importing this module takes seconds: import it inside the function that needs it.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
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
    """Reference chunks vary between these (mean and three standard deviations)."""
    upper_threshold: float | None
    alert: bool


class _GivenChunks(Chunker):
    """Splits by the number in the `CHUNK` column; NannyML's own chunkers cannot align to the epoch or skip chunks."""

    def __init__(self) -> None:
        super().__init__(CHUNK)

    def _split(self, data: pd.DataFrame) -> list[Chunk]:
        return [Chunk(key=str(number), data=rows) for number, rows in data.groupby(CHUNK, sort=True)]


class UnivariateDrift:
    """How far columns are from the whole reference, a method a column.

    The upper threshold is how far the reference's own chunks are from it. A column without a single value in the
    reference has no distance and is left out.

    Args:
        reference: the columns and `CHUNK`.
        methods: column to (method of NannyML's, whether its values are categories).
    """

    def __init__(self, reference: pd.DataFrame, methods: Mapping[str, tuple[str, bool]]) -> None:
        by_method: dict[tuple[str, bool], list[str]] = {}
        for name, method in methods.items():
            if reference[name].notna().any():
                by_method.setdefault(method, []).append(name)
        self._fitted = []
        for (kind, categorical), columns in by_method.items():
            kinds = (
                ("categorical_methods", "treat_as_categorical")
                if categorical
                else (
                    "continuous_methods",
                    "treat_as_numerical",
                )
            )
            calculator = nml.UnivariateDriftCalculator(
                column_names=columns,
                timestamp_column_name=CHUNK,
                chunker=_GivenChunks(),
                **{kinds[0]: [kind], kinds[1]: columns},
            )
            with _quiet():
                calculator.fit(reference[[*columns, CHUNK]])
            self._fitted.append((kind, columns, calculator))

    def of(self, analysis: pd.DataFrame) -> list[Figure]:
        """A figure a column and chunk."""
        figures = []
        for method, columns, calculator in self._fitted:
            with _quiet():
                result = calculator.calculate(analysis[[*columns, CHUNK]]).filter(period="analysis").to_df()
            found = dict(result.items())  # a look at a column of three levels costs more than to list them all
            keys = found["chunk", "chunk", "key"].astype(int)
            for name in columns:
                parts = (found[name, method, part] for part in ("value", "upper_threshold", "alert"))
                figures += [_distance(name, *each) for each in zip(keys, *parts, strict=True)]
        return figures


class Reconstruction:
    """How badly the reference's principal components tell rows apart from their means: correlations that changed.

    Both frames need `numbers`, `texts` and `CHUNK`; every column has values in the reference.
    """

    name = "reconstruction"

    def __init__(self, reference: pd.DataFrame, numbers: Sequence[str], texts: Sequence[str]) -> None:
        self._columns = ([*numbers], [*texts])
        self._calculator = nml.DataReconstructionDriftCalculator(
            column_names=[*numbers, *texts], timestamp_column_name=CHUNK, chunker=_GivenChunks()
        )
        with _quiet():
            self._calculator.fit(_mixed(reference, *self._columns))

    def of(self, analysis: pd.DataFrame) -> list[Figure]:
        """A figure a chunk."""
        with _quiet():
            found = self._calculator.calculate(_mixed(analysis, *self._columns)).filter(period="analysis").to_df()
        return _multivariate(self.name, found, "reconstruction_error")


ERROR_LEARNER = {"num_threads": 1, "deterministic": True, "force_row_wise": True, "verbosity": -1, "seed": 1}
"""What DLE's second model is fitted with, and the classifier below: the same bytes on every machine."""
_PINNED = {"deterministic": True, "force_row_wise": True, "verbosity": -1}
CLASSIFIER = {"n_estimators": 20, "num_leaves": 15, "random_state": 13, "n_jobs": 1, **_PINNED}
FOLDS = 2


class DomainClassifier:
    """How well a classifier tells a chunk's rows from the reference's: ROC AUC, 0.5 is not at all.

    A small forest and two folds: whether there is a difference, not how large it could be made. The threshold is how
    well it tells one reference chunk from the others. Frames as `Reconstruction` wants them.
    """

    name = "domain_classifier"

    def __init__(self, reference: pd.DataFrame, numbers: Sequence[str], texts: Sequence[str]) -> None:
        self._columns = ([*numbers], [*texts])
        self._calculator = nml.DomainClassifierCalculator(
            feature_column_names=_places([*numbers, *texts]),
            treat_as_categorical=_places([*numbers, *texts])[len(numbers) :],
            timestamp_column_name=CHUNK,
            chunker=_GivenChunks(),
            cv_folds_num=FOLDS,
            hyperparameters=CLASSIFIER,
            threshold=nml.thresholds.StandardDeviationThreshold(),
        )
        with _quiet():
            self._calculator.fit(_by_place(_mixed(reference, *self._columns)))

    def of(self, analysis: pd.DataFrame) -> list[Figure]:
        """A figure a chunk."""
        frame = _by_place(_mixed(analysis, *self._columns))
        with _quiet():
            found = self._calculator.calculate(frame).filter(period="analysis").to_df()
        return _multivariate(self.name, found, "domain_classifier_auroc")


class EstimatedPerformance:
    """Performance estimated without labels (CBPE), with its confidence band.

    `reference` needs `score`, `label` (0 or 1, both present, no nulls) and `CHUNK`.
    """

    def __init__(self, reference: pd.DataFrame, *, metric: str, score: str, label: str) -> None:
        self._metric, self._score = metric, score
        self._estimator = nml.CBPE(
            metrics=[metric],
            y_pred_proba=_SCORE,
            y_true=_LABEL,
            problem_type="classification_binary",
            timestamp_column_name=CHUNK,
            chunker=_GivenChunks(),
        )
        with _quiet():
            self._estimator.fit(_scores(reference, score, label))

    def of(self, analysis: pd.DataFrame) -> list[Figure]:
        """A figure a chunk; `analysis` needs the score and `CHUNK`."""
        with _quiet():
            found = self._estimator.estimate(_scores(analysis, self._score)).filter(period="analysis").to_df()
        return _performance(found, self._metric, banded=True)


class EstimatedErrors:
    """A regression's error estimated without labels (DLE), with its confidence band.

    A second model learns on `reference` how large the error is, given the features and the value. It needs the columns,
    `score`, `label` without nulls, and `CHUNK`.
    """

    def __init__(
        self,
        reference: pd.DataFrame,
        *,
        metric: str,
        score: str,
        label: str,
        numbers: Sequence[str],
        texts: Sequence[str],
    ) -> None:
        self._metric, self._score, self._columns, self._texts = metric, score, [*numbers, *texts], texts
        self._estimator = nml.DLE(
            feature_column_names=_places(self._columns),
            y_pred=_SCORE,
            y_true=_LABEL,
            timestamp_column_name=CHUNK,
            chunker=_GivenChunks(),
            metrics=[metric],
            hyperparameters=ERROR_LEARNER,
        )
        with _quiet():
            self._estimator.fit(_by_place(_values(reference, self._columns, texts, score, label)))

    def of(self, analysis: pd.DataFrame) -> list[Figure]:
        """A figure a chunk; `analysis` needs the columns, the score and `CHUNK`."""
        frame = _by_place(_values(analysis, self._columns, self._texts, self._score))
        with _quiet():
            found = self._estimator.estimate(frame).filter(period="analysis").to_df()
        return _performance(found, self._metric, banded=True)


class RealizedPerformance:
    """Performance on labels; None where all labels of a chunk agree.

    Both frames need `score`, `label` without nulls, and `CHUNK`.
    """

    def __init__(self, reference: pd.DataFrame, *, metric: str, score: str, label: str) -> None:
        self._metric, self._columns = metric, (score, label)
        self._calculator = nml.PerformanceCalculator(
            metrics=[metric],
            y_pred_proba=_SCORE,
            y_true=_LABEL,
            problem_type="classification_binary",
            timestamp_column_name=CHUNK,
            chunker=_GivenChunks(),
        )
        with _quiet():
            self._calculator.fit(_scores(reference, *self._columns))

    def of(self, analysis: pd.DataFrame) -> list[Figure]:
        """A figure a chunk."""
        with _quiet():
            found = self._calculator.calculate(_scores(analysis, *self._columns)).filter(period="analysis").to_df()
        return _performance(found, self._metric, banded=False)


def _distance(name: str, chunk: int, value: Any, limit: Any, alert: Any) -> Figure:
    found = _number(value)
    return Figure(name, chunk, found, None, None, None, _number(limit), found is not None and bool(alert))


def _multivariate(name: str, result: pd.DataFrame, measure: str) -> list[Figure]:
    keys, found = result[("chunk", "key")].astype(int), result[measure]
    limits = found["upper_threshold"]
    # Only more than usual is drift: a chunk that is easier to rebuild, or harder to tell apart, is a good copy.
    return [
        _distance(name, chunk, value, limit, _number(limit) is not None and value > limit)
        for chunk, value, limit in zip(keys, found["value"], limits, strict=True)
    ]


def _mixed(frame: pd.DataFrame, numbers: Sequence[str], texts: Sequence[str]) -> pd.DataFrame:
    """A copy with types that NannyML tells apart; its imputer knows NaN, not None."""
    columns: dict[str, Any] = {name: frame[name].astype("float64").to_numpy() for name in numbers}
    for name in texts:
        text = frame[name].astype("object").to_numpy(copy=True)
        text[frame[name].isna().to_numpy()] = math.nan
        columns[name] = text
    return pd.DataFrame(columns | {CHUNK: frame[CHUNK].to_numpy()})


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


def _places(columns: Sequence[str]) -> list[str]:
    return [f"f{place}" for place in range(len(columns))]


def _by_place(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns called by their place: LightGBM, which NannyML hands them to, refuses names such as `delays[0]`."""
    columns = [name for name in frame.columns if name not in (CHUNK, _SCORE, _LABEL)]
    return frame.rename(columns=dict(zip(columns, _places(columns), strict=True)))


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
