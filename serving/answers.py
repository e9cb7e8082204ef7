"""What a caller is told: an answer made of scored rows, or of those that an earlier request left in the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from contracts.predictions import PredictionRow
from contracts.task import Task
from serving.log_segments import LoggedAnswer
from serving.log_writer import LogUnavailable
from serving.models import Model
from serving.precomputed import Given
from serving.requests import Asked, BadRequest
from serving.scoring import Scored
from serving.tracing import Stage


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes out; the rest is for afterwards."""

    payload: dict[str, Any]
    parts: Sequence[Scored] = ()
    shadow: Shadow | None = None
    stages: tuple[Stage, ...] = ()
    """What it took, part by part."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """A request that the challenger is still to score."""

    model: Model
    asked: Asked
    given: Given | None
    """None when the challenger is given something else than the champion."""
    positions: Sequence[int]
    """Rows it has not answered itself."""
    features_ms: float
    generation: int


def told(task: Task, row: PredictionRow | LoggedAnswer, quantiles: Mapping[str, float]) -> dict[str, Any]:
    """One row's part of an answer."""
    said: dict[str, Any] = {task.spine.id: row.case_id}
    if task.kind == "regression":
        said |= {"value": row.score, "quantiles": dict(quantiles)}
    else:
        said |= {"score": row.score, "decision": row.decision}
    return said | {"variant": row.variant, "version": row.version}


def payload(task: Task, request_id: str, predictions: list[dict[str, Any]], degraded: Sequence[str]) -> dict[str, Any]:
    """A whole answer."""
    return {"request_id": request_id, "task": task.name, "predictions": predictions, "degraded": list(degraded)}


def composed(task: Task, asked: Asked, parts: Sequence[Scored]) -> dict[str, Any]:
    """The answer made of scored rows."""
    predictions: list[dict[str, Any]] = [{}] * len(asked.cases)
    rows = [row for part in parts for row in part.rows]
    for row in rows:
        predictions[row.position] = told(task, row, row.quantiles)
    return payload(task, asked.request_id, predictions, reasons((row.position, row.degraded) for row in rows))


def reasons(rows: Iterable[tuple[int, Sequence[str]]]) -> list[str]:
    """An answer's `degraded`, of the reasons at each position."""
    return [f"rows[{position}]: {reason}" for position, why in sorted(rows) for reason in why]


def repeated(task: Task, asked: Asked, earlier: Sequence[LoggedAnswer]) -> dict[str, Any]:
    """The answer of an earlier request of the same id.

    Raises:
        BadRequest: the earlier request asked something else.
        LogUnavailable: it cannot be read just now.
    """
    if not earlier:
        raise LogUnavailable(f"The answer to request {asked.request_id!r} cannot be read from the log just now.")
    same = [orjson.loads(row.inputs) for row in earlier] == orjson.loads(orjson.dumps(asked.inputs))
    if not same or [row.case_id for row in earlier] != asked.cases:
        raise BadRequest(422, "request_id", asked.request_id, "a new id: another question was asked under it")
    predictions = [told(task, row, orjson.loads(row.quantiles)) for row in earlier]
    why = reasons((row.position, row.degraded.split(",") if row.degraded else ()) for row in earlier)
    return payload(task, asked.request_id, predictions, ["repeated", *why])
