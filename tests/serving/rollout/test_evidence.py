"""Evidence read from a real prediction log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.predictions import PredictionRow, append, open_segment
from contracts.task import Task
from serving.comparison import count_scores, population_stability, score_bins
from serving.evidence import ErrorCount, gather
from serving.rollout import Rollouts
from serving.rollout_state import Deployment

Bundle = Callable[[int], Path]


@pytest.fixture
def shadow(bundle: Bundle, support: Any) -> Deployment:
    """Version 2 in shadow against champion 1."""
    return Deployment("churn", 5, 1, str(bundle(1)), 2, str(bundle(2)), "shadow", 0.0, support.start)


@pytest.fixture
def write(tmp_path: Path, support: Any) -> Iterator[Callable[..., None]]:
    connection = open_segment(tmp_path / "log" / "a.sqlite", [("visits", "number")])
    connection.execute("pragma synchronous = off")  # hundreds of commits, and no power cut to survive

    def put(number: int, variant: str, version: int, score: float = 0.5, **changes: Any) -> None:
        asked = support.start + timedelta(minutes=number)
        made = PredictionRow(
            request_id=f"r{number}",
            position=0,
            variant=variant,
            version=version,
            case_id=None,
            event_timestamp=asked,
            answered_at=asked,
            inputs={"user": number, "shop": "a"},
            numbers=np.zeros(1, dtype=np.float32),
            texts=(),
            view_times={},
            score=score,
            decision=int(score >= 0.7),
            latency_ms=5.0,
        )
        append(connection, [replace(made, **changes)])

    yield put
    connection.close()


def look(tmp_path: Path, task: Task, deployment: Deployment, minutes: float) -> Any:
    return gather(tmp_path / "log", task, deployment, deployment.since + timedelta(minutes=minutes))


def test_an_empty_log_is_no_evidence(tmp_path: Path, task: Task, shadow: Deployment) -> None:
    found = look(tmp_path, task, shadow, 60)
    assert (found.challenger.rows, found.challenger.requests, found.challenger.p99_ms) == (0, 0, None)
    assert found.challenger.action_rate is None
    assert (found.comparison, found.errors, found.skew, found.performance) == (None, None, None, None)
    assert (found.generation, found.stage, found.version, found.champion_is_baseline) == (5, "shadow", 2, False)


def test_only_the_stage_and_the_two_versions_count(
    tmp_path: Path, task: Task, shadow: Deployment, write: Callable[..., None]
) -> None:
    write(-1, "shadow", 2)  # before the stage
    write(0, "shadow", 2)  # at its very beginning
    write(1, "shadow", 7)  # a version of another time
    write(2, "canary", 2)  # answered, not shadowed
    write(10, "shadow", 2)  # at the very end
    write(11, "shadow", 2)  # after it
    write(3, "champion", 1, score=0.9)
    write(4, "champion", 6)
    found = look(tmp_path, task, shadow, 10)
    assert found.challenger.rows == 2
    assert (found.champion.rows, found.champion.acted, found.champion.action_rate) == (1, 1, 1.0)


def test_a_canary_counts_the_rows_it_answered(
    tmp_path: Path, task: Task, shadow: Deployment, write: Callable[..., None]
) -> None:
    canary = replace(shadow, stage="canary", share=0.1)
    write(1, "shadow", 2)
    write(2, "canary", 2, score=0.8)
    found = look(tmp_path, task, canary, 10)
    assert (found.challenger.rows, found.challenger.acted, found.comparison) == (1, 1, None)


def test_a_request_is_waited_for_once_whatever_its_rows(
    tmp_path: Path, task: Task, shadow: Deployment, write: Callable[..., None]
) -> None:
    canary = replace(shadow, stage="canary")
    for position in range(3):
        write(1, "canary", 2, position=position, latency_ms=51.0)
    write(2, "canary", 2, latency_ms=50.0)
    found = look(tmp_path, task, canary, 10).challenger
    assert (found.rows, found.requests, found.over_budget) == (4, 2, 1)
    assert found.p50_ms == 50.5


def test_identical_requests_are_compared_and_the_worst_keys_named(
    tmp_path: Path, task: Task, shadow: Deployment, write: Callable[..., None]
) -> None:
    for number in range(60):
        shop = "xy"[number % 2]
        inputs = {"user": number, "shop": shop}
        write(number, "champion", 1, score=0.5, inputs=inputs)
        write(number, "shadow", 2, score=0.75 if shop == "y" else 0.5, inputs=inputs)
    write(100, "shadow", 2, score=0.0)  # the champion has not scored it
    found = look(tmp_path, task, shadow, 120).comparison
    assert (found.pairs, found.flips, found.champion_acted, found.challenger_acted) == (60, 30, 0, 30)
    assert found.mean_difference == 0.125
    assert found.max_difference == 0.25
    assert found.worst[0] == {"key": "shop", "value": "y", "pairs": 30, "mean_difference": 0.25}
    assert {each["key"] for each in found.worst} == {"shop"}  # a user seen once is an anecdote
    assert found.psi > 1
    assert 0 < found.psi_low < found.psi
    assert len(found.largest) == 5
    assert found.largest[0] == {
        "request_id": "r1",
        "position": 0,
        "champion": 0.5,
        "challenger": 0.75,
        "inputs": {"user": 1, "shop": "y"},
        "features": {"visits": 0.0},
    }


def test_a_canary_is_compared_on_the_keys_it_does_not_answer(
    tmp_path: Path, task: Task, shadow: Deployment, write: Callable[..., None]
) -> None:
    for number in range(20):
        write(number, "champion", 1, score=0.5)
        write(number, "shadow", 2, score=0.6)
    write(30, "canary", 2, score=0.9)
    found = look(tmp_path, task, replace(shadow, stage="canary", share=0.1), 60)
    assert (found.challenger.rows, found.comparison.pairs) == (1, 20)


def test_the_naive_baseline_is_not_compared(
    tmp_path: Path, task: Task, shadow: Deployment, write: Callable[..., None]
) -> None:
    write(1, "champion", 0)
    write(1, "shadow", 2)
    found = look(tmp_path, task, replace(shadow, champion=0), 10)
    assert found.comparison is None
    assert found.champion_is_baseline
    assert found.champion.rows == 1


def test_the_holdout_rate_comes_from_the_challengers_bundle(tmp_path: Path, task: Task, shadow: Deployment) -> None:
    assert look(tmp_path, task, shadow, 1).holdout_action_rate == pytest.approx(0.3)
    assert (
        look(tmp_path, task, replace(shadow, challenger_bundle=str(tmp_path / "gone")), 1).holdout_action_rate is None
    )


def test_there_is_no_evidence_without_a_challenger(tmp_path: Path, task: Task, shadow: Deployment) -> None:
    with pytest.raises(ValueError, match="no challenger in generation 5"):
        look(tmp_path, task, replace(shadow, challenger=None, stage="idle"), 1)


def test_evidence_is_plain_json(tmp_path: Path, task: Task, shadow: Deployment, write: Callable[..., None]) -> None:
    write(1, "champion", 1)
    write(1, "shadow", 2)
    told = json.loads(json.dumps(look(tmp_path, task, shadow, 10).to_dict(), allow_nan=False))
    assert told["since"] == "2024-01-01T00:00:00+00:00"
    assert told["comparison"]["pairs"] == 1


def test_the_evidence_of_a_log_moves_the_rollout(
    tmp_path: Path, rollouts: Rollouts, bundle: Bundle, support: Any, write: Callable[..., None]
) -> None:
    deployment = rollouts.submit(1, bundle(1), support.start).deployment
    for number in range(150):
        write(number, "champion", 0, score=0.25)
        write(number, "shadow", 1, score=(number % 10) / 10)
    now: datetime = support.start + timedelta(minutes=150)
    evidence = gather(tmp_path / "log", rollouts.task, deployment, now)
    assert not rollouts.advance(evidence, now).moved  # the audit has not spoken
    audited = replace(evidence, skew=support.good_evidence(deployment).skew, errors=ErrorCount(150, 0))
    assert rollouts.advance(audited, now).to_stage == "canary"


counts = st.lists(st.integers(0, 500), min_size=12, max_size=12).map(np.array)


@given(counts, counts)
def test_population_stability_is_zero_on_itself_and_never_negative(a: np.ndarray, b: np.ndarray) -> None:
    assert population_stability(a, a) == 0
    assert population_stability(a, b) >= 0


def test_population_stability_agrees_with_the_obvious_loop() -> None:
    rng = np.random.default_rng(3)
    reference, held, climbing = rng.beta(2, 5, 5000), rng.beta(2, 5, 3000), rng.beta(3, 4, 4000)
    deciles = np.quantile(reference, np.linspace(0.1, 0.9, 9))
    edges = [-1, reference.min(), *deciles, reference.max() + 1e-12, 2]
    total = 0.0
    for low, high in pairwise(edges):
        p, q = ((sum(low <= each < high for each in scores) + 0.5) / (len(scores) + 6) for scores in (held, climbing))
        total += (q - p) * np.log(q / p)
    bins = score_bins(reference)
    found = population_stability(count_scores(held, bins), count_scores(climbing, bins))
    assert found == pytest.approx(total, rel=1e-9)


def test_population_stability_sees_scores_that_a_constant_champion_never_gave() -> None:
    bins = score_bins(np.full(100, 0.5))
    constant = count_scores(np.full(100, 0.5), bins)
    assert population_stability(constant, constant) == 0
    assert population_stability(constant, count_scores(np.full(100, 0.6), bins)) > 1
    assert population_stability(constant, count_scores(np.full(100, 0.4), bins)) > 1
