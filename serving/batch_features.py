"""Serving's door to historical retrieval: what a batch of cases is predicted from, asked for as training asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureStore

from asof.ages import value_times
from contracts.bundle import FeatureSpec
from contracts.errors import SkewlessError
from contracts.places import Arrays
from contracts.task import Task

_INSTANT = "event_timestamp"
_TIME = pa.timestamp("us", tz="UTC")


class RowsLost(SkewlessError, RuntimeError):
    """An offline store that does not keep the rows of its entity table."""


@dataclass(frozen=True, slots=True)
class CaseFeatures:
    """A feature service's values for N cases, all of one instant."""

    values: pa.Table
    view_times: list[dict[str, int | None]]
    """Per case: view to the event time of what it answers with, microseconds."""

    def matrices(self, features: Sequence[FeatureSpec]) -> tuple[np.ndarray, np.ndarray]:
        """A model's two inputs: float32 [N, n], null as NaN, and object [N, t] of str, null as the empty string."""
        columns: dict[str, list[Any]] = {"number": [], "text": []}
        for spec in features:
            if spec.kind == "text":
                columns["text"].append(_texts(self.values[spec.name]))
            else:
                columns["number"].append(_numbers(self._number(spec)))
        count = self.values.num_rows
        return _matrix(columns["number"], count, np.float32), _matrix(columns["text"], count, object)

    def _number(self, spec: FeatureSpec) -> pa.ChunkedArray:
        """A feature's values, or an array feature's at one place."""
        if spec.place is None:
            return self.values[spec.name]
        name, place = spec.place
        return pa.chunked_array([Arrays(self.values[name]).at(place)])


def case_features(store: FeatureStore, service: str, task: Task, cases: pa.Table, at: datetime) -> CaseFeatures:
    """Every feature of a service for these spine rows, from what was knowable at `at`.

    Not at the instants at which the rows will be asked about: those have not come, and whatever is read of them in a
    replay of the past would be the future.

    Raises:
        RowsLost: what came back are not the rows asked for.
    """
    wanted = dict.fromkeys([*task.spine.keys, *task.spine.request_fields])
    asked = pa.table(
        {name: cases[name] for name in wanted if name != _INSTANT} | {_INSTANT: pa.array([at] * cases.num_rows, _TIME)}
    )
    chosen = store.get_feature_service(service)
    answered = store.get_historical_features(entity_df=asked, features=chosen).to_arrow()
    if answered.num_rows != asked.num_rows:
        raise RowsLost(
            f"Asked for features of {asked.num_rows} cases, got {answered.num_rows}.",
            hint=f"the offline store of {task.feature_repo} must keep the rows of its entity table.",
        )
    times = value_times(store, chosen, asked)
    rows = zip(*times.values(), strict=True) if times else ([] for _ in range(cases.num_rows))
    return CaseFeatures(answered, [dict(zip(times, row, strict=True)) for row in rows])


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    with np.errstate(over="ignore"):  # beyond float32 is infinite, as it was in training
        return column.cast(pa.float64(), safe=False).to_numpy().astype(np.float32)


def _texts(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False)


def _matrix(columns: Sequence[np.ndarray], count: int, kind: Any) -> np.ndarray:
    matrix = np.empty((count, len(columns)), kind)
    for i, column in enumerate(columns):
        matrix[:, i] = column
    return matrix
