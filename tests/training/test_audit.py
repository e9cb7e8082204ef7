"""The audit on frames with one fault each, and on one without any."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from contracts.bundle import FeatureSpec
from contracts.task import Audit
from training.audit import AuditBlocked, audit
from training.audit_leakage import leak_findings, power
from training.audit_page import audit_page
from training.findings import RULES, Finding, settled
from training.frame import PREFIX


def planted(frame, name, values, kind="number"):
    """The frame with one more feature."""
    typed = pa.array(values, pa.float32() if kind == "number" else pa.string(), from_pandas=True)
    table = frame.table.append_column(PREFIX + name, pa.chunked_array([typed]))
    return replace(frame, table=table, specs=(*frame.specs, FeatureSpec(name, kind)))


def rules(report):
    return {(finding.rule, finding.subject, finding.severity) for finding in report.findings}


@pytest.fixture
def look(make_task, make_frame, cutoff):
    def run(plant=None, **limits):
        task = make_task(audit=limits)
        frame = make_frame(task)
        if plant:
            for name, (values, *kind) in plant(frame).items():
                frame = planted(frame, name, values, *kind)
        return audit(task, frame, cutoff=cutoff, progress=lambda _: None)

    return run


def noise(frame, seed=5):
    return np.random.default_rng(seed).normal(size=frame.table.num_rows)


def ending(frame, part):
    """Positions of the last part of the window."""
    return np.arange(frame.table.num_rows) >= frame.table.num_rows * (1 - part)


FAULTS = {
    "empty": (lambda f: {"x": (np.full(f.table.num_rows, np.nan),)}, "blocking"),
    "constant": (lambda f: {"x": (np.full(f.table.num_rows, 3.0),)}, "warning"),
    "categories": (lambda f: {"x": ([f"id {i}" for i in range(f.table.num_rows)], "text")}, "warning"),
    "missing": (lambda f: {"x": (np.where(np.arange(f.table.num_rows) % 50, np.nan, noise(f)),)}, "warning"),
    "missing_change": (
        lambda f: {"x": (np.where(ending(f, 0.25) & (noise(f, 6) > -0.5), np.nan, noise(f)),)},
        "warning",
    ),
    "stopped": (lambda f: {"x": (np.where(ending(f, 0.15), np.nan, noise(f)),)}, "blocking"),
    "precision": (lambda f: {"x": (np.round(noise(f) * 1e8),)}, "warning"),
    "leak_perfect": (lambda f: {"x": (f.labels + 0.01 * noise(f),)}, "blocking"),
}


@pytest.mark.parametrize("rule", FAULTS)
def test_a_planted_fault_is_found_and_nothing_else(look, rule):
    plant, severity = FAULTS[rule]
    assert rules(look(plant)) == {(rule, "x", severity)}


def test_an_array_that_is_always_empty_blocks_and_one_that_is_never_full_does_not(look):
    nothing = lambda f: (np.full(f.table.num_rows, np.nan),)  # noqa: E731
    empty = look(lambda f: {"last[-2]": nothing(f), "last[-1]": nothing(f)})
    assert rules(empty) == {("empty", "last", "blocking")}
    short = look(lambda f: {"last[-2]": nothing(f), "last[-1]": (noise(f),)})
    assert rules(short) == {("empty", "last[-2]", "warning")}


def test_a_clean_frame_has_no_finding(look):
    report = look()
    assert report.findings == ()
    report.raise_if_blocked()
    assert report.rows == sum(report.rows_by_bucket)


@pytest.mark.parametrize("disguise", [lambda x: -2 * x + 1, np.exp, lambda x: x**3])
def test_a_monotone_disguise_of_a_feature_is_a_near_duplicate(look, disguise):
    found = look(lambda f: {"a": (noise(f),), "b": (disguise(noise(f)),)})
    assert rules(found) == {("near_duplicate", "b", "warning")}
    assert "'a'" in found.findings[0].evidence


def test_two_texts_one_to_one_are_near_duplicates(look):
    found = look(lambda f: {"x": ([None if d is None else f"depot {d}" for d in f.slice_values("depot")], "text")})
    assert rules(found) == {("near_duplicate", "x", "warning")}


def test_features_that_only_resemble_each_other_are_not_duplicates(look):
    assert look(lambda f: {"a": (noise(f),), "b": (noise(f) + 0.2 * noise(f, 9),)}).findings == ()


def test_two_features_that_are_missing_elsewhere_are_not_duplicates(look):
    def plant(frame):
        half = np.arange(frame.table.num_rows) % 2 == 0
        return {"a": (noise(frame),), "b": (np.where(half, noise(frame), np.nan),)}

    assert look(plant).findings == ()


@pytest.mark.parametrize(
    "leak",
    [
        lambda f: {"x": (np.where(f.labels, 1.0, np.nan),)},
        lambda f: {"x": (np.where(f.labels, 5.0, np.where(np.arange(f.table.num_rows) % 2, 3.0, 7.0)),)},
        lambda f: {"x": (["yes" if label else "no" for label in f.labels], "text")},
    ],
    ids=["missing unless it happened", "neither rising nor falling", "a text"],
)
def test_the_label_is_found_in_any_disguise(look, leak):
    assert ("leak_perfect", "x", "blocking") in rules(look(leak))


def test_a_texts_many_values_are_not_learned_by_heart(look):
    found = look(lambda f: {"x": ([f"id {i}" for i in range(f.table.num_rows)], "text")}, max_categories=10**6)
    [profile] = [each for each in found.features if each.name == "x"]
    assert profile.auc == pytest.approx(0.5, abs=0.02)


def test_a_blocking_finding_stops_with_its_evidence_and_the_way_on(look):
    with pytest.raises(AuditBlocked, match=r"leak_perfect x: alone it has ROC AUC 0\.99") as caught:
        look(FAULTS["leak_perfect"][0]).raise_if_blocked()
    assert "audit.accepted = ['leak_perfect:x']" in caught.value.hint
    assert caught.value.exit_status == 1


def test_an_accepted_finding_is_a_warning_that_says_so(look):
    report = look(FAULTS["leak_perfect"][0], accepted=["leak_perfect:x"])
    assert rules(report) == {("leak_perfect", "x", "warning")}
    assert report.findings[0].evidence.endswith("accepted by the task")
    report.raise_if_blocked()


@pytest.mark.parametrize(
    ("now", "earlier", "blocked"), [(0.9, 0.55, True), (0.9, 0.75, False), (0.7, 0.5, False), (0.99, 0.99, True)]
)
def test_strong_now_and_gone_earlier_is_suspect(now, earlier, blocked):
    limits = Audit(vanishing_auc=0.75, vanishing_keeps=0.5, shift=timedelta(hours=2))
    found = list(leak_findings({"x": now}, {"x": now}, {"x": earlier}, limits))
    assert bool(found) is blocked


def test_findings_come_worst_first():
    found = [Finding("late", "a", "warning", "", ""), Finding("type", "b", "info", "", "")]
    found.append(Finding("stale", "c", "blocking", "", ""))
    assert [each.subject for each in settled(found, ())] == ["c", "a", "b"]


def slow_power(values, missing, outcome):
    """The same, a case at a time: each half scored by the smoothed rates of the other."""
    half, found = len(values) // 2, []
    for fit, test in ((range(half), range(half, len(values))), (range(half, len(values)), range(half))):
        base = sum(outcome[i] for i in fit) / len(fit)
        key = ["null" if m else str(v) for v, m in zip(values, missing, strict=True)]
        scores = []
        for i in test:
            alike = [outcome[j] for j in fit if key[j] == key[i]]
            scores.append((sum(alike) + 5.0 * base) / (len(alike) + 5.0))
        truth = [bool(outcome[i]) for i in test]
        if len(set(truth)) < 2:
            return float("nan")
        found.append(roc_auc_score(truth, np.round(scores, 12)))
    return max(sum(found) / 2, 0.5)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=8, max_size=60))
def test_power_is_that_of_the_obvious_loop(rows):
    values, missing, outcome = (np.array(column) for column in zip(*rows, strict=True))
    found = power(np.where(missing, -1, values), missing, outcome, is_text=True)
    assert found == pytest.approx(slow_power(values, missing, outcome), nan_ok=True)


def test_a_number_with_few_values_has_the_power_of_the_same_text():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, 2000)
    outcome, missing = rng.random(2000) < values / 8, rng.random(2000) < 0.1
    number = power(values.astype(np.float32), missing, outcome, is_text=False)
    assert number == pytest.approx(power(np.where(missing, -1, values), missing, outcome, is_text=True))


def test_the_page_stands_alone_and_tells_every_finding(look):
    report = look(lambda f: {"x<y": (f.labels.astype(float),), "z": (np.full(f.table.num_rows, 3.0),)})
    page = audit_page(report)
    assert "x&lt;y" in page
    assert "x<y" not in page
    assert "1 blocking finding:" in page
    assert not re.search(r"https?://|<script|<link|<img|url\(", page)
    assert page.count("<svg") >= 3
    assert all(finding.rule in RULES for finding in report.findings)
