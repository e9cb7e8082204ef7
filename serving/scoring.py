"""One model's part of a request: scores, and rows as the log wants them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain

import numpy as np

from contracts.errors import SkewlessError
from contracts.predictions import REHEARSAL, PredictionRow
from serving.models import Model
from serving.precomputed import Given
from serving.requests import Asked


class ScoringFailed(SkewlessError, ArithmeticError):
    """A model raised, or answered something that is no score."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One model's part of a request, ready for the log."""

    model: Model
    variant: str
    rows: list[PredictionRow]


def rehearsed(rows: Sequence[PredictionRow]) -> list[PredictionRow]:
    """Rows of a load test, as they are logged: apart from everything that is read for evidence."""
    return [replace(row, variant=f"{REHEARSAL}{row.variant}") for row in rows]


def score(
    model: Model,
    variant: str,
    asked: Asked,
    given: Given,
    positions: Sequence[int],
    *,
    began: float,
    answered_at: datetime | None,
    spent_ms: float = 0.0,
    answers: np.ndarray | None = None,
) -> Scored:
    """Score the rows at `positions`.

    Args:
        model: whose scores.
        variant: under which name they are logged.
        asked: the request.
        given: what the model is given of it, all rows.
        positions: of the rows.
        began: when the work on them began, by `time.perf_counter`.
        answered_at: for the log; None for the instant each row is asked at.
        spent_ms: what was spent on them before `began`.
        answers: of all rows, where the model has given them already.

    Raises:
        ScoringFailed: the model raised, or answered what is no number.
    """
    vectors, task = given.vectors, model.bundle.metadata.task
    whole = len(positions) == len(asked.cases)
    try:
        known = given.answers if given.answers is not None else answers
        if known is not None:
            answers = known[positions]
        elif whole:
            answers = model.predict(vectors.numbers, vectors.texts)
        else:
            answers = model.predict(vectors.numbers[positions], vectors.texts[positions])
        if given.answers is None and given.fallback:  # these have no vector worth the name
            answers = answers.copy()
            answers[[at for at, i in enumerate(positions) if i in given.fallback]] = model.fallback
    except Exception as error:
        raise ScoringFailed(f"Version {model.version} of task {task!r} failed: {error}.") from error
    told = answers.tolist()
    if not all(map(math.isfinite, chain.from_iterable(told))):
        raise ScoringFailed(f"Version {model.version} of task {task!r} answered what is no number.")
    latency_ms = spent_ms + 1000 * (time.perf_counter() - began)
    threshold = model.bundle.metadata.threshold
    levels = [f"{level:g}" for level in model.bundle.metadata.quantiles]
    at, degraded = given.at or asked.at, given.degraded
    rows = []
    for i, (value, *quantiles) in zip(positions, told, strict=True):
        rows.append(
            PredictionRow(
                request_id=asked.request_id,
                position=i,
                variant=variant,
                version=model.version,
                case_id=asked.cases[i],
                event_timestamp=at[i],
                answered_at=answered_at or asked.at[i],
                inputs=asked.inputs[i],
                numbers=vectors.numbers[i],
                texts=vectors.texts[i],
                view_times=vectors.view_times[i],
                score=value,
                decision=int(threshold is not None and value >= threshold),
                latency_ms=latency_ms,
                degraded=degraded[i] if degraded else (),
                quantiles=dict(zip(levels, quantiles, strict=True)),
            )
        )
    return Scored(model, variant, rows)
