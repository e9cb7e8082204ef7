"""A drill says truly what detectors see: of drift that was put in, of none, and of what no detector could see."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from contracts.bundle import FeatureSpec
from monitoring import drift_drill as drill
from monitoring.drift_drill import DrillReport, Trial, drift_drill, rows_of_log
from monitoring.injected import KINDS, UNHEARD_OF, Injection, find_target
from monitoring.log_frame import CHUNK, LABEL, SCORE
from tests.monitoring.conftest import DAY, FEATURES, START, Cases, World, make_bundle


class TrueModel:
    """The model whose scores the world's cases carry."""

    def score(self, numbers: np.ndarray, texts: np.ndarray | None = None) -> np.ndarray:
        assert texts is not None
        told = 1.6 * numbers[:, 0] + 0.4 * numbers[:, 1]
        found: np.ndarray = 1 / (1 + np.exp(-np.clip(told, -50, 50)))
        return found.astype(np.float32)


def largest(report: DrillReport) -> dict[str, Trial]:
    return {trial.kind: trial for trial in report.trials}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> DrillReport:
    from tests.monitoring.conftest import make_world

    world = make_world(tmp_path_factory.mktemp("drill"))
    return drift_drill(world.task, world.bundle, TrueModel())


def test_a_drill_shows_who_sees_what_and_how_late(held: DrillReport) -> None:
    assert held.passed, held.reasons
    assert (held.source, held.quick, held.not_applicable) == ("holdout", False, ())
    assert [trial.kind for trial in held.trials] == [kind.kind for kind in KINDS for _ in kind.sizes]
    found = largest(held)
    for kind in ("shifted mean", "new category", "swapped units", "stuck sensor"):
        assert found[kind].seen_by["univariate"] in (1, 2), kind
    assert found["shifted mean"].seen_by["score"] in (1, 2)  # the model scores what it is given
    assert found["new category"].changed == ("plan",)
    assert set(found["covariate rotation"].changed) == {"visits", "spend"}
    assert "realized" in found["concept shift"].seen_by
    assert set(found["concept shift"].seen_by) <= {"realized", "outcomes"}  # both are of labels
    assert found["concept shift"].changed == ()
    assert "outcomes" in found["prior shift"].seen_by
    assert any("nothing sees it before labels come" in reason for reason in held.reasons)
    json.dumps(held.to_dict())


def test_a_smaller_drift_is_seen_by_no_more_and_no_earlier(held: DrillReport) -> None:
    for kind in ("shifted mean", "new category", "concept shift"):
        by_size = [trial.seen_by for trial in held.trials if trial.kind == kind]
        assert len(by_size[0]) <= len(by_size[-1])
        assert all(by_size[-1].get(name, 0) <= at for name, at in by_size[0].items() if name in by_size[-1])


def test_detectors_are_quiet_on_windows_that_nobody_touched(held: DrillReport) -> None:
    assert held.quiet == 6
    assert max(held.false_alarms.values()) <= 1 / 3
    assert held.false_alarms["drift rule"] == 0


def test_a_quick_drill_holds_the_largest_sizes_only(world: World) -> None:
    report = drift_drill(world.task, world.bundle, None, quick=True)
    assert report.passed, report.reasons
    assert [(trial.kind, trial.size) for trial in report.trials] == [(kind.kind, kind.sizes[-1]) for kind in KINDS]


def test_a_drift_that_nobody_sees_fails_the_drill(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The drill itself is drilled: "shifted mean" now shifts nothing, and outcomes are left alone."""
    still = [replace(kind, apply=lambda rows, *_: rows.copy()) for kind in KINDS if kind.kind != "prior shift"]
    monkeypatch.setattr(drill, "KINDS", tuple(still))
    report = drift_drill(world.task, world.bundle, None, quick=True)
    assert not report.passed
    assert "shifted mean of 2 standard deviations was seen by no detector" in report.reasons
    assert any("concept shift was not seen in realized performance" in reason for reason in report.reasons)
    assert all(trial.seen_by == {} for trial in report.trials)


def test_detectors_that_cry_on_untouched_windows_fail_the_drill(world: World) -> None:
    """A holdout whose watched stretches are another world: what is learned from one says nothing of the other."""
    bundle = make_bundle(world.root / "restless", stretches(world, shifted=(1, 2, 4, 7, 8, 11)).reference())
    report = drift_drill(world.task, bundle, None, quick=True)
    assert not report.passed
    assert "the drift rule spoke 100% of the time without any drift, 50% may" in report.reasons


@pytest.mark.parametrize("period", [2, 4])
def test_day_and_night_are_both_learned_from(world: World, period: int) -> None:
    """A holdout of six days is cut into half days, one of three into quarters: no half may be all nights."""
    nights = tuple(i for i in range(12) if i % period >= period // 2)
    bundle = make_bundle(world.root / f"nights-{period}", stretches(world, shifted=nights).reference())
    report = drift_drill(world.task, bundle, None, quick=True)
    assert report.false_alarms["drift rule"] == 0, report.reasons


def stretches(world: World, *, shifted: tuple[int, ...]) -> Cases:
    """As many as a holdout is cut into, some of another world."""
    size = len(world.past.frame) // 12
    frames = [
        Cases.make(START - (14 - i) * DAY, 1, size, seed=40 + i, shift=3.0 if i in shifted else 0.0).frame
        for i in range(12)
    ]
    return Cases(pd.concat(frames))


def test_too_few_rows_are_said(world: World) -> None:
    few = make_bundle(world.root / "few", world.past.reference().slice(0, 300))
    report = drift_drill(world.task, few, None)
    assert (report.passed, report.trials) == (False, ())
    assert report.reasons == ("300 labelled rows of the holdout are too few to rehearse on: 600 do",)


def test_a_long_log_is_rehearsed_on_instead_of_the_holdout(world: World) -> None:
    cases = Cases.make(START, 8, 300, seed=9)
    world.log(cases)
    from contracts.predictions import read_predictions

    table = read_predictions(world.locations.predictions("churn"))
    days = np.repeat(np.arange(8), 300)
    label = cases.frame["churned"].to_numpy(float)
    label[:10] = np.nan
    rows = rows_of_log(table, label, days, FEATURES)
    assert len(rows) == 2390
    report = drift_drill(world.task, world.bundle, None, log=rows, quick=True)
    assert (report.source, report.passed, report.rows) == ("log", True, 300)
    short = drift_drill(world.task, world.bundle, None, log=rows[rows[CHUNK] < 3], quick=True)
    assert short.source == "holdout"


def rows(size: int = 400) -> pd.DataFrame:
    frame = Cases.make(START, 1, size, seed=5).frame
    columns = {name: frame[name] for name in ("visits", "spend", "plan")}
    return pd.DataFrame(columns | {SCORE: frame["score"], LABEL: frame["churned"].astype(float), CHUNK: 0})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_an_injection_changes_a_copy_and_only_what_it_says(kind: Injection) -> None:
    before = rows()
    usual = before.copy()
    target = find_target(usual, FEATURES, binary=True)
    found = kind.apply(before, target, kind.sizes[-1], np.random.default_rng(1))
    assert found is not None
    pd.testing.assert_frame_equal(before, usual)
    assert len(found) == len(before)
    if not kind.draws_rows:
        changed = {name for name in before if not found[name].equals(before[name])}
        assert changed <= ({LABEL} if kind.needs_labels else {"visits", "spend", "plan"})
        assert changed


def test_what_an_injection_does() -> None:
    before, random = rows(), np.random.default_rng(1)
    target = find_target(before, FEATURES, binary=True)
    by_kind = {kind.kind: kind.apply for kind in KINDS}
    shifted = by_kind["shifted mean"](before, target, 2.0, random)
    assert shifted is not None
    assert (shifted["visits"] - before["visits"]).mean() == pytest.approx(2 * before["visits"].std(), rel=1e-3)
    new = by_kind["new category"](before, target, 0.3, random)
    assert new is not None
    assert 0.2 < (new["plan"] == UNHEARD_OF).mean() < 0.4
    stuck = by_kind["stuck sensor"](before, target, 1.0, random)
    assert stuck is not None
    assert sum(stuck[name].nunique() == 1 for name in ("visits", "spend")) == 1
    turned = by_kind["covariate rotation"](before, target, 90.0, random)
    assert turned is not None
    assert turned["visits"].std() == pytest.approx(before["visits"].std(), rel=0.2)
    drawn = by_kind["prior shift"](before, target, 20.0, random)
    assert drawn is not None
    assert abs(drawn[LABEL].mean() - 0.5) > 0.3
    flipped = by_kind["concept shift"](before, target, 0.5, random)
    assert flipped is not None
    assert 0.4 < (flipped[LABEL] != before[LABEL]).mean() < 0.6


def test_what_there_is_nothing_of_is_not_applicable() -> None:
    target = find_target(rows()[["plan", LABEL]], [FeatureSpec("plan", "text")], binary=True)
    found = [kind.kind for kind in KINDS if kind.apply(rows(), target, 1.0, np.random.default_rng(1)) is None]
    assert found == ["shifted mean", "swapped units", "stuck sensor", "covariate rotation"]


def test_a_regression_is_rehearsed_too() -> None:
    frame = rows().assign(**{LABEL: lambda each: each["visits"] * 10})
    target = find_target(frame, FEATURES, binary=False)
    by_kind = {kind.kind: kind.apply for kind in KINDS}
    drawn = by_kind["prior shift"](frame, target, 20.0, np.random.default_rng(1))
    strange = by_kind["concept shift"](frame, target, 1.0, np.random.default_rng(1))
    assert drawn is not None
    assert strange is not None
    assert drawn[LABEL].mean() > frame[LABEL].mean()
    assert np.corrcoef(strange[LABEL], frame[LABEL])[0, 1] == pytest.approx(-1)
