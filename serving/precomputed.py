"""Answers that were computed before they were asked for: read, held against the question, and told where they fail.

A row without a prediction that belongs to it is answered with its bundle's fallback and says why; see `REASONS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import orjson

from asof.clockwork import from_micros, to_micros
from contracts.task import Task
from serving.models import Model
from serving.requests import Asked, Field
from serving.standins import UNREACHABLE
from serving.vectors import FeaturePlan, Vectors

VERSION = "model_version"
"""The second join key of a prediction, beside the case id: nothing guesses whose prediction is meant."""
NO_CASE = "fallback: no case id"
ABSENT = "fallback: not precomputed"
EXPIRED = "fallback: prediction expired"
LATER = "fallback: predicted later than asked"
OTHERWISE = "fallback: predicted for other values"
REASONS = (NO_CASE, ABSENT, EXPIRED, LATER, OTHERWISE, UNREACHABLE)
"""Why a row of a batch task is answered with the fallback: nothing says which case it is about; no job has predicted it
with this version; it did, too long ago, or after the instant asked about; the request's keys and fields are not those
that the prediction was made of; the online store did not answer, and the task declares the fallback for that."""
_WITHHELD = {"not_found": ABSENT, "expired": EXPIRED, "future": LATER, "default": UNREACHABLE, "refused": UNREACHABLE}


@dataclass(frozen=True, slots=True)
class Given:
    """What one model is given to answer N rows with."""

    vectors: Vectors
    answers: np.ndarray | None = None
    """float32 [N, 1 + q] where they are precomputed: the score, then a regression's quantiles."""
    at: Sequence[datetime] | None = None
    """The instant each vector is of, where that is not the one asked at."""
    degraded: Sequence[Sequence[str]] = ()
    """Per row, why its answer is not what it should be; empty where none is."""
    fallback: Collection[int] = ()
    """Rows that are answered with the bundle's fallback."""

    def usable(self) -> list[int]:
        """Rows that are not answered with the fallback."""
        return [i for i in range(len(self.vectors.view_times)) if i not in self.fallback]


class PredictionReader:
    """Reads one task's precomputed predictions; may be used from any thread.

    Args:
        task: whose.
        plan: of its predictions' view.
        fields: what its requests carry.
    """

    def __init__(self, task: Task, plan: FeaturePlan, fields: Sequence[Field]) -> None:
        self.waits = plan.waits
        self._plan = plan
        self._case = task.spine.id
        self._view = view_name(task)
        self._fields = tuple(fields)

    def read(self, model: Model, asked: Asked) -> Given:
        """The version's predictions of the cases asked about, with the vectors they were made of.

        Raises:
            StoreUnavailable: the online store does not answer.
        """
        count, metadata = len(asked.cases), model.bundle.metadata
        keys: dict[str, list[Any]] = {self._case: list(asked.cases), VERSION: [model.version] * count}
        found = self._plan.look_up(keys, asked.at)
        values, statuses = found.values, found.statuses[self._view]
        kinds = [spec.kind for spec in metadata.features]
        numbers = np.full((count, kinds.count("number")), np.nan, np.float32)
        texts = np.full((count, kinds.count("text")), "", object)
        answers = np.tile(np.array([metadata.fallback, *metadata.fallback_quantiles], np.float32), (count, 1))
        at, times = list(asked.at), [dict[str, int | None]() for _ in range(count)]
        degraded: list[Sequence[str]] = [*found.stood_in.reasons] or [()] * count
        fallback = set(range(count))
        for i, status in enumerate(statuses):
            if status != "present":
                degraded[i] = (NO_CASE if asked.cases[i] is None else _WITHHELD[status],)
                continue
            question = question_of(self._fields, asked.columns, i)
            if values["question"][i] != question or values["bundle"][i] != model.bundle.bundle_hash:
                degraded[i] = (OTHERWISE,)
                continue
            fallback.remove(i)
            answers[i] = [values["score"][i], *(values["quantiles"][i] or ())]
            numbers[i] = np.frombuffer(values["numbers"][i], "<f4")
            texts[i] = orjson.loads(values["texts"][i])
            times[i] = orjson.loads(values["view_times"][i])
            at[i] = from_micros(found.view_times[i][self._view] or 0)
        return Given(Vectors(numbers, texts, found.statuses, times), answers, at, degraded, fallback)


def view_name(task: Task) -> str:
    """Of the feature view that holds a task's predictions, and of the feature service that reads all of it."""
    return f"{task.name}_predictions"


def question_of(fields: Sequence[Field], columns: dict[str, list[Any]], i: int) -> str:
    """What row `i` says, as a short text: equal for equal keys and request fields, however they were written."""
    said = [columns[each.name][i] for each in fields]
    plain = [to_micros(each) if isinstance(each, datetime) else each for each in said]
    return hashlib.blake2b(orjson.dumps(plain), digest_size=16).hexdigest()
