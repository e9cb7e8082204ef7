"""What every part of the watch must hold, generated for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from monitoring.monitor import monitor
from monitoring.report import ChunkReport, MonitoringReport
from tests.monitoring.conftest import DAY, START, WAIT, Cases, World, make_bundle, make_world

DAYS = 6
END = START + DAYS * DAY


@dataclass(frozen=True)
class Part:
    """One thing a monitoring run measures of each chunk."""

    name: str
    figure: Callable[[ChunkReport], Any]
    alarmed: Callable[[ChunkReport], bool]
    needs_labels: bool = False
    absent: Any = None
    """What it says when it cannot say anything."""


PARTS = [
    Part("drift", lambda chunk: chunk.drift, lambda chunk: bool(chunk.drifted_features)),
    Part("score drift", lambda chunk: chunk.score_drift, lambda chunk: chunk.score_drift.drifted),  # type: ignore[union-attr]
    Part("estimated", lambda chunk: chunk.estimated, lambda chunk: chunk.estimated.value < 0.7),  # type: ignore[union-attr,operator]
    Part("realized", lambda chunk: chunk.realized, lambda chunk: chunk.realized.value < 0.7, needs_labels=True),  # type: ignore[union-attr,operator]
    Part("settled", lambda chunk: chunk.settled, lambda chunk: False, needs_labels=True, absent=False),
    Part("quality", lambda chunk: chunk.quality, lambda chunk: any(q.unseen or q.vanished for q in chunk.quality)),
    Part("freshness", lambda chunk: chunk.freshness, lambda chunk: False),
]


def watched(world: World, as_of: datetime) -> MonitoringReport:
    return monitor(
        world.task, world.locations, world.engine, as_of=as_of, bundle=world.bundle, version=1, store=world.store
    )


def shifted(cases: Cases) -> Cases:
    """The very same cases, asked again later."""
    frame = cases.frame.copy()
    later = START - frame["asked_at"].min().floor("1D")
    for column in ("asked_at", "known_at"):
        frame[column] = frame[column] + later
    return Cases(frame.assign(case_id="again-" + frame["case_id"]))


class Worlds:
    """The worlds that the checks look at, each lived through once for all parts."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @cached_property
    def identical(self) -> MonitoringReport:
        """The log is the reference once more."""
        past = Cases.make(START - DAYS * DAY, DAYS, 300, seed=1)
        world = make_world(self._root / "identical", past=past)
        world.log(shifted(past))
        return watched(world, END + 10 * DAY)

    @cached_property
    def reordered(self) -> tuple[MonitoringReport, MonitoringReport]:
        """The same rows twice; the second time segment and reference are backwards and request ids sort otherwise."""
        past = Cases.make(START - 14 * DAY, 14, 300, seed=1)
        there, back = make_world(self._root / "there", past=past), make_world(self._root / "back", past=past)
        cases = Cases.make(START, DAYS, 300, seed=2)
        there.log(cases)
        rows = [replace(row, request_id=f"z{i:05d}") for i, row in enumerate(reversed(cases.rows()))]
        back.log(Cases(cases.frame.iloc[::-1]), rows=rows)
        backwards = past.reference().take(list(range(past.reference().num_rows))[::-1])
        back.bundle = make_bundle(back.root / "backwards", backwards)
        return watched(there, END + 10 * DAY), watched(back, END + 10 * DAY)

    @cached_property
    def maturing(self) -> tuple[MonitoringReport, MonitoringReport]:
        """One day, before any of its outcomes is known and when all are. The spine holds them from the start."""
        world = make_world(self._root / "maturing")
        world.log(Cases.make(START, 1, 300, seed=2))
        return watched(world, START + DAY), watched(world, START + DAY + WAIT)


def silent_on_identical_windows(part: Part, worlds: Worlds) -> None:
    chunks = worlds.identical.chunks
    assert [chunk.state for chunk in chunks] == ["judged"] * DAYS
    assert not [chunk.start for chunk in chunks if part.alarmed(chunk)]


def indifferent_to_row_order(part: Part, worlds: Worlds) -> None:
    there, back = ([part.figure(chunk) for chunk in report.chunks] for report in worlds.reordered)
    assert there == back
    assert part.absent not in there


def refuses_immature_labels(part: Part, worlds: Worlds) -> None:
    before, after = ([part.figure(chunk) for chunk in report.chunks] for report in worlds.maturing)
    assert before == [part.absent]
    assert after != [part.absent]


Check = Callable[[Part, Worlds], None]


def checks_for(part: Part) -> Iterator[Check]:
    yield silent_on_identical_windows
    yield indifferent_to_row_order
    if part.needs_labels:
        yield refuses_immature_labels


CASES = [pytest.param(part, check, id=f"{part.name}: {check.__name__}") for part in PARTS for check in checks_for(part)]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return Worlds(tmp_path_factory.mktemp("worlds"))


@pytest.mark.parametrize(("part", "check"), CASES)
def test_check(part: Part, check: Check, worlds: Worlds) -> None:
    check(part, worlds)
