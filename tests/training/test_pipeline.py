from __future__ import annotations

import pytest

from contracts.clock import VirtualClock
from training import pipeline


@pytest.fixture
def train(make_task, make_frame, locations, monkeypatch):
    """`train` with the frame faked at Feast's door; everything behind it is real."""

    def run(task=None, champion=None, frame=None, **world):
        task = task or make_task()
        monkeypatch.setattr(pipeline, "build_frame", lambda *_, **__: frame or make_frame(task, **world))
        from conftest_parcels import CUTOFF

        return pipeline.train(task, locations, cutoff=CUTOFF, clock=VirtualClock(CUTOFF), champion=champion)

    return run
