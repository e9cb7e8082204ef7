"""Groups of the holdout: what is measured, what is judged, what is said of the rest."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from training.slices import sliced

NOON = np.full(10_000, 43_200_000_000)
"""All cases are of one day."""


@pytest.fixture
def task(make_task):
    return make_task(10)  # fairness.min_rows = 50


def groups(**sizes):
    rng = np.random.default_rng(5)
    values = np.array([name for name, size in sizes.items() for _ in range(size)], object)
    scores = rng.random(len(values)).astype(np.float32)
    return values, (rng.random(len(values)) < scores).astype(np.int8), scores[:, None]


def test_a_group_is_measured_as_if_it_were_alone(task):
    values, labels, answers = groups(north=300, south=200)
    found = sliced(task, "side", values, labels, answers, 0.6, NOON[: len(values)])
    north = values == "north"
    first = found.groups[0]
    assert (first.value, first.rows, first.note) == ("north", 300, "")
    assert first.metric.value == pytest.approx(roc_auc_score(labels[north], answers[north, 0]), abs=1e-6)
    assert first.figures["roc_auc"] == pytest.approx(first.metric.value)
    acts, late = answers[north, 0] >= 0.6, labels[north] == 1
    assert first.figures["acted_on"] == pytest.approx(acts.mean())
    assert first.figures["false_alarms"] == pytest.approx(acts[~late].mean())
    assert first.figures["missed"] == pytest.approx((~acts)[late].mean())
    assert first.figures["label"] == pytest.approx(late.mean())
    assert found.differences["roc_auc"] == pytest.approx(found.judged[-1].metric.value - found.judged[0].metric.value)


def test_a_group_below_the_least_size_is_measured_and_not_judged(task):
    values, labels, answers = groups(north=300, south=200, isle=49)
    found = sliced(task, "side", values, labels, answers, 0.6, NOON[: len(values)])
    isle = found.groups[0]
    assert (isle.metric, isle.note) == (None, "49 rows, fewer than 50")
    assert isle.figures["label"] == pytest.approx(labels[values == "isle"].mean())
    assert {group.value for group in found.judged} == {"north", "south"}
    without = values != "isle"
    alone = sliced(task, "side", values[without], labels[without], answers[without], 0.6, NOON[: sum(without)])
    assert found.differences == alone.differences


def test_a_group_of_one_class_says_so(task):
    values, labels, answers = groups(north=300, calm=100)
    labels[values == "calm"] = 0
    calm = sliced(task, "side", values, labels, answers, 0.6, NOON[: len(values)]).groups[0]
    assert (calm.metric, calm.note) == (None, "only the label 0 in 100 rows")
    assert "missed" not in calm.figures
    assert calm.figures["label"] == 0


def test_rows_without_a_value_are_a_group(task):
    values, labels, answers = groups(north=300, null=200)
    values[values == "null"] = ""
    found = sliced(task, "side", values, labels, answers, 0.6, NOON[: len(values)])
    assert [(group.value, group.rows) for group in found.groups] == [("", 200), ("north", 300)]


def test_no_group_is_large_enough(task):
    found = sliced(task, "side", *groups(a=10, b=20), 0.6, NOON[:30])
    assert (found.judged, found.differences) == ((), {})


def test_a_group_is_judged_over_its_own_days(task):
    values, labels, answers = groups(north=300, south=300)
    stamps = np.where(values == "north", np.arange(600) % 15, np.arange(600) % 5) * 86_400_000_000

    def judged(at):
        return {each.value: each.metric for each in sliced(task, "side", values, labels, answers, 0.6, at).groups}

    over_days, over_cases = judged(stamps), judged(NOON[:600])
    assert over_days["south"] == over_cases["south"]  # five days are too few
    assert over_days["north"].value == over_cases["north"].value
    assert over_days["north"] != over_cases["north"]
