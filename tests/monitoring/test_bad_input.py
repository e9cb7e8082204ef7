"""Input that is wrong is counted, explained and used nowhere: the figures are those of what is left."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from contracts.bundle import load_bundle
from monitoring.decision import decide
from monitoring.monitor import ForeignBundle, monitor
from monitoring.outcomes import LabelAccount
from monitoring.report import MonitoringReport
from tests.monitoring.conftest import DAY, START, Cases, World, make_bundle

LATER = START + 30 * DAY


def watch(world: World) -> MonitoringReport:
    return monitor(
        world.task, world.locations, world.engine, as_of=LATER, bundle=world.bundle, version=1, store=world.store
    )


def test_labels_that_are_wrong_in_every_way_leave_the_others_alone(world: World) -> None:
    """All of it at once, landed in the spine's own table, where ids repeat and are missing."""
    cases = Cases.make(START, 1, 300, seed=2)
    world.log(cases)
    good = world.everything
    rows = good[good["case_id"].str.startswith("c2-")].reset_index(drop=True)
    repeated = rows.iloc[:7].assign(known_at=lambda each: each["known_at"] + DAY)
    contradicting = rows.iloc[7:12].assign(churned=lambda each: 1 - each["churned"])
    unknown = rows.iloc[12:15].assign(case_id=["nobody-1", "nobody-2", "nobody-3"])
    nameless = rows.iloc[15:17].assign(case_id=None)
    spoiled = good.copy()
    early = spoiled["case_id"].isin(rows["case_id"].iloc[20:24])
    spoiled.loc[early, "known_at"] = spoiled.loc[early, "asked_at"] - DAY
    strange = spoiled["case_id"].isin(rows["case_id"].iloc[24:26])
    spoiled.loc[strange, "churned"] = 7
    world.outcomes(pd.concat([spoiled, repeated, contradicting, unknown, nameless]))

    report = watch(world)
    assert report.labels is not None
    account = report.labels.to_dict()
    assert account == {
        "known": 300 - 2 + 3,
        "joined": 300 - 5 - 4 - 2,
        "unknown_case": 3,
        "duplicate": 7,
        "contradictory": 5,
        "before_prediction": 4,
        "without_case": 0,
        "invalid": 2,
        "nameless": 2,
    }
    left = rows.drop(index=[*range(7, 12), *range(20, 26)])
    (chunk,) = report.chunks
    assert chunk.labelled == len(left)
    assert chunk.realized is not None
    assert chunk.realized.value == pytest.approx(roc_auc_score(left["churned"], left["score"]))
    acted = left["score"] >= 0.5
    cost = np.where(acted, (1 - left["churned"]) * 1, left["churned"] * 5).mean()
    assert chunk.cost is not None
    assert chunk.cost.value == pytest.approx(cost)


def test_a_week_without_requests_is_a_gap_and_not_a_chunk(world: World) -> None:
    world.log(Cases.make(START, 1, 300, seed=2))
    world.log(Cases.make(START + 7 * DAY, 1, 300, seed=3))
    assert [chunk.start for chunk in watch(world).chunks] == [START, START + 7 * DAY]


def test_labels_of_one_class_trigger_nothing(world: World) -> None:
    cases = Cases.make(START, 3, 300, seed=2)
    cases.frame["churned"] = 1
    world.log(cases)
    report = watch(world)
    assert all(chunk.realized is not None and chunk.realized.value is None for chunk in report.chunks)
    assert "3 chunks have labels of one class only: their roc_auc does not exist" in report.notes
    found = decide(world.task, report, last_training=START - DAY, now=LATER)
    assert (found.action, found.request) == ("none", None)


def test_a_feature_that_vanished_is_an_alert_and_no_traceback(world: World) -> None:
    cases = Cases.make(START, 2, 300, seed=2)
    cases.frame[["visits", "spend"]] = np.float32(np.nan)
    cases.frame["plan"] = None
    world.log(cases)
    report = watch(world)
    assert all(chunk.drifted_features == ("visits", "spend", "plan") for chunk in report.chunks)
    found = decide(world.task, report, last_training=LATER - 10 * DAY, now=LATER)
    [alert] = [each for each in found.findings if each.kind == "data_quality"]
    assert alert.evidence["features"] == dict.fromkeys(("plan", "spend", "visits"), "no value at all")


def test_a_reference_from_another_task_is_refused(world: World) -> None:
    world.log(Cases.make(START, 1, 300, seed=2))
    world.bundle = make_bundle(world.root / "loans", world.past.reference(), task="loans")
    with pytest.raises(ForeignBundle, match=r"Bundle loans is of task 'loans', not 'churn'"):
        watch(world)


def test_a_reference_from_another_bundle_changes_no_figure_of_the_first(world: World) -> None:
    world.log(Cases.make(START, 2, 300, seed=2))
    first, own = watch(world), world.bundle
    shifted = Cases.make(START - 14 * DAY, 14, 300, seed=8, shift=2.0)
    world.bundle = make_bundle(world.root / "shifted", shifted.reference())
    other = watch(world)
    assert all(chunk.drifted_features for chunk in other.chunks)
    world.bundle = load_bundle(own.path)
    assert watch(world) == first


def test_whatever_is_counted_of_labels_is_explained() -> None:
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    explained = page.partition("## What is wrong with the input")[2].partition("\n## ")[0]
    counted = {field.name for field in fields(LabelAccount)} - {"known", "joined"}
    assert {name for name in counted if f"`{name}`" in explained} == counted
