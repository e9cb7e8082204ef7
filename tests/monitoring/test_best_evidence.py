"""What a version is judged by: outcomes that had the time to come, before any estimate; and neither, said so."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from contracts.predictions import read_predictions
from monitoring.best_evidence import BestEvidence, best_evidence

START = datetime(2024, 3, 1, tzinfo=UTC)
WAIT = timedelta(hours=30)
DAY = timedelta(days=1)


@pytest.fixture
def watched(new_world: Callable[..., Any]) -> Callable[..., tuple[Any, pd.DataFrame]]:
    """A world in which version 1 answered 200 cases a day for three days, and those cases."""

    def make(metric: str = "roc_auc", **how: Any) -> tuple[Any, pd.DataFrame]:
        world = new_world(metric=metric)
        cases = type(world.past).make(START, 3, 200, seed=2, **how)
        world.log(cases)
        return world, cases.frame

    return make


def found(world: Any, as_of: datetime) -> BestEvidence:
    scored = read_predictions(world.locations.predictions("churn"), end=as_of)
    return best_evidence(world.task, world.bundle, scored, as_of=as_of)


def test_outcomes_go_before_an_estimate_once_enough_have_come(watched) -> None:
    world, frame = watched(slope=-1)  # a world in which the score says the opposite of what comes
    early = found(world, START + DAY)
    assert early.kind == "estimated"
    assert early.rows == 200
    assert early.performance.value > 0.8
    late = found(world, START + 3 * DAY)
    settled = frame[frame["asked_at"] <= START + 3 * DAY - WAIT]
    assert (late.kind, late.rows) == ("realized", len(settled))
    assert late.performance.value == pytest.approx(roc_auc_score(settled["churned"], settled["score"]))
    assert late.performance.low < late.performance.value < late.performance.high < 0.3


def test_a_metric_without_an_estimate_waits_for_its_outcomes(watched) -> None:
    world, frame = watched("log_loss")
    early = found(world, START + DAY)
    assert (early.performance, early.kind) == (None, "none")
    assert early.note == (
        "log_loss cannot be estimated without labels; 0 of 0 cases asked about at least 1 day, 6:00:00 ago have a "
        "label, judged from 100 on"
    )
    late = found(world, START + 2 * DAY)
    settled = frame[frame["asked_at"] <= START + 2 * DAY - WAIT]
    assert (late.kind, late.rows) == ("realized", len(settled))
    assert late.performance.value == pytest.approx(log_loss(settled["churned"], settled["score"].astype(float)))


def test_outcomes_that_come_early_do_not_speak_for_all(watched) -> None:
    """Good news travels fast: of the young cases only the zeros are known, and none of them is counted."""
    world, frame = watched("brier")
    frame.loc[frame["churned"] == 0, "known_at"] = frame["asked_at"] + timedelta(hours=1)
    world.outcomes(pd.concat([world.past.frame, frame]))
    now = START + 2 * DAY
    known = frame["known_at"] <= now
    settled = frame[frame["asked_at"] <= now - WAIT]
    assert known.sum() > len(settled) + 100
    best = found(world, now)
    assert best.rows == len(settled)
    assert best.performance.value == pytest.approx(((settled["score"] - settled["churned"]) ** 2).mean(), rel=1e-6)


def test_a_stalled_feed_of_outcomes_is_no_sample_of_them(watched) -> None:
    world, frame = watched("log_loss")
    frame.loc[np.arange(len(frame)) % 3 == 0, "known_at"] = START + 90 * DAY
    world.outcomes(pd.concat([world.past.frame, frame]))
    best = found(world, START + 3 * DAY + WAIT)
    assert (best.performance, best.kind) == (None, "none")
    assert "400 of 600 cases asked about at least 1 day, 6:00:00 ago have a label, fewer than the 90% that must" in (
        best.note
    )


def test_a_task_whose_cases_often_have_no_outcome_is_held_to_its_own_share(watched) -> None:
    world, frame = watched("log_loss")
    for each in (world.past.frame, frame):
        each.loc[np.arange(len(each)) % 3 == 0, "known_at"] = pd.NaT
    world.outcomes(pd.concat([world.past.frame, frame]))
    best = found(world, START + 3 * DAY + WAIT)
    assert (best.kind, best.rows) == ("realized", 400)


def test_rows_that_name_no_case_wait_for_no_outcome(watched) -> None:
    world, _ = watched("log_loss")
    scored = read_predictions(world.locations.predictions("churn"))
    nameless = scored.set_column(
        scored.column_names.index("case_id"),
        "case_id",
        [[None if i % 2 else each for i, each in enumerate(scored["case_id"].to_pylist())]],
    )
    best = best_evidence(world.task, world.bundle, nameless, as_of=START + 3 * DAY + WAIT)
    assert (best.kind, best.rows) == ("realized", 300)


def test_where_outcomes_are_all_the_same_the_estimate_stands(watched) -> None:
    world, frame = watched()
    frame["churned"] = 1
    world.outcomes(pd.concat([world.past.frame, frame]))
    best = found(world, START + 3 * DAY + WAIT)
    assert (best.kind, best.rows) == ("estimated", 600)
    assert "all the same one: their roc_auc does not exist" in best.note


def test_how_long_to_wait_is_not_guessed(watched) -> None:
    world, frame = watched("log_loss")
    world.outcomes(frame)  # the spine no longer reaches back to the reference's time
    best = found(world, START + 3 * DAY + WAIT)
    assert (best.performance, best.kind) == (None, "none")
    assert "the usual wait is unknown" in best.note


def test_few_rows_say_nothing(watched) -> None:
    world, _ = watched()
    best = found(world, START + timedelta(hours=11))
    assert (best.performance, best.kind, best.note) == (None, "none", "92 of 100 rows scored")
