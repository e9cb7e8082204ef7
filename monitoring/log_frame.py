"""The prediction log as one frame: rows of one version, cut into chunks, joined with the labels known so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from contracts.bundle import FeatureSpec
from monitoring.array_summaries import summarised
from monitoring.chunks import chunk_numbers

SCORE, LABEL, CHUNK, QUANTILES = "__score__", "__label__", "__chunk__", "__quantiles__"
"""Columns beside the features; a feature cannot be called so."""
_PREFIX = "feature."


@dataclass(frozen=True, slots=True)
class LabelAccount:
    """What became of the labels. Refused ones are counted here and used nowhere."""

    known: int
    """Labels known at the time of asking, one a case."""
    joined: int
    """Predictions that got a label."""
    unknown_case: int
    """Labels of cases that were never asked about."""
    duplicate: int
    """Repetitions of a label that say the same."""
    contradictory: int
    """Cases whose labels contradict each other; none of them is used."""
    before_prediction: int
    """Predictions asked for after their outcome was known; not used, such a score proves nothing."""
    without_case: int
    """Predictions logged without a case id: no label can reach them."""

    def to_dict(self) -> dict[str, int]:
        """Plain JSON."""
        return asdict(self)


def of_version(log: pa.Table, version: int) -> pa.Table:
    """The rows that `version` itself answered: not those for which its bundle's fallback stood in."""
    own = pc.equal(pc.fill_null(log["degraded"], ""), "")
    return log.filter(pc.and_(pc.equal(log["version"], version), own))


def to_frame(log: pa.Table, features: Sequence[FeatureSpec], *, width: timedelta) -> tuple[pd.DataFrame, list[str]]:
    """Logged rows as a frame of features, `SCORE`, `QUANTILES` (JSON) and `CHUNK`, and which features the log lacks.

    Array features are summed up, see `monitoring.array_summaries`. Numbers are float64 holding float32 values, not
    finite ones null; texts are objects, empty ones null. Row order is made canonical, so that no figure depends on how
    the log was written.
    """
    stamps = log["event_timestamp"].cast(pa.int64()).to_numpy()
    columns: dict[str, Any] = {CHUNK: chunk_numbers(stamps, width), SCORE: log["score"].to_numpy()}
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


def reference_frame(reference: pa.Table, features: Sequence[FeatureSpec], *, width: timedelta) -> pd.DataFrame:
    """A bundle's labelled reference rows in order of time, as `to_frame` makes them, with `LABEL`.

    Numbers pass through float32, as they do on their way into the model: otherwise 0.1 would never equal 0.1.
    """
    reference = reference.filter(reference["label"].is_valid())
    reference = reference.sort_by([(name, "ascending") for name in ("event_timestamp", "score", "label")])
    stamps = reference["event_timestamp"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    columns: dict[str, Any] = {
        CHUNK: chunk_numbers(stamps, width),
        SCORE: reference["score"].cast(pa.float64()).to_numpy(),
        LABEL: reference["label"].cast(pa.float64()).to_numpy(),
    }
    for spec in features:
        columns[spec.name] = _feature(reference[spec.name], spec.kind)
    return summarised(pd.DataFrame(columns), features)


def join_labels(log: pa.Table, labels: pa.Table, *, as_of: datetime) -> tuple[np.ndarray, LabelAccount]:
    """The label of each logged row, NaN where it is unknown at `as_of`, and the account of all labels.

    Args:
        log: rows with `case_id` and `event_timestamp`.
        labels: `id`, `label`, `label_known_at`, as `contracts.spine.labels_known` returns them; repetitions allowed.
        as_of: labels known later are not looked at.
    """
    known = labels.filter(pc.less_equal(labels["label_known_at"], pa.scalar(as_of, pa.timestamp("us", tz="UTC"))))
    given = pd.DataFrame(
        {
            "id": known["id"].to_pandas(),
            "label": known["label"].to_numpy(),
            "known_at": known["label_known_at"].cast(pa.int64()).to_numpy(),
        }
    )
    distinct = given.groupby("id")["label"].nunique()
    disputed = set(distinct.index[distinct > 1])
    agreed = given[~given["id"].isin(disputed)]
    first = agreed.sort_values("known_at", kind="stable").drop_duplicates("id")

    asked = pd.DataFrame({"id": log["case_id"].to_pandas(), "at": log["event_timestamp"].cast(pa.int64()).to_numpy()})
    joined = asked.merge(first, on="id", how="left", validate="many_to_one")
    answered_late = (joined["known_at"] <= joined["at"]).to_numpy()
    label = joined["label"].to_numpy(dtype=np.float64).copy()
    label[answered_late] = np.nan
    account = LabelAccount(
        known=len(distinct),
        joined=int(np.isfinite(label).sum()),
        unknown_case=int((~distinct.index.isin(asked["id"].dropna())).sum()),
        duplicate=len(agreed) - len(first),
        contradictory=len(disputed),
        before_prediction=int(answered_late.sum()),
        without_case=int(asked["id"].isna().sum()),
    )
    return label, account


def in_canonical_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by chunk, then score: whatever order the log was written in, the same frame comes out."""
    return frame.sort_values([CHUNK, SCORE], kind="stable").reset_index(drop=True)


def _feature(column: pa.ChunkedArray, kind: str) -> Any:
    if kind == "text":
        text = column.cast(pa.string())
        return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text).to_pandas().astype(object)
    numbers = column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)
