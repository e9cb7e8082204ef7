"""Many runs over a growing log are one run over all of it, and do each chunk's work once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from contracts.prediction_index import PredictionIndex
from contracts.predictions import compact, read_predictions
from contracts.state import open_state
from monitoring import measuring
from monitoring.monitor import monitor
from monitoring.report import MonitoringReport, Work
from monitoring.results import last_run, monitoring_chunks, read_figures
from monitoring.usual import Usual
from tests.monitoring.conftest import DAY, START, TASK, Cases, World

LATER = START + 40 * DAY
HALF = timedelta(hours=12)


def watch(world: World, as_of: datetime, **how: object) -> MonitoringReport:
    how.setdefault("bundle", world.bundle)
    return monitor(world.task, world.locations, world.engine, as_of=as_of, version=1, store=world.store, **how)  # type: ignore[arg-type]


def watch_afresh(world: World, as_of: datetime, name: str = "oracle") -> MonitoringReport:
    """The oracle: the same question to a state that has never seen the log."""
    engine = open_state(f"sqlite:///{world.root / name}.db")
    return monitor(world.task, world.locations, engine, as_of=as_of, bundle=world.bundle, version=1, store=world.store)


def figures(world: World, engine: object | None = None) -> list[dict[str, object]]:
    rows = read_figures(engine or world.engine, "churn")  # type: ignore[arg-type]
    return [{name: value for name, value in row.items() if name != "as_of"} for row in rows]


def write_late(world: World, count: int = 5) -> None:
    """Rows asked about on the first day that reach the log after it was measured."""
    late = Cases.make(START, 1, count, seed=77)
    world.log(late)


@pytest.mark.parametrize("chunk", ['chunk = "1d"', 'chunk = "1d"\nchunk_rows = 250'], ids=["by time", "by number"])
def test_many_runs_are_one_run(new_world: Callable[..., World], chunk: str) -> None:
    """Half days pass, labels come, rows come late, a segment is compacted, a label is corrected: after every run the
    report and every stored figure are those of a run that saw it all for the first time, what is usual and the index of
    the log included."""
    world = new_world(text=TASK.replace('chunk = "1d"', chunk))
    world.log(Cases.make(START, 3, 280, seed=2))
    world.log(Cases.make(START + 3 * DAY, 2, 280, seed=3, shift=1.5))
    usual, index = Usual.of(world.task, world.bundle), PredictionIndex(world.locations.predictions("churn"))
    moments = [START + HALF * step for step in range(1, 12)] + [LATER]
    for step, as_of in enumerate(moments):
        if step == 6:
            write_late(world)
        if step == 8:
            compact(world.locations.predictions("churn") / "s1.sqlite")
        if step == 11:
            frame = world.cases[0].frame
            frame.loc[3, "churned"] = 1 - frame.loc[3, "churned"]
            world.outcomes(world.everything)
        found = watch(world, as_of, usual=usual, index=index)
        if step in (0, 5, 6, 8, 11):
            assert found == watch_afresh(world, as_of, f"oracle{step}")
            assert found.to_dict() | {"work": 0} == (last_run(world.engine, "churn") or {}) | {"work": 0}
            assert figures(world) == figures(world, open_state(f"sqlite:///{world.root / f'oracle{step}'}.db"))
    assert found.work == Work(measured=0, realized=found.work.realized, kept=len(found.chunks) - found.work.realized)


def test_a_closed_chunk_is_measured_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.log(Cases.make(START, 4, 300, seed=2))
    assert watch(world, START + 2 * DAY).work == Work(2, 0, 0)
    read: list[tuple[datetime, datetime]] = []

    def reading(log: Path, **how: object) -> object:
        read.append((how["start"], how["end"]))  # type: ignore[arg-type]
        return read_predictions(log, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(measuring, "read_predictions", reading)
    assert watch(world, START + 2 * DAY).work == Work(0, 0, 2)
    assert read == []
    assert watch(world, START + 3 * DAY).work == Work(1, 2, 0)  # an outcome takes 30 hours: both days have new ones
    assert read == [(START + 2 * DAY, START + 3 * DAY), (START, START + 2 * DAY)]
    assert watch(world, LATER).work == Work(1, 2, 1)
    with world.engine.connect() as connection:
        columns = monitoring_chunks.c
        rows = connection.execute(select(monitoring_chunks).order_by(columns.chunk)).all()
    days = [START + 2 * DAY, START + 2 * DAY, START + 3 * DAY, LATER]
    assert [row.measured_at for row in rows] == days
    assert rows[1].realized_at == LATER
    assert {(row.run_id, row.bundle_hash) for row in rows} == {("run-7", world.bundle.bundle_hash)}


def test_late_rows_reopen_their_chunk_alone(world: World) -> None:
    world.log(Cases.make(START, 3, 300, seed=2))
    watch(world, LATER)
    write_late(world)
    found = watch(world, LATER)
    assert found.work == Work(1, 0, 2)
    assert found.chunks[0].rows == 305


def test_late_labels_reopen_realized_performance_alone(world: World) -> None:
    cases = Cases.make(START, 3, 300, seed=2)
    world.log(cases)
    late = cases.frame["asked_at"] < START + DAY / 2
    cases.frame.loc[late, "known_at"] = LATER
    world.outcomes(world.everything)
    before = watch(world, LATER - DAY)
    assert before.chunks[0].labelled == 150
    after = watch(world, LATER)
    assert after.work == Work(0, 1, 2)
    assert after.chunks[0].labelled == 300
    assert after.chunks[0].drift == before.chunks[0].drift
    assert after.chunks[0].realized != before.chunks[0].realized
    assert after.chunks[1:] == before.chunks[1:]


def test_another_policy_or_another_bundle_measures_anew(world: World) -> None:
    from dataclasses import replace

    world.log(Cases.make(START, 2, 300, seed=2))
    watch(world, LATER)
    rules = world.task.monitoring.model_copy(update={"min_rows": 120})
    world.task = world.task.model_copy(update={"monitoring": rules})
    assert watch(world, LATER).work == Work(2, 0, 0)
    other = replace(world.bundle, bundle_hash="another")
    assert watch(world, LATER, bundle=other).work == Work(2, 0, 0)
    assert watch(world, LATER).work == Work(0, 0, 2)


def test_a_run_that_looks_back_leaves_later_chunks_alone(world: World) -> None:
    world.log(Cases.make(START, 4, 300, seed=2))
    watch(world, LATER)
    assert len(watch(world, START + 2 * DAY).chunks) == 2
    assert watch(world, LATER).work.measured == 0
    assert len({row["chunk"] for row in read_figures(world.engine, "churn")}) == 4


def test_chunks_by_number_are_full_before_they_are_judged(new_world: Callable[..., World]) -> None:
    world = new_world(text=TASK.replace('chunk = "1d"', "chunk_rows = 250"))
    world.log(Cases.make(START, 2, 300, seed=2))
    report = watch(world, LATER)
    assert [(chunk.number, chunk.rows, chunk.state) for chunk in report.chunks] == [
        (0, 250, "judged"),
        (1, 250, "judged"),
        (2, 100, "open"),
    ]
    assert report.chunks[1].start == world.cases[0].frame["asked_at"].iloc[250].to_pydatetime()
    assert all(a.end <= b.start for a, b in zip(report.chunks, report.chunks[1:], strict=False))


def test_memory_is_that_of_a_portion(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured a chunk at a time, everything is the same."""
    world.log(Cases.make(START, 4, 300, seed=2))
    whole = watch_afresh(world, LATER)
    monkeypatch.setattr(measuring, "ROWS", 400)
    assert watch(world, LATER) == whole
