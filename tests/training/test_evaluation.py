"""What is measured of a version beside the figures that gates judge: other versions, time, latency."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from contracts.bundle import write_bundle
from contracts.clock import VirtualClock
from contracts.scorer import Scorer
from training.gates import promotable
from training.latency import latencies
from training.making import make_version
from training.periods import by_period
from training.records import make_bundle
from training.tracking import Revision


@pytest.fixture
def make(make_task, make_frame, cutoff):
    """A version of the parcels, registered nowhere."""

    def run(task=None, champion=None, last_month=None):
        task = task or make_task()
        return make_version(task, make_frame(task), cutoff, champion, lap=str, say=str, last_month=last_month)

    return run


@pytest.fixture
def keep(make_task, make_frame, locations, cutoff):
    """The bundle of a version."""

    def run(made):
        run, by = SimpleNamespace(id=made.learner * 8), Revision("commit", "", "lock")
        return make_bundle(make_task(), locations, VirtualClock(cutoff), make_frame(), made, "d" * 64, by, run)

    return run


def changed(bundle, path, **changes):
    """The same version under another name, with what is known of it changed."""
    return write_bundle(
        path,
        model=bundle.model_path.read_bytes(),
        metadata=replace(bundle.metadata, **changes),
        reference=bundle.reference(),
    )


def test_champions_are_asked_about_the_same_rows(make, keep, make_task, cutoff):
    task = make_task()
    short = task.training.model_copy(update={"params": {"num_iterations": 2, "min_data_in_leaf": 500}})
    stump, good = keep(make(task.model_copy(update={"training": short}))), keep(make(task))
    found = make(task, champion=good, last_month=stump).evaluation
    assert found.champion.difference.value == pytest.approx(0)
    assert found.last_month.difference.low > 0
    assert found.last_month.metrics["roc_auc"].value == pytest.approx(
        found.metrics["roc_auc"].value - found.last_month.difference.value
    )
    assert found.last_month.trained_at == cutoff.isoformat()
    for period in found.periods:
        assert set(period.others) == {"baseline", "champion", "last_month"}
        assert period.others["baseline"] == 0.5
        assert period.others["champion"] == pytest.approx(period.metric.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"service_fingerprint": "0" * 64}, "Feature definitions changed since"),
        ({"kind": "regression"}, "answers another question"),
    ],
)
def test_what_differs_about_a_champion_is_said(make, keep, tmp_path, changes, said):
    found = make(champion=changed(keep(make()), tmp_path / "other", **changes)).evaluation.champion
    assert said in found.note
    assert (found.difference is None) == ("cannot be asked" in found.note)


def test_a_champion_that_wants_a_feature_that_is_gone_is_named_and_is_no_pass(make, keep, tmp_path):
    bundle = keep(make())
    [first, *others] = bundle.metadata.features
    gone = (replace(first, name="height"), *others)
    result = make(champion=changed(bundle, tmp_path / "other", features=gone))
    assert "It cannot be asked: The frame lacks feature height (number)." in result.evaluation.champion.note
    assert not promotable(result.gates)
    [gate] = [gate for gate in result.gates if gate.name == "champion"]
    assert gate.verdict == "inconclusive"


def test_a_champion_that_was_fitted_on_holdout_rows_is_flattered_and_that_is_said(make, keep, tmp_path, cutoff):
    bundle = keep(make())
    data = bundle.metadata.training_data
    later = data | {"split": data["split"] | {"bounds": {"holdout": (cutoff - timedelta(days=2)).isoformat()}}}
    seen = make(champion=changed(bundle, tmp_path / "later", training_data=later)).evaluation.champion
    assert "It was fitted on cases until 2024-02-28 00:00: some of these it has seen" in seen.note
    assert make(champion=bundle).evaluation.champion.note == ""


def test_what_gates_judge_has_its_interval_over_days_where_there_are_enough(make, make_task):
    few = make().evaluation
    assert few.days == 0
    assert few.by_case == few.metrics["roc_auc"]
    longer = make_task().training.model_copy(update={"holdout": timedelta(days=14)})
    found = make(make_task().model_copy(update={"training": longer})).evaluation
    assert found.days == 13  # the last day has no label yet
    assert found.by_case.value == found.metrics["roc_auc"].value
    assert found.by_case != found.metrics["roc_auc"]


def test_the_holdout_is_scored_once(make, monkeypatch):
    called = []
    plain = Scorer._run

    def counted(self, wanted, numbers, texts):
        called.append(len(numbers))
        return plain(self, wanted, numbers, texts)

    monkeypatch.setattr(Scorer, "_run", counted)
    made = make()
    assert called.count(made.evaluation.rows) == 1
    assert len(made.holdout_scores) == made.evaluation.rows > 1000  # the largest call that is timed


def test_a_holdout_is_cut_into_days_or_weeks(make_task, cutoff):
    task, rng = make_task(10), np.random.default_rng(1)
    for length, days, starts in ((7, 1, 7), (20, 7, 3)):
        start = cutoff - timedelta(days=length)
        first = round(start.timestamp() * 1e6)
        stamps = np.sort(rng.integers(first, first + length * 86_400_000_000, 4_000))
        scores = rng.random(4_000).astype(np.float32)
        labels = (rng.random(4_000) < scores).astype(np.int8)
        found = by_period(task, start, cutoff, stamps, labels, scores[:, None], {"half": scores[:, None] / 2})
        assert [each.days for each in found] == [days] * starts
        assert sum(each.rows for each in found) == 4_000
        inside = (stamps >= first + days * 86_400_000_000) & (stamps < first + 2 * days * 86_400_000_000)
        assert found[1].start == (start + timedelta(days=days)).isoformat()
        assert found[1].metric.value == pytest.approx(roc_auc_score(labels[inside], scores[inside]))
        assert found[1].others["half"] == pytest.approx(found[1].metric.value)


def test_a_stretch_with_too_few_rows_is_not_judged(make_task, cutoff):
    start = cutoff - timedelta(days=2)
    stamps = np.full(60, round(start.timestamp() * 1e6)) + np.r_[np.zeros(49), np.full(11, 86_400_000_000)].astype(int)
    labels = (np.arange(60) % 2).astype(np.int8)
    found = by_period(make_task(10), start, cutoff, stamps, labels, np.ones((60, 1), np.float32), {})
    assert [(each.rows, each.metric) for each in found] == [(49, None), (11, None)]


def test_latency_is_of_one_some_and_many_rows(make, make_frame):
    found = latencies(Scorer(make().fitted.model), make_frame().inputs().take(np.arange(7)))
    assert [each.rows for each in found] == [1, 32, 1000]
    assert all(0 < each.p50 <= each.p99 and each.calls >= 100 for each in found)
    assert found[0].p50 < found[2].p50
