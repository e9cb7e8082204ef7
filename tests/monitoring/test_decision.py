"""The decision table, row by row and by Hypothesis against a second, plainer reading of it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from contracts.state import open_state, retrain_requests
from contracts.task import Task, load_task
from monitoring.alerts import list_alerts, list_reviews, read_events
from monitoring.decision import decide, record
from monitoring.report import ChunkReport, Drift, EstimatorTrust, Freshness, MonitoringReport, Performance, Quality
from monitoring.skew_report import FeatureSkew, SkewReport
from tests.monitoring.conftest import DAY, START, TASK

NOW = START + 30 * DAY
SERVED = START + 20 * DAY
"""The first day of the log."""
FLOOR = 0.7


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Two chunks in a row, half the features, floor 0.7, cool-down 7 days, schedule 60 days."""
    return write_task(tmp_path_factory.mktemp("tasks"), "roc_auc")


def write_task(folder: Path, metric: str) -> Task:
    (folder / "churn.sql").write_text("select 1")
    (folder / "churn.toml").write_text(TASK.replace("METRIC", metric))
    return load_task(folder / "churn.toml")


def chunk(
    day: int,
    *,
    drift: float | None = 0.0,
    realized: float | None = None,
    estimated: float | None = None,
    settled: bool = True,
    state: Any = "judged",
    vanished: tuple[str, ...] = (),
    metric: str = "roc_auc",
) -> ChunkReport:
    drifts = () if drift is None else tuple(Drift(f"f{i}", 0.5, 0.1, i < drift * 10) for i in range(10))
    return ChunkReport(
        start=SERVED + day * DAY,
        end=SERVED + (day + 1) * DAY,
        rows=500,
        state=state,
        drift=drifts,
        realized=None if realized is None else Performance(metric, realized),
        estimated=None if estimated is None else Performance("roc_auc", estimated),
        labelled=500,
        settled=settled,
        quality=tuple(Quality(name, 1.0, 0.1, 0.0) for name in vanished),
    )


def report(
    *chunks: ChunkReport, trusted: bool | None = True, skewed: int = 0, metric: str = "roc_auc"
) -> MonitoringReport:
    broken = FeatureSkew("f0", checked=100, different=skewed)
    broken.causes.update({"stale": skewed})
    return MonitoringReport(
        task="churn",
        version=3,
        bundle_hash="b",
        as_of=NOW,
        metric=metric,
        estimated_metric="roc_auc",
        rows=500 * len(chunks),
        chunks=chunks,
        estimator=EstimatorTrust(trusted, None if trusted is None else 0.1, 2, 0.05),
        labels=None,
        skew=SkewReport(100, (broken, FeatureSkew("f1", checked=100))),
    )


RECENT = NOW - 10 * DAY
"""Past the cool-down, long before the schedule."""


def test_nothing_seen_nothing_done(task: Task) -> None:
    found = decide(task, report(chunk(0, realized=0.8), chunk(1, realized=0.8)), last_training=RECENT, now=NOW)
    assert (found.action, found.rule, found.findings, found.request) == ("none", "nothing", (), None)
    assert not found.blocks_promotion


@pytest.mark.parametrize("source", ["realized", "estimated"])
def test_decay_asks_for_a_retraining(task: Task, source: str) -> None:
    seen = report(*(chunk(day, **{source: 0.6}) for day in range(2)))  # type: ignore[arg-type]
    found = decide(task, seen, last_training=RECENT, now=NOW)
    assert (found.action, found.rule, found.request) == ("retrain", "decay", "decay")
    assert source in found.reasons[0]
    assert "skewless retrain churn" in found.next_step
    assert [each["source"] for each in found.evidence["performance"]] == [source] * 2


def test_one_bad_chunk_is_not_decay(task: Task) -> None:
    for values in ((0.8, 0.6), (0.6, 0.8)):
        seen = report(*(chunk(day, realized=value) for day, value in enumerate(values)))
        assert decide(task, seen, last_training=RECENT, now=NOW).action == "none"


def test_exactly_at_the_floor_is_not_below_it(task: Task) -> None:
    seen = report(chunk(0, realized=FLOOR), chunk(1, realized=FLOOR))
    assert decide(task, seen, last_training=RECENT, now=NOW).action == "none"


def test_a_loss_decays_upwards(tmp_path: Path) -> None:
    losses = write_task(tmp_path, "log_loss")
    high = report(*(chunk(day, realized=0.9, metric="log_loss") for day in range(2)), metric="log_loss")
    low = report(*(chunk(day, realized=0.3, metric="log_loss") for day in range(2)), metric="log_loss")
    assert decide(losses, high, last_training=RECENT, now=NOW).rule == "decay"
    assert decide(losses, low, last_training=RECENT, now=NOW).rule == "nothing"


def test_an_estimate_of_another_metric_is_not_held_against_the_floor(tmp_path: Path) -> None:
    losses = write_task(tmp_path, "log_loss")
    seen = report(chunk(0, estimated=0.9), chunk(1, estimated=0.9), metric="log_loss")
    assert decide(losses, seen, last_training=RECENT, now=NOW).rule == "nothing"


@pytest.mark.parametrize("trusted", [None, False])
def test_an_estimator_that_is_not_trusted_does_not_trigger(task: Task, trusted: bool | None) -> None:
    seen = report(chunk(0, estimated=0.5), chunk(1, estimated=0.5), trusted=trusted)
    found = decide(task, seen, last_training=RECENT, now=NOW)
    assert found.action == "none"
    assert "estimates do not count" in " ".join(found.reasons)


def test_unsettled_labels_do_not_trigger(task: Task) -> None:
    seen = report(*(chunk(day, realized=0.5, settled=False) for day in range(2)), trusted=None)
    assert decide(task, seen, last_training=RECENT, now=NOW).action == "none"


@pytest.mark.parametrize("state", ["open", "too small"])
def test_an_open_or_small_chunk_decides_nothing(task: Task, state: str) -> None:
    seen = report(*(chunk(day, realized=0.5, drift=1.0, state=state) for day in range(2)))
    found = decide(task, seen, last_training=RECENT, now=NOW)
    assert found.action == "none"
    assert "no chunk is complete and large enough to judge" in found.reasons


def test_decay_is_told_from_the_latest_chunks_that_have_a_figure(task: Task) -> None:
    """Labels are late: the last days have none yet, the days before do."""
    seen = report(*(chunk(day, realized=0.6) for day in range(2)), *(chunk(day) for day in (2, 3)), trusted=None)
    assert decide(task, seen, last_training=RECENT, now=NOW).rule == "decay"


def test_within_the_cooldown_decay_alerts_and_says_when(task: Task) -> None:
    seen = report(chunk(8, realized=0.6), chunk(9, realized=0.6))
    trained = NOW - 2 * DAY
    found = decide(task, seen, last_training=trained, now=NOW)
    assert (found.action, found.rule, found.request) == ("alert", "decay_in_cooldown", None)
    (finding,) = found.findings
    assert finding.kind == "decay"
    allowed = trained + 7 * DAY
    assert f"{allowed:%FT%TZ}" in finding.message
    assert "less than 7d old" in finding.message
    assert decide(task, seen, last_training=trained, now=allowed).action == "retrain"
    assert decide(task, seen, last_training=trained, now=allowed - timedelta(microseconds=1)).action == "alert"


def test_the_naive_baseline_holds_nobody_up(task: Task) -> None:
    """Before a first version is champion the baseline answers, as badly as it must: nothing has decayed, and an alert
    would block the promotion of the version that is to take its place."""
    seen = replace(report(chunk(8, realized=0.5), chunk(9, realized=0.5)), version=0)
    found = decide(task, seen, last_training=NOW - 2 * DAY, now=NOW)
    assert (found.action, found.rule, found.request) == ("none", "nothing", None)
    assert not found.blocks_promotion
    assert f"another training is not asked for before {NOW + 5 * DAY:%FT%TZ}" in found.reasons[-1]
    assert decide(task, seen, last_training=NOW - 7 * DAY, now=NOW).request == "decay"  # nobody came to take it
    drifted = replace(report(chunk(8, realized=0.5, drift=0.9), chunk(9, realized=0.5, drift=0.9)), version=0)
    assert decide(task, drifted, last_training=NOW - 2 * DAY, now=NOW).rule == "drift_performance_unknown"


def test_the_schedule_is_due_to_the_microsecond(task: Task) -> None:
    fine = report(chunk(0, realized=0.8), chunk(1, realized=0.8))
    due = decide(task, fine, last_training=NOW - 60 * DAY, now=NOW)
    assert (due.action, due.rule, due.request) == ("retrain", "schedule", "schedule")
    assert decide(task, fine, last_training=NOW - 60 * DAY + timedelta(microseconds=1), now=NOW).action == "none"
    assert decide(task, fine, last_training=None, now=NOW).rule == "schedule"


def test_drift_with_performance_holding_is_reviewed_not_retrained(task: Task) -> None:
    seen = report(chunk(0, drift=0.6, realized=0.8), chunk(1, drift=0.5, estimated=0.8))
    found = decide(task, seen, last_training=RECENT, now=NOW)
    assert (found.action, found.rule, found.request) == ("alert_and_review", "drift_performance_holds", None)
    (finding,) = found.findings
    assert finding.kind == "drift"
    assert found.review_due == SERVED + 4 * DAY
    assert finding.evidence["features"] == ["f0", "f1", "f2", "f3", "f4"]


@pytest.mark.parametrize(
    "latest",
    [{}, {"realized": 0.8, "settled": False}, {"realized": 0.6}],
    ids=["no figure", "unsettled", "one bad chunk"],
)
def test_drift_with_unknown_performance_alerts(task: Task, latest: dict[str, Any]) -> None:
    seen = report(chunk(0, drift=0.6, realized=0.8), chunk(1, drift=0.6, **latest))
    found = decide(task, seen, last_training=RECENT, now=NOW)
    assert (found.action, found.rule) == ("alert", "drift_performance_unknown")
    assert [each.kind for each in found.findings] == ["drift"]


def test_drift_in_one_chunk_of_two_is_not_drift_but_in_the_only_one_it_is(task: Task) -> None:
    two = report(chunk(0, drift=0.0, realized=0.8), chunk(1, drift=1.0, realized=0.8))
    assert decide(task, two, last_training=RECENT, now=NOW).action == "none"
    one = report(chunk(1, drift=1.0, realized=0.8))
    assert decide(task, one, last_training=RECENT, now=NOW).action == "alert_and_review"


def test_skew_is_raised_beside_everything_else(task: Task) -> None:
    fine = decide(task, report(chunk(0, realized=0.8), skewed=3), last_training=RECENT, now=NOW)
    assert (fine.action, fine.rule, fine.blocks_promotion) == ("alert", "skew", True)
    counted = {"mismatches": 3, "features": {"f0": 3}, "causes": {"stale": 3}}
    assert fine.findings[0].evidence == counted | {"share": 1.0}
    decayed = report(chunk(0, realized=0.6), chunk(1, realized=0.6), skewed=3)
    both = decide(task, decayed, last_training=RECENT, now=NOW)
    assert (both.action, both.rule) == ("retrain", "decay")
    assert [each.kind for each in both.findings] == ["skew"]
    assert any("3 of 200" in reason for reason in both.reasons)


def test_a_vanished_feature_is_raised(task: Task) -> None:
    seen = report(chunk(0, realized=0.8, vanished=("f3", "f4")), chunk(1, realized=0.8, vanished=("f3",)))
    found = decide(task, seen, last_training=RECENT, now=NOW)
    assert (found.action, found.rule) == ("alert", "data_quality")
    assert found.findings[0].evidence["features"] == {"f3": "no value at all"}
    assert found.findings[0].kind == "data_quality"


def test_every_alert_says_what_why_and_what_to_do(task: Task) -> None:
    seen = [
        report(chunk(0, drift=1.0, realized=0.8, vanished=("f3",)), skewed=1),
        report(chunk(0, drift=1.0)),
        report(chunk(0, realized=0.6), chunk(1, realized=0.6)),
    ]
    found = [decide(task, each, last_training=NOW - DAY, now=NOW) for each in seen]
    messages = [finding.message for decision in found for finding in decision.findings]
    assert len(messages) == 5
    for message in messages:
        assert message.startswith("What: ")
        assert "Why: " in message
        assert "Do: " in message


chunks = st.builds(
    lambda drift, realized, estimated, settled, state, vanished: {
        "drift": drift,
        "realized": realized,
        "estimated": estimated,
        "settled": settled,
        "state": state,
        "vanished": vanished,
    },
    drift=st.sampled_from([None, 0.0, 0.4, 0.5, 1.0]),
    realized=st.sampled_from([None, 0.6, 0.7, 0.8]),
    estimated=st.sampled_from([None, 0.6, 0.8]),
    settled=st.booleans(),
    state=st.sampled_from(["judged", "judged", "judged", "open", "too small"]),
    vanished=st.sampled_from([(), ("f1",)]),
)
ages = st.none() | st.integers(0, 70).map(lambda days: NOW - days * DAY)


def expected(
    days: list[dict[str, Any]], trusted: bool | None, skewed: int, trained: datetime | None, spent: int
) -> str:
    """The table of the design, read slowly."""
    judged = [day for day in days if day["state"] == "judged"]
    figures = []
    for day in judged:
        if day["settled"] and day["realized"] is not None:
            figures.append(day["realized"])
        elif trusted is True and day["estimated"] is not None:
            figures.append(day["estimated"])
        else:
            figures.append(None)
    known = [figure for figure in figures if figure is not None]
    if len(known) >= 2 and known[-1] < FLOOR and known[-2] < FLOOR:
        if trained is not None and NOW - trained < 7 * DAY:
            return "alert decay_in_cooldown"
        if spent >= 6:
            return "alert decay_over_budget"
        new = sum(500 for day in range(len(days)) if trained is None or SERVED + (day + 1) * DAY > trained)
        return "retrain decay" if trained is None or new >= 100 else "alert decay_labels_immature"
    if (trained is None or NOW - trained >= 60 * DAY) and spent < 6:
        return "retrain schedule"
    last, last_figures = judged[-2:], figures[-2:]
    if last and all(day["drift"] is not None and day["drift"] >= 0.5 for day in last):
        if all(figure is not None and figure >= FLOOR for figure in last_figures):
            return "alert_and_review drift_performance_holds"
        return "alert drift_performance_unknown"
    if skewed:
        return "alert skew"
    if last and all(day["vanished"] for day in last):
        return "alert data_quality"
    return "none nothing"


@given(
    st.lists(chunks, max_size=4),
    st.sampled_from([None, True, False]),
    st.sampled_from([0, 0, 5]),
    ages,
    st.integers(0, 7),
)
def test_the_table_agrees_with_its_slow_reading(
    task: Task, days: list[dict[str, Any]], trusted: bool | None, skewed: int, trained: datetime | None, spent: int
) -> None:
    seen = report(*(chunk(day, **what) for day, what in enumerate(days)), trusted=trusted, skewed=skewed)
    often = [NOW - 89 * DAY] * spent + [NOW - 90 * DAY, NOW + DAY]  # neither too old nor to come
    found = decide(task, seen, last_training=trained, trained=often, now=NOW)
    assert f"{found.action} {found.rule}" == expected(days, trusted, skewed, trained, spent)
    assert decide(task, seen, last_training=trained, trained=often, now=NOW) == found
    assert (found.request is not None) == (found.action == "retrain")
    assert ("skew" in [each.kind for each in found.findings]) == bool(skewed)
    assert found.blocks_promotion == bool(found.findings)
    assert found.action != "none" or not found.findings
    json.dumps(found.to_dict())


def test_recording_twice_changes_nothing(task: Task, tmp_path: Path) -> None:
    engine = open_state(f"sqlite:///{tmp_path / 'state.db'}")
    seen = report(chunk(0, realized=0.6), chunk(1, realized=0.6), skewed=2)
    found = decide(task, seen, last_training=RECENT, now=NOW)
    first = record(engine, found, NOW)
    assert first.request is not None
    assert len(first.alerts) == 1
    again = record(engine, found, NOW + DAY)
    assert (again.alerts, again.request) == ((), None)
    with engine.connect() as connection:
        (row,) = connection.execute(select(retrain_requests)).mappings()
    assert (row["task"], row["reason"], row["requested_at"], row["finished_at"]) == ("churn", "decay", NOW, None)
    assert row["evidence"]["skew_mismatches"] == 2
    (alert,) = list_alerts(engine, "churn")
    assert (alert["kind"], alert["opened_at"], alert["message"]) == ("skew", NOW, found.findings[0].message)


def test_a_finished_request_makes_room_for_another(task: Task, tmp_path: Path) -> None:
    engine = open_state(f"sqlite:///{tmp_path / 'state.db'}")
    found = decide(task, report(chunk(0)), last_training=None, now=NOW)
    first = record(engine, found, NOW)
    with engine.begin() as connection:
        connection.execute(update(retrain_requests).values(finished_at=NOW, outcome="rejected"))
    assert record(engine, found, NOW).request not in (None, first.request)


def test_deciding_nothing_records_nothing(task: Task, tmp_path: Path) -> None:
    engine = open_state(f"sqlite:///{tmp_path / 'state.db'}")
    found = decide(task, report(chunk(0, realized=0.8)), last_training=RECENT, now=NOW)
    recorded = record(engine, found, NOW)
    assert (recorded.alerts, recorded.request) == ((), None)
    assert list_alerts(engine, open_only=False) == []


def test_trainings_beyond_the_budget_are_not_asked_for(task: Task) -> None:
    seen = report(chunk(0, realized=0.6), chunk(1, realized=0.6))
    trained = [NOW - days * DAY for days in (10, 20, 30, 40, 50, 60)]
    found = decide(task, seen, last_training=RECENT, trained=trained, now=NOW)
    assert (found.action, found.rule, found.request) == ("alert", "decay_over_budget", None)
    assert f"{NOW + 30 * DAY:%F}" in found.next_step
    assert decide(task, seen, last_training=RECENT, trained=trained[1:], now=NOW).action == "retrain"
    fine = report(chunk(0, realized=0.8))
    assert decide(task, fine, last_training=trained[-1], trained=trained, now=NOW).action == "none"


def test_decay_without_new_labels_waits_for_them(task: Task) -> None:
    """The last training saw all there is to learn from: another would give the same model."""
    seen = report(chunk(0, realized=0.6), chunk(1, realized=0.6))
    trained = SERVED + 2 * DAY
    found = decide(task, seen, last_training=trained, now=NOW)
    assert (found.action, found.rule) == ("alert", "decay_labels_immature")
    assert "wait for labels: 100 more" in found.next_step


def test_features_together_are_drift_too(task: Task) -> None:
    turned = replace(chunk(0, realized=0.8), together=(Drift("reconstruction", 9.0, 5.0, True, "reconstruction"),))
    found = decide(task, report(turned), last_training=RECENT, now=NOW)
    assert found.rule == "drift_performance_holds"
    assert found.findings[0].evidence == {"features": [], "detectors": ["reconstruction"]}


@pytest.mark.parametrize(
    ("quality", "told"),
    [
        (Quality("f3", 0.5, 0.1, 0.0), "missing more than usual"),
        (Quality("f3", 0.39, 0.1, 0.0), None),
        (Quality("f3", 0.0, 0.1, 0.5), "values the reference never showed"),
        (Quality("f3", 0.0, 0.1, 0.0, 0.15), "one value far more often than usual"),
        (Quality("f3", 0.0, 0.1, 0.0, 0.14), None),
        (Quality("f3", 1.0, 1.0, 0.0), None),
    ],
)
def test_data_quality_is_held_against_the_reference(task: Task, quality: Quality, told: str | None) -> None:
    seen = report(*(replace(chunk(day, realized=0.8), quality=(quality,)) for day in range(2)))
    found = decide(task, seen, last_training=RECENT, now=NOW)
    assert [each.evidence["features"] for each in found.findings] == ([{"f3": told}] if told else [])


def test_views_that_grow_old_or_fall_silent_are_raised(task: Task) -> None:
    rules = task.monitoring.model_copy(update={"max_age": {"slow": timedelta(hours=3)}})
    task = task.model_copy(update={"monitoring": rules})
    good = (
        Freshness("slow", 3600.0, 7200.0, 0.0),
        Freshness("gone", 60.0, 60.0, 0.5),
        Freshness("never", None, None, 1),
    )
    bad = (
        Freshness("slow", 11000.0, 11000.0, 0.0),
        Freshness("gone", None, None, 1.0),
        Freshness("never", None, None, 1),
    )
    days = [replace(chunk(day, realized=0.8), freshness=good if day == 0 else bad) for day in range(3)]
    found = decide(task, report(*days), last_training=RECENT, now=NOW)
    assert (found.action, found.rule) == ("alert", "freshness")
    assert found.findings[0].evidence == {"views": ["gone", "slow"]}
    assert decide(task, report(*days[:2]), last_training=RECENT, now=NOW).action == "none"


def test_an_audit_on_record_raises_skew_until_a_clean_one_follows(task: Task) -> None:
    audit = {"id": 4, "at": NOW, "checked": 50, "mismatches": 2}
    seen = replace(report(chunk(0, realized=0.8)), audit_on_record=audit)
    found = decide(task, seen, last_training=RECENT, now=NOW)
    assert (found.rule, found.findings[0].evidence) == ("skew", {"audit": 4, "mismatches": 2})
    clean = replace(seen, audit_on_record=audit | {"id": 5, "mismatches": 0})
    assert decide(task, clean, last_training=RECENT, now=NOW).rule == "nothing"
    json.dumps(seen.to_dict())


def test_an_alert_is_resolved_once_later_chunks_no_longer_show_it(task: Task, tmp_path: Path) -> None:
    engine = open_state(f"sqlite:///{tmp_path / 'state.db'}")
    drifted = decide(task, report(chunk(0, drift=1.0, realized=0.8)), last_training=RECENT, now=NOW)
    opened = record(engine, drifted, SERVED + DAY)
    assert opened.review is not None
    (review,) = list_reviews(engine, "churn")
    assert (review["alert"], review["due_at"]) == (opened.alerts[0], drifted.review_due)
    old = decide(task, report(chunk(0, realized=0.8), chunk(1, realized=0.8)), last_training=RECENT, now=NOW)
    assert record(engine, old, SERVED + 2 * DAY).resolved == ()  # the first of its chunks is what the alert is about
    new = decide(task, report(chunk(1, realized=0.8), chunk(2, realized=0.8)), last_training=RECENT, now=NOW)
    assert record(engine, new, SERVED + 3 * DAY).resolved == opened.alerts
    assert list_alerts(engine) == list_reviews(engine) == []
    assert [event["what"] for event in read_events(engine, opened.alerts[0])] == ["opened", "resolved"]
    again = record(engine, drifted, SERVED + 9 * DAY)
    assert len(again.alerts) == 1  # nobody has seen it: the same evidence once more is news


def test_what_is_still_seen_stays_open(task: Task, tmp_path: Path) -> None:
    engine = open_state(f"sqlite:///{tmp_path / 'state.db'}")
    for day in range(3):
        seen = report(chunk(day, drift=1.0, realized=0.8), chunk(day + 1, drift=1.0, realized=0.8))
        record(engine, decide(task, seen, last_training=RECENT, now=NOW), SERVED + (day + 2) * DAY)
    assert len(list_alerts(engine)) == 1
