"""One run over a small world: what it reports, what it stores, and what it says of bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score
from sqlalchemy import func, select

from contracts.bundle import FeatureSpec
from monitoring.monitor import UnknownServing, monitor
from monitoring.report import Drift, MonitoringReport
from monitoring.results import last_run, monitoring_figures, monitoring_runs, read_figures
from monitoring.usual import Usual
from tests.monitoring.conftest import DAY, START, TASK, WAIT, Cases, World, make_bundle

LATER = START + 30 * DAY


def watch(world: World, *, as_of: datetime = LATER, version: int | None = 1, **how: Any) -> MonitoringReport:
    how.setdefault("bundle", world.bundle)
    return monitor(world.task, world.locations, world.engine, as_of=as_of, version=version, store=world.store, **how)


def test_a_quiet_log_is_reported_chunk_by_chunk(world: World) -> None:
    world.log(Cases.make(START, 4, 300, seed=2))
    said: list[str] = []
    report = watch(world, progress=said.append)
    assert [chunk.start for chunk in report.chunks] == [START + day * DAY for day in range(4)]
    assert [chunk.end for chunk in report.chunks] == [START + day * DAY for day in range(1, 5)]
    assert {(chunk.rows, chunk.state, chunk.maturity, chunk.settled) for chunk in report.chunks} == {
        (300, "judged", 1.0, True)
    }
    assert report.rows == 1200
    assert report.estimator.trusted is True
    assert report.estimator.chunks == 4
    assert report.skew is not None
    assert (report.skew.checked, report.skew.mismatches) == (3600, 0)
    assert report.labels is not None
    assert (report.labels.known, report.labels.joined) == (1200, 1200)
    assert report.notes == ()
    frame = world.cases[0].frame
    for chunk in report.chunks:
        day = frame[(frame["asked_at"] >= chunk.start) & (frame["asked_at"] < chunk.end)]
        assert chunk.realized is not None
        assert chunk.estimated is not None
        assert chunk.realized.value == pytest.approx(roc_auc_score(day["churned"], day["score"]))
        assert chunk.estimated.low < chunk.estimated.value < chunk.estimated.high  # type: ignore[operator]
        assert [drift.column for drift in chunk.drift] == ["visits", "spend", "plan"]
        assert [each.feature for each in chunk.quality] == ["visits", "spend", "plan"]
        ages = {each.view: each for each in chunk.freshness}
        assert ages["account"].absent == 1.0
        assert ages["account"].median_age is None
        assert ages["habits"].absent == 0.0
        assert 0 < ages["habits"].median_age < ages["habits"].max_age < 3600  # type: ignore[operator]
    assert "1,200 predictions of churn@1" in said
    json.dumps(report.to_dict())


def test_moved_inputs_are_seen_and_hold_no_surprise_for_the_estimator(world: World) -> None:
    world.log(Cases.make(START, 2, 300, seed=2))
    world.log(Cases.make(START + 2 * DAY, 2, 300, seed=3, shift=1.5))
    report = watch(world)
    assert [chunk.drift_share for chunk in report.chunks] == [0.0, 0.0, 1.0, 1.0]
    assert [chunk.score_drift.drifted for chunk in report.chunks if chunk.score_drift] == [False, False, True, True]
    assert report.estimator.trusted is True


def test_a_changed_world_costs_the_estimator_its_trust(world: World) -> None:
    """Concept drift: inputs as ever, outcomes another way round. The estimate cannot see it; the labels do."""
    world.log(Cases.make(START, 3, 300, seed=2, slope=-1))
    report = watch(world)
    assert report.estimator.trusted is False
    assert report.estimator.mean_error is not None
    assert report.estimator.mean_error > 0.4
    assert all(chunk.realized.value < 0.4 for chunk in report.chunks if chunk.realized)  # type: ignore[operator]
    assert all(chunk.estimated.value > 0.7 for chunk in report.chunks if chunk.estimated)  # type: ignore[operator]


def test_partial_maturity_is_said_and_settles_nothing(world: World) -> None:
    world.log(Cases.make(START, 3, 300, seed=2))
    report = watch(world, as_of=START + 2 * DAY + WAIT / 2)
    first, second, third = report.chunks
    assert (first.state, second.state, third.state) == ("judged", "judged", "open")
    # Outcomes take 30 hours: of the first day all asked before 09:00 of the day after are known, and so on.
    assert first.maturity == 1.0
    assert first.settled
    assert 0.3 < second.maturity < 0.4
    assert not second.settled
    assert second.realized is not None
    assert (third.labelled, third.realized, third.settled) == (0, None, False)
    assert third.rows == 188
    assert report.estimator.chunks == 1


def test_before_any_label_nothing_is_realized_and_trust_is_unknown(world: World) -> None:
    world.log(Cases.make(START, 1, 300, seed=2))
    report = watch(world, as_of=START + DAY)
    assert report.chunks[0].state == "judged"
    assert report.chunks[0].estimated is not None
    assert report.chunks[0].realized is None
    assert report.estimator.trusted is None


def test_small_chunks_are_reported_and_not_judged(world: World) -> None:
    world.log(Cases.make(START, 1, 300, seed=2))
    world.log(Cases.make(START + DAY, 1, 99, seed=3))
    big, small = watch(world).chunks
    assert (big.state, small.state, small.rows) == ("judged", "too small", 99)
    assert (small.drift, small.drift_share, small.estimated, small.realized) == ((), None, None, None)
    assert small.quality[0].missing == 0.0
    assert small.maturity == 1.0


def test_a_chunk_is_held_against_chunks_of_its_own_size(new_world: Callable[..., World]) -> None:
    """150 rows a day are far from any distribution by chance alone; against days of 1600 they would always drift."""
    world = new_world(past=Cases.make(START - 10 * DAY, 10, 1600, seed=1))
    world.log(Cases.make(START, 8, 150, seed=2))
    report = watch(world)
    drifted = [drift.column for chunk in report.chunks for drift in chunk.drift if drift.drifted]
    assert len(drifted) <= 2
    alone = new_world(name="alone", past=world.past)
    alone.log(Cases.make(START, 1, 150, seed=2), rows=world.cases[0].rows()[:150])
    assert watch(alone).chunks[0].drift == report.chunks[0].drift


def test_every_figure_is_stored_once_however_often_monitoring_runs(world: World) -> None:
    world.log(Cases.make(START, 2, 300, seed=2))
    early = watch(world, as_of=START + 2 * DAY)
    first = read_figures(world.engine, "churn")
    watch(world, as_of=START + 2 * DAY)
    assert read_figures(world.engine, "churn") == first
    late = watch(world)
    second = read_figures(world.engine, "churn", version=1)
    # realized and its chunk are new; everything else is the same row, figured at a later time.
    kinds = {kind: [row for row in second if row["kind"] == kind] for kind in ("realized", "estimated", "drift")}
    assert [row["value"] for row in kinds["realized"]] == [
        chunk.realized.value for chunk in late.chunks if chunk.realized
    ]
    assert [row["settled"] for row in kinds["realized"]] == [True, True]
    assert [row["value"] for row in kinds["estimated"]] == [c.estimated.value for c in early.chunks if c.estimated]
    assert [row["threshold"] for row in kinds["estimated"]] == [0.7, 0.7]
    assert len(kinds["drift"]) == 2 * 3
    assert {row["as_of"] for row in second} == {LATER}
    assert last_run(world.engine, "churn") == late.to_dict()
    assert read_figures(world.engine, "churn", since=START + DAY) == [r for r in second if r["chunk_start"] > START]
    with world.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(monitoring_runs)).scalar_one() == 2
        alerts = select(func.count()).where(monitoring_figures.c.alert)
        assert connection.execute(alerts).scalar_one() == 0


def test_performance_beyond_the_floor_is_marked(world: World) -> None:
    world.log(Cases.make(START, 1, 300, seed=2, slope=-1))
    watch(world)
    marked = {row["kind"] for row in read_figures(world.engine, "churn") if row["alert"]}
    assert marked == {"realized"}


def test_nothing_was_ever_stored_of_a_task_never_watched(world: World) -> None:
    assert last_run(world.engine, "churn") is None
    assert read_figures(world.engine, "churn") == []


@pytest.mark.parametrize("metric", ["log_loss", "brier"])
def test_a_loss_is_realized_and_its_stand_in_is_estimated_and_said(
    new_world: Callable[..., World], metric: str
) -> None:
    world = new_world(metric=metric)
    world.log(Cases.make(START, 2, 300, seed=2))
    report = watch(world)
    assert (report.metric, report.estimated_metric) == (metric, "roc_auc")
    assert any(f"{metric} cannot be estimated" in note for note in report.notes)
    day = world.cases[0].frame.iloc[:300]
    found = report.chunks[0].realized
    assert found is not None
    if metric == "log_loss":
        assert found.value == pytest.approx(log_loss(day["churned"], day["score"].astype(float)))
    else:
        assert found.value == pytest.approx(((day["score"] - day["churned"]) ** 2).mean())
    assert found.low < found.value < found.high  # type: ignore[operator]
    assert report.chunks[0].counterpart is not None
    assert report.chunks[0].counterpart.value == pytest.approx(roc_auc_score(day["churned"], day["score"]))
    assert report.estimator.trusted is True
    thresholds = {row["kind"]: row["threshold"] for row in read_figures(world.engine, "churn")}
    assert thresholds["estimated"] is None
    assert thresholds["realized"] == 0.7


def test_an_empty_log_is_explained(world: World) -> None:
    world.log(Cases.make(START, 1, 100, seed=2), rows=[])
    report = watch(world)
    assert (report.rows, report.chunks, report.skew) == (0, (), None)
    assert report.notes == ("no predictions of version 1 before 2024-03-31T00:00:00Z: nothing to monitor",)
    assert last_run(world.engine, "churn") == report.to_dict()


def test_one_class_chunks_have_no_realized_performance(world: World) -> None:
    cases = Cases.make(START, 2, 300, seed=2)
    cases.frame.loc[cases.frame["asked_at"] < START + DAY, "churned"] = 0
    world.log(cases)
    report = watch(world)
    assert report.chunks[0].realized is not None
    assert report.chunks[0].realized.value is None
    assert report.chunks[0].settled
    assert report.estimator.chunks == 1
    assert report.notes == ("1 chunks have labels of one class only: their roc_auc does not exist",)


def test_a_classifier_that_tells_all_usual_chunks_apart_is_said_to_be_mute(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def together(self: Usual, analysis: pd.DataFrame) -> dict[int, tuple[Drift, ...]]:
        limits = {chunk: 1.0 if at else 0.93 for at, chunk in enumerate(sorted(set(analysis["__chunk__"])))}
        return {
            chunk: (Drift("domain_classifier", 0.91, limit, False, "domain_classifier"),)
            for chunk, limit in limits.items()
        }

    monkeypatch.setattr(Usual, "together", together)
    world.log(Cases.make(START, 3, 300, seed=2))
    [note] = [note for note in watch(world).notes if "classifier" in note]
    assert note.startswith("the domain classifier can say nothing of 2 chunks: ")


def test_a_feature_without_values_has_drifted_and_is_called_vanished(world: World) -> None:
    cases = Cases.make(START, 1, 300, seed=2)
    cases.frame["visits"] = np.float32(np.nan)
    world.log(cases)
    (chunk,) = watch(world).chunks
    assert chunk.drifted_features == ("visits",)
    assert chunk.drift[0].value is None
    assert [each.feature for each in chunk.quality if each.vanished] == ["visits"]


def test_a_feature_the_log_does_not_have_is_named(world: World) -> None:
    world.log(Cases.make(START, 1, 300, seed=2))
    more = world.past.reference().append_column("tenure", world.past.reference()["visits"])
    specs = [*world.bundle.metadata.features, FeatureSpec("tenure", "number")]
    report = watch(world, bundle=make_bundle(world.root / "other", more, specs))
    assert "the log has no column for tenure: counted as missing in every row" in report.notes
    assert report.chunks[0].drifted_features == ("tenure",)


def test_a_feature_the_reference_never_had_has_drifted_once_it_comes(new_world: Callable[..., World]) -> None:
    past = Cases.make(START - 14 * DAY, 14, 300, seed=1)
    past.frame["spend"] = np.float32(np.nan)
    world = new_world(past=past)
    world.log(Cases.make(START, 1, 300, seed=2))
    (chunk,) = watch(world).chunks
    assert "spend" in chunk.drifted_features
    assert chunk.drift[1].threshold is None


def test_values_outside_the_reference_are_counted(world: World) -> None:
    cases = Cases.make(START, 1, 300, seed=2)
    cases.frame.loc[:29, "visits"] = np.float32(1e6)
    cases.frame.loc[:59, "plan"] = "enterprise"
    cases.frame.loc[60:149, "plan"] = None
    world.log(cases)
    quality = {each.feature: each for each in watch(world).chunks[0].quality}
    assert quality["visits"].unseen == pytest.approx(0.1)
    assert (quality["plan"].missing, quality["plan"].missing_reference) == (0.3, 0.0)
    assert quality["plan"].unseen == pytest.approx(60 / 210)


def test_a_reference_too_small_to_say_what_is_usual_is_explained(new_world: Callable[..., World]) -> None:
    world = new_world(past=Cases.make(START - DAY, 1, 250, seed=1))
    world.log(Cases.make(START, 1, 300, seed=2))
    report = watch(world)
    assert report.chunks[0].drift == ()
    assert report.chunks[0].estimated is None
    assert report.chunks[0].realized is not None
    assert report.notes == ("the reference has 250 rows, too few for three chunks: nothing says what is usual",)


def test_an_empty_reference_is_explained(world: World) -> None:
    world.log(Cases.make(START, 1, 300, seed=2))
    report = watch(world, bundle=make_bundle(world.root / "other", world.past.reference().slice(0, 0)))
    assert report.chunks[0].drift == ()
    assert report.chunks[0].realized is not None
    assert any("the reference has 0 rows" in note for note in report.notes)


def test_a_reference_of_one_class_teaches_no_estimator(new_world: Callable[..., World]) -> None:
    past = Cases.make(START - 14 * DAY, 14, 300, seed=1)
    past.frame["churned"] = 1
    world = new_world(past=past)
    world.log(Cases.make(START, 1, 300, seed=2))
    report = watch(world)
    assert report.chunks[0].estimated is None
    assert report.chunks[0].realized is not None
    assert report.notes == ("all labels of the reference agree: performance cannot be estimated",)


def test_without_any_label_of_the_references_time_the_wait_is_learned_from_the_log(world: World) -> None:
    cases = Cases.make(START, 2, 300, seed=2)
    world.log(cases)
    world.outcomes(cases.frame)
    report = watch(world)
    assert all(chunk.settled for chunk in report.chunks)
    assert any("usual wait" in note for note in report.notes)


def test_without_any_label_at_all_nothing_settles(world: World) -> None:
    cases = Cases.make(START, 1, 300, seed=2)
    world.log(cases)
    world.outcomes(cases.frame.assign(churned=pd.array([pd.NA] * 300, dtype="Int64")))
    report = watch(world)
    assert (report.chunks[0].labelled, report.chunks[0].settled) == (0, False)


def test_mostly_unlabelled_chunks_do_not_settle(world: World) -> None:
    """Outcomes that never come (a cancelled order has none) leave too few rows to judge by."""
    cases = Cases.make(START, 1, 300, seed=2)
    cases.frame["churned"] = cases.frame["churned"].astype("Int64")
    cases.frame.loc[:219, "churned"] = pd.NA
    world.log(cases)
    (chunk,) = watch(world).chunks
    assert (chunk.labelled, chunk.settled) == (80, False)
    assert chunk.realized is not None


def test_only_the_monitored_version_counts(world: World) -> None:
    world.log(Cases.make(START, 1, 300, seed=2))
    other = Cases.make(START, 1, 200, seed=3)
    world.log(other, rows=other.rows(version=2, variant="canary"))
    mirrored = Cases.make(START, 1, 100, seed=4)
    world.log(mirrored, rows=mirrored.rows(version=2, variant="shadow"))
    assert watch(world).rows == 300
    assert watch(world, version=2).rows == 200


def test_the_version_is_found_by_its_bundle(world: World) -> None:
    world.log(Cases.make(START, 1, 300, seed=2))
    assert watch(world, version=None).version == 1  # nothing deployed, one version logged
    world.serve(4)
    assert watch(world, version=None).version == 4
    other = replace(world.bundle, path=Path(world.root / "elsewhere"))
    with pytest.raises(UnknownServing, match=r"elsewhere is not what task 'churn' serves; .* holds churn@1\."):
        watch(world, version=None, bundle=other)


def test_the_baseline_only_borrows_the_bundle(world: World) -> None:
    """Before the first promotion version 0 answers with the fallback of the very bundle that climbs."""
    world.log(Cases.make(START, 1, 300, seed=2))
    world.serve(0, challenger=1)
    assert watch(world, version=None).version == 1


def test_the_baseline_can_be_watched_too(world: World) -> None:
    cases = Cases.make(START, 1, 300, seed=2)
    cases.frame["score"] = np.float32(0.5)
    world.log(cases, rows=cases.rows(version=0))
    world.serve(0)
    report = watch(world, version=None)
    assert report.version == 0
    assert report.chunks[0].realized is not None
    assert report.chunks[0].realized.value == 0.5
    assert report.skew is not None
    assert report.skew.mismatches == 0


def test_two_versions_in_the_log_and_no_deployment_is_not_guessed(world: World) -> None:
    world.log(Cases.make(START, 1, 120, seed=2))
    other = Cases.make(START, 1, 120, seed=3)
    world.log(other, rows=other.rows(version=2))
    with pytest.raises(UnknownServing, match="holds churn@1, churn@2"):
        watch(world, version=None)


def test_longer_chunks_align_to_the_epoch(new_world: Callable[..., World]) -> None:
    world = new_world(text=TASK.replace('chunk = "1d"', 'chunk = "7d"'))
    world.log(Cases.make(START, 10, 60, seed=2))
    report = watch(world)
    assert [f"{chunk.start:%a %F}" for chunk in report.chunks] == ["Thu 2024-02-29", "Thu 2024-03-07"]
    assert [chunk.rows for chunk in report.chunks] == [6 * 60, 4 * 60]
    assert all(chunk.end - chunk.start == timedelta(days=7) for chunk in report.chunks)
