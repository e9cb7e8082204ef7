"""The search for hyperparameters: within the training part, in time order, bounded, on record, and made again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest

from asof.clockwork import to_micros
from contracts.clock import VirtualClock
from contracts.locations import Locations
from contracts.task import Task
from training.frame import Frame
from training.learners.catalogue import SPACES, find_learner
from training.learners.protocol import LearnerError, Part, Problem
from training.search import SearchError, folds, search
from training.split import Split, split_by_time
from training.tracking import tracked

PROBLEM = Problem(kind="binary", metric="roc_auc", seed=7)
LITTLE = {"num_iterations": 20, "min_data_in_leaf": 20}


class Record:
    """What was told of one trial."""

    def __init__(self) -> None:
        self.tried: dict[str, Any] = {}
        self.found: dict[str, float] = {}

    def params(self, values: dict[str, Any]) -> None:
        self.tried |= values

    def metrics(self, values: dict[str, float]) -> None:
        self.found |= values


class Records:
    """Every trial's record, by its number."""

    def __init__(self) -> None:
        self.all: dict[int, Record] = {}

    def __call__(self, number: int) -> AbstractContextManager[Record]:
        self.all[number] = Record()
        return nullcontext(self.all[number])


def split(task: Task, frame: Frame, cutoff: datetime) -> Split:
    wanted = {name: getattr(task.training, name) for name in ("window", "validation", "holdout")}
    return split_by_time(frame.event_timestamps, frame.known_at, frame.labels, cutoff=cutoff, **wanted)


@pytest.fixture
def task(make_task: Callable[..., Task]) -> Callable[..., Task]:
    def make(**sought: Any) -> Task:
        ordinary = make_task()
        training = ordinary.training.model_copy(update={"params": LITTLE, "learner": "lightgbm"})
        return make_task(search={"time": "5m", "folds": 2, **sought}, training=training.model_dump())

    return make


class TestFolds:
    def test_each_part_comes_after_the_one_before_and_its_labels_were_known(
        self, task: Callable[..., Task], make_frame: Callable[..., Frame], cutoff: datetime
    ) -> None:
        frame = make_frame()
        parts = split(task(), frame, cutoff)
        cut = folds(frame, parts, 3)
        edges = np.linspace(to_micros(parts.bounds["start"]), to_micros(parts.bounds["validation"]), 6).astype(np.int64)
        for number, fold in enumerate(cut):
            wanted = [(0, number + 1), (number + 1, number + 2), (number + 2, number + 3)]
            for rows, (begin, end) in zip((fold.train, fold.stop, fold.judged), wanted, strict=True):
                expected = [
                    row
                    for row in range(len(frame.labels))
                    if edges[begin] <= frame.event_timestamps[row] < edges[end] and frame.known_at[row] <= edges[end]
                ]
                assert sorted(rows.tolist()) == expected
        assert set(np.concatenate([fold.judged for fold in cut])) <= set(parts.train)

    def test_a_part_too_small_is_said(
        self, task: Callable[..., Task], make_frame: Callable[..., Frame], cutoff: datetime
    ) -> None:
        frame = make_frame(rows=900)
        with pytest.raises(SearchError, match=r"Fold 1 of 10 of the search has a part with \d+ labelled rows; 50 of"):
            folds(frame, split(task(), frame, cutoff), 10)


def test_the_best_is_what_its_folds_say_and_never_worse_than_the_task_as_it_is(
    task: Callable[..., Task], make_frame: Callable[..., Frame], cutoff: datetime
) -> None:
    sought, frame, records = task(trials=4, space={"num_leaves": {"low": 2, "high": 4}}), make_frame(), Records()
    said: list[str] = []
    parts = split(sought, frame, cutoff)
    found = search(sought, frame, parts, PROBLEM, "lightgbm", trial_run=records, say=said.append)
    assert records.all[0].tried == LITTLE
    assert found.defaults == records.all[0].found["roc_auc"]
    whole = {number: each.found["roc_auc"] for number, each in records.all.items() if "roc_auc" in each.found}
    assert (found.value, found.trials) == (max(whole.values()), len(whole))
    assert found.value >= found.defaults
    best = records.all[max(whole, key=lambda number: (whole[number], -number))]
    assert found.params == best.tried
    assert all(each.tried["num_leaves"] in (2, 3, 4) for number, each in records.all.items() if number)
    assert {*records.all[1].tried} == {*LITTLE, *SPACES["lightgbm"]}
    assert said[0].startswith("trial 0: roc_auc ")
    again = search(sought, frame, parts, PROBLEM, "lightgbm", trial_run=Records(), say=lambda _: None)
    assert replace(again, seconds=found.seconds) == found

    # The same figure, computed plainly from what the best trial tried.
    fit, values = find_learner("lightgbm"), []
    for fold in folds(frame, parts, 2):
        train, stop, judged = (Part(frame.inputs().take(rows), frame.labels[rows]) for rows in _rows(fold))
        scores = fit(PROBLEM, train, stop, found.params).native(judged.inputs)[:, 0]
        late, on_time = scores[judged.labels == 1], scores[judged.labels == 0]
        ahead = (late[:, None] > on_time).mean() + (late[:, None] == on_time).mean() / 2
        values.append(ahead)
    assert found.value == pytest.approx(np.mean(values), abs=1e-6)


def _rows(fold: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return fold.train, fold.stop, fold.judged


def test_time_that_is_up_leaves_the_task_as_it_is(
    task: Callable[..., Task], make_frame: Callable[..., Frame], cutoff: datetime
) -> None:
    sought, frame = task(time=timedelta(microseconds=1)), make_frame()
    parts = split(sought, frame, cutoff)
    found = search(sought, frame, parts, PROBLEM, "lightgbm", trial_run=Records(), say=lambda _: None)
    assert (found.params, found.trials, found.value) == (LITTLE, 1, found.defaults)


def test_a_parameter_no_learner_knows_ends_the_search(
    task: Callable[..., Task], make_frame: Callable[..., Frame], cutoff: datetime
) -> None:
    sought, frame = task(trials=2, space={"leaves": {"low": 2, "high": 4}}), make_frame()
    parts = split(sought, frame, cutoff)
    with pytest.raises(LearnerError, match="names 'leaves', which is no parameter of LightGBM"):
        search(sought, frame, parts, PROBLEM, "lightgbm", trial_run=Records(), say=lambda _: None)


@pytest.mark.parametrize(
    ("each", "said"),
    [
        ({"low": 3}, "a range needs low below high, or choices; found 3 and None"),
        ({"low": 3, "high": 3}, "a range needs low below high"),
        ({"low": 0, "high": 3, "log": True}, "a logarithmic range begins above 0, found 0"),
        ({"low": 1, "high": 3, "choices": [1]}, "low and high, or choices, not both"),
    ],
)
def test_a_range_that_is_none_is_told(task: Callable[..., Task], each: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        task(space={"num_leaves": each})


def test_every_learner_takes_what_its_space_draws() -> None:
    from importlib import import_module

    for name, space in SPACES.items():
        if name != "torch_sequence":  # PyTorch need not be installed; its own tests have its parameters
            assert space.keys() <= import_module(find_learner(name).__module__).DEFAULTS.keys()


def test_trials_are_runs_inside_the_trainings_own(locations: Locations, cutoff: datetime) -> None:
    with tracked("late_parcel", locations, VirtualClock(cutoff), "whole") as run:
        with run.trial(0) as trial:
            trial.params({"num_leaves": 7})
            trial.metrics({"roc_auc": 0.75})
        with pytest.raises(RuntimeError), run.trial(1) as given_up:
            raise RuntimeError
    client = run._client
    kept = client.get_run(trial.id)
    assert kept.data.tags["mlflow.parentRunId"] == run.id
    assert (kept.data.params, kept.data.metrics) == ({"num_leaves": "7"}, {"roc_auc": 0.75})
    assert [client.get_run(each.id).info.status for each in (trial, given_up, run)] == [
        "FINISHED",
        "KILLED",
        "FINISHED",
    ]
