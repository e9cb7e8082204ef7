"""The card of a version: what it says, and that a browser shows it, on a phone, by day and by night."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from contracts.clock import VirtualClock
from contracts.plot import round_values
from tests.browser import look
from training.frame import Frame
from training.making import make_version
from training.model_card import model_card
from training.records import card_path, make_bundle, write_card
from training.tracking import Revision


@pytest.fixture
def binary_version(make_task, make_frame, locations, cutoff):
    def run(champion=None, last_month=None, **sections):
        task = make_task(**sections)
        frame = make_frame(task)
        made = make_version(task, frame, cutoff, champion, lap=str, say=str, last_month=last_month)
        by, run = Revision("commit", "", "lock"), SimpleNamespace(id="0123456789")
        return made, make_bundle(task, locations, VirtualClock(cutoff), frame, made, "d" * 64, by, run)

    return run


@pytest.fixture
def regression_version(make_task, make_frame, locations, cutoff):
    success = {"metric": "pinball", "floor": 50, "cost": {"too_high": 1, "too_low": 2}}
    task = make_task(kind="regression", quantiles=(0.1, 0.5, 0.9), success=success)
    known = make_frame(task).table
    weight = known["feature.weight"].fill_null(0).to_numpy()
    days = 3 * weight + np.random.default_rng(1).normal(size=len(weight))
    spine = known.select(task_columns := ["parcel", "asked_at", "depot", "late", "told_at"])
    spine = spine.set_column(task_columns.index("late"), "late", pa.array(days))
    names = [name for name in known.column_names if name.startswith("feature.")]
    features = known.select(names).rename_columns([name.removeprefix("feature.") for name in names])
    frame = Frame.of(spine, features, task.spine, kind="regression", service_fingerprint="f" * 64)
    made = make_version(task, frame, cutoff, None, lap=str, say=str)
    by, run = Revision("commit", "", "lock"), SimpleNamespace(id="0123456789")
    return made, make_bundle(task, locations, VirtualClock(cutoff), frame, made, "d" * 64, by, run)


def told(page):
    """The page's words, tags and spaces aside."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page.partition("<body>")[2]))


def test_a_manager_reads_what_it_is_and_how_good(binary_version):
    made, bundle = binary_version()
    found = made.evaluation
    page = write_card(bundle, found.to_dict(), version=3, status="candidate")
    assert card_path(bundle.path).read_text() == page
    assert card_path(bundle.path).parent == bundle.path.parent
    words = told(page)
    assert "late_parcel, version 3" in words
    assert "candidate: passed every gate" in words
    assert f"the first the higher probability {found.metrics['roc_auc'].value:.0%} of the time" in words
    assert f"off by {100 * found.metrics['ece'].value:.1f} percentage points" in words
    assert "d" * 64 in words
    assert "2024-01-31 to 2024-02-18" in words
    assert "skewless reproduce late_parcel@3" in words
    assert "there are too few days to draw" in words
    over_days = told(write_card(bundle, found.to_dict() | {"days": 18}, version=3, status="candidate"))
    assert "draws the 18 days whole" in over_days
    assert f"With cases drawn one by one, roc_auc is {found.by_case.value:.4f}" in over_days
    for gate in made.gates:
        assert gate.name in words
    for group in found.slices[0].groups:
        assert f"{group.metric.value:.4f}" in words
    for name in found.metrics:
        assert f"{name}: " in words


def test_a_rejected_version_says_that_it_reaches_nobody_and_why(binary_version):
    made, bundle = binary_version(success={"metric": "roc_auc", "floor": 0.99, "cost": {"false_alarm": 1, "missed": 3}})
    words = told(write_card(bundle, made.evaluation.to_dict(), version=1, status="rejected"))
    assert "rejected: reaches nobody" in words
    assert "It reaches nobody: 1 of 8 gates did not pass: floor (fail)." in words


def test_other_versions_are_in_words_and_beside_its_figures(binary_version):
    _, weak = binary_version(training={"window": "30d", "validation": "5d", "holdout": "7d",
                                       "params": {"num_iterations": 2, "min_data_in_leaf": 500}})  # fmt: skip
    made, bundle = binary_version(champion=weak)
    words = told(write_card(bundle, made.evaluation.to_dict(), version=2, status="candidate"))
    assert "Beside the present champion (trained 2024-03-01, model " in words
    assert "on the same cases, it is better, beyond chance" in words
    assert f"{made.evaluation.champion.metrics['roc_auc'].value:.4f}" in words
    made, bundle = binary_version(champion=bundle, last_month=bundle)
    words = told(write_card(bundle, made.evaluation.to_dict(), version=2, status="candidate"))
    assert "it is no different beyond chance" in words
    assert "The champion of 30 days before is the present one." in words


def test_groups_that_are_too_small_are_named_as_a_limit(binary_version):
    made, bundle = binary_version(fairness={"slices": ["depot"], "min_rows": 100_000})
    words = told(write_card(bundle, made.evaluation.to_dict(), version=2, status="rejected"))
    assert "nothing is known of how it serves them: depot a, depot b, depot c, depot d" in words
    assert "fewer than two groups are large enough" in words


def test_what_a_stranger_wrote_is_text_and_not_markup(binary_version):
    made, bundle = binary_version(description="<script>alert(1)</script> & co")
    page = write_card(bundle, made.evaluation.to_dict(), version=1, status="candidate")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in page


def test_a_regression_says_how_far_off_it_is_and_what_its_intervals_hold(regression_version):
    made, bundle = regression_version
    page = write_card(bundle, made.evaluation.to_dict(), version=1, status="candidate")
    words = told(page)
    assert f"It is off by {made.evaluation.metrics['mae'].value:.4f} on average, in the unit of late" in words
    [interval] = made.evaluation.intervals
    assert f"Its 80% interval holds {interval.found.value:.1%} of the outcomes" in words
    assert {"Predicted and actual", "Coverage"} <= set(re.findall(r"<h3>([^<]+)</h3>", page))


def test_a_browser_shows_it_on_a_phone_by_day_and_by_night(chromium, binary_version, tmp_path):
    made, bundle = binary_version()
    page = write_card(bundle, made.evaluation.to_dict(), version=1, status="candidate")
    for dark in (False, True):
        seen = look(chromium, tmp_path, page, dark=dark)
        assert seen["room"] == 390
        assert seen["wide"] <= 390
        assert seen["plots"] == 7  # ROC, precision and recall, reliability, cost, days, latency, depots
        assert seen["fetched"] == []
        assert seen["letters"] > 9
        assert (seen["ground"], seen["ink"]) == (
            ("rgb(20, 25, 31)", "rgb(230, 235, 240)") if dark else ("rgb(255, 255, 255)", "rgb(29, 39, 51)")
        )


def test_a_browser_shows_a_regressions_too(chromium, regression_version, tmp_path):
    made, bundle = regression_version
    page = model_card(bundle.metadata, json.loads(json.dumps(made.evaluation.to_dict())), version=1,
                      status="candidate", model_hash=bundle.model_hash)  # fmt: skip
    seen = look(chromium, tmp_path, page, dark=False)
    assert (seen["plots"], seen["fetched"]) == (5, [])
    assert seen["wide"] <= 390


def test_nothing_in_it_points_elsewhere(binary_version):
    made, bundle = binary_version()
    page = write_card(bundle, made.evaluation.to_dict(), version=1, status="candidate")
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?:|<script|<link", page)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.71, 0.79, [0.72, 0.74, 0.76, 0.78]),
        (-20, 50, [-20, 0, 20, 40]),
        (3, 3, [3]),
    ],
)
def test_an_axis_has_round_values(low, high, expected):
    assert round_values(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(("high", "expected"), [(0.5, [0]), (2, [0, 1, 2]), (12.6, [0, 5, 10])])
def test_an_axis_that_counts_has_whole_values(high, expected):
    assert round_values(0, high, whole=True) == expected
