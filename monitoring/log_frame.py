"""Rows of the prediction log, and of a reference, as frames of the same form, cut into chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from contracts.bundle import FeatureSpec
from contracts.operations_policy import Monitoring
from monitoring.array_summaries import summarised
from monitoring.chunks import row_numbers

SCORE, LABEL, CHUNK, QUANTILES, DECISION = "__score__", "__label__", "__chunk__", "__quantiles__", "__decision__"
"""Columns beside the features; a feature cannot be called so."""
_PREFIX = "feature."


def of_version(log: pa.Table, version: int) -> pa.Table:
    """The rows that `version` itself answered: not those for which its bundle's fallback stood in."""
    own = pc.equal(pc.fill_null(log["degraded"], ""), "")
    return log.filter(pc.and_(pc.equal(log["version"], version), own))


def to_frame(log: pa.Table, features: Sequence[FeatureSpec], *, chunks: np.ndarray) -> tuple[pd.DataFrame, list[str]]:
    """Logged rows as a frame of features, `SCORE`, `DECISION`, `QUANTILES` (JSON) and `CHUNK`; and what the log lacks.

    Array features are summed up, see `monitoring.array_summaries`. Numbers are float64 holding float32 values, not
    finite ones null; texts are objects, empty ones null.

    Args:
        log: rows of the prediction log.
        features: a model's inputs.
        chunks: the chunk of each row.
    """
    columns: dict[str, Any] = {CHUNK: chunks, SCORE: log["score"].to_numpy(), DECISION: log["decision"].to_numpy()}
    if "quantiles" in log.column_names:
        columns[QUANTILES] = log["quantiles"].to_pandas()
    vanished = []
    for spec in features:
        if f"{_PREFIX}{spec.name}" in log.column_names:
            columns[spec.name] = _feature(log[f"{_PREFIX}{spec.name}"], spec.kind)
        else:
            vanished.append(spec.place[0] if spec.place else spec.name)
            columns[spec.name] = np.full(log.num_rows, np.nan) if spec.kind == "number" else [None] * log.num_rows
    return summarised(pd.DataFrame(columns), features), list(dict.fromkeys(vanished))


def reference_frame(reference: pa.Table, features: Sequence[FeatureSpec], *, rules: Monitoring) -> pd.DataFrame:
    """A bundle's labelled reference rows in order of time, as `to_frame` makes them, with `LABEL`; cut as `rules` say.

    Numbers pass through float32, as they do on their way into the model: otherwise 0.1 would never equal 0.1.
    """
    reference = reference.filter(reference["label"].is_valid())
    reference = reference.sort_by([(name, "ascending") for name in ("event_timestamp", "score", "label")])
    stamps = reference["event_timestamp"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    columns: dict[str, Any] = {
        CHUNK: row_numbers(stamps, rules),
        SCORE: reference["score"].cast(pa.float64()).to_numpy(),
        LABEL: reference["label"].cast(pa.float64()).to_numpy(),
    }
    for spec in features:
        columns[spec.name] = _feature(reference[spec.name], spec.kind)
    return summarised(pd.DataFrame(columns), features)


def in_canonical_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by chunk, then score: whatever order the log was written in, the same frame comes out."""
    return frame.sort_values([CHUNK, SCORE], kind="stable").reset_index(drop=True)


def _feature(column: pa.ChunkedArray, kind: str) -> Any:
    if kind == "text":
        text = column.cast(pa.string())
        return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text).to_pandas().astype(object)
    numbers = column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)
