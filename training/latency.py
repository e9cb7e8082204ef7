"""How long the packaged model alone takes to answer, by rows in a call."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from contracts.scorer import Scorer
from training.frame import Inputs

_PLAN = ((1, 5, 400), (32, 3, 100), (1000, 1, 100))
"""Rows in a call, rounds, calls in a round: a 99th percentile needs a hundred calls."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Of calls with so many rows, in milliseconds."""

    rows: int
    """In a call."""
    calls: int
    """Of the round that is reported."""
    p50: float
    p99: float


def latencies(scorer: Scorer, inputs: Inputs) -> tuple[Latency, ...]:
    """Times of the packaged model, by rising number of rows; 1 comes first.

    Of some rounds the quietest counts: what else the machine does is not the model's doing. Rows rotate, since asking
    the same ones again would flatter the caches; the first round also warms up.
    """
    return tuple(_quietest(scorer, inputs, rows, rounds, calls) for rows, rounds, calls in _PLAN)


def _quietest(scorer: Scorer, inputs: Inputs, rows: int, rounds: int, calls: int) -> Latency:
    size, found = len(inputs.numbers), []
    for turn in range(rounds):
        spent = []
        for call in range(turn * calls, (turn + 1) * calls):
            taken = inputs.take(np.arange(call * rows, (call + 1) * rows) % size)
            began = time.perf_counter()
            scorer.score(taken.numbers, taken.texts)
            spent.append(time.perf_counter() - began)
        found.append(np.percentile(spent, [50, 99]) * 1e3)
    p50, p99 = min(found, key=lambda each: float(each[1]))
    return Latency(rows, calls, float(p50), float(p99))
