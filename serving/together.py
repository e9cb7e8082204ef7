"""Requests that come together are read and scored together; one that comes alone is not made to wait for company.

One vectorised pass over eight rows costs little more than one over a single row. Requests reach the event loop in
bursts: while one is computed, others arrive, and the loop then finds all of them at once. What is found at once is a
group; nothing waits for a group to grow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from serving.models import Model
from serving.precomputed import Given
from serving.requests import Asked
from serving.vectors import Vectors

_MOST_ROWS = 64
"""Of a group: more are left to the next, so that the first of a crowd is not kept by the last."""


@dataclass(slots=True)
class Part:
    """One request's part of what was done together."""

    given: Given
    answers: np.ndarray
    """float32 [N, 1 + q] of its N rows."""


@dataclass(slots=True)
class _Waiting:
    model: Model
    asked: Asked
    part: asyncio.Future[Part | None]


class Together:
    """Groups one task's requests; belongs to one event loop.

    Args:
        read: what a model is given for a request.
    """

    def __init__(self, read: Callable[[Model, Asked], Given]) -> None:
        self._read = read
        self._waiting: list[_Waiting] = []

    async def part(self, model: Model, asked: Asked) -> Part | None:
        """Read and score with whatever else the loop finds now; None leaves the request to be computed by itself."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(model, asked, loop.create_future())
        if not self._waiting:
            loop.call_soon(self._run)
        self._waiting.append(waiting)
        return await waiting.part

    def _run(self) -> None:
        group = [self._waiting.pop(0)]
        rows = len(group[0].asked.cases)
        while self._waiting and self._waiting[0].model is group[0].model:
            rows += len(self._waiting[0].asked.cases)
            if rows > _MOST_ROWS:
                break
            group.append(self._waiting.pop(0))
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        try:
            parts: Sequence[Part | None] = self._computed(group) if len(group) > 1 else [None]
        except Exception:  # somebody's row or the store: each by itself hears what is wrong with its own
            parts = [None] * len(group)
        for waiting, part in zip(group, parts, strict=True):
            if not waiting.part.done():  # its caller may have gone
                waiting.part.set_result(part)

    def _computed(self, group: Sequence[_Waiting]) -> list[Part | None]:
        model = group[0].model
        asked = [waiting.asked for waiting in group]
        whole = Asked(
            request_id="",
            once=False,
            columns={name: [value for each in asked for value in each.columns[name]] for name in asked[0].columns},
            at=[instant for each in asked for instant in each.at],
            cases=[case for each in asked for case in each.cases],
            inputs=[row for each in asked for row in each.inputs],
        )
        given = self._read(model, whole)
        if given.degraded or given.fallback or given.answers is not None:
            return [None] * len(group)
        answers = model.predict(given.vectors.numbers, given.vectors.texts)
        parts: list[Part | None] = []
        start = 0
        for each in asked:
            end = start + len(each.cases)
            parts.append(Part(Given(_rows(given.vectors, start, end)), answers[start:end]))
            start = end
        return parts


def _rows(vectors: Vectors, start: int, end: int) -> Vectors:
    return Vectors(
        vectors.numbers[start:end],
        vectors.texts[start:end],
        {view: statuses[start:end] for view, statuses in vectors.statuses.items()},
        vectors.view_times[start:end],
    )
