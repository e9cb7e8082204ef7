"""Administrators at once, each a process of its own: exactly one wins, on SQLite and on PostgreSQL."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts.state import open_state
from serving.rollout import Rollouts

ADMINISTRATORS = 3

PROGRAM = """
import pathlib, pickle, sys
from datetime import UTC, datetime
from contracts.state import open_state
from serving.rollout import ChallengerClimbing, Rollouts
from serving.rollout_state import StaleMove

url, task, number, bundle, evidence = sys.argv[1:]
task, now = pickle.loads(pathlib.Path(task).read_bytes()), datetime(2024, 1, 2, tzinfo=UTC)

def told(order):
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        order()
    except (StaleMove, ChallengerClimbing) as error:
        print("lost", type(error).__name__, flush=True)
    else:
        print("won", flush=True)

def enter():
    Rollouts(open_state(url), task).submit(int(number), pathlib.Path(bundle), now)

told(enter)
rollouts = Rollouts(open_state(url), task)
told(lambda: rollouts.advance(pickle.loads(pathlib.Path(evidence).read_bytes()), now))
told(lambda: rollouts.rollback("at once", number, now, expected=2))
"""


@pytest.fixture
def url(state_url: str) -> str:
    return state_url


def at_once(started: list[subprocess.Popen[str]]) -> list[str]:
    """Wait until everyone is ready, give the word to all of them, and hear what became of it."""
    for each in started:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in started:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    return sorted(each.stdout.readline().strip() for each in started if each.stdout is not None)


def test_of_several_administrators_exactly_one_wins(
    url: str, task: Any, tmp_path: Path, bundle: Callable[[int], Path], support: Any
) -> None:
    policy, evidence = tmp_path / "task.pickle", tmp_path / "evidence.pickle"
    policy.write_bytes(pickle.dumps(task))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url, str(policy), str(number + 1), str(bundle(1)), str(evidence)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(ADMINISTRATORS)
    ]
    try:
        # nothing exists yet: everyone creates the tables and the task's first deployment at the same time
        entering = at_once(started)
        found = Rollouts(open_state(url), task).current()
        evidence.write_bytes(pickle.dumps(support.good_evidence(found, hours=3)))
        promoting = at_once(started)  # on the same evidence, which every check passes
        # all were shown generation 2 and press the same button
        rolling_back = at_once(started)
    finally:
        for each in started:
            each.communicate(timeout=60)
    assert entering.count("won") == 1
    assert {outcome.split()[0] for outcome in entering} == {"won", "lost"}
    assert promoting == ["lost StaleMove"] * (ADMINISTRATORS - 1) + ["won"]
    assert rolling_back == ["lost StaleMove"] * (ADMINISTRATORS - 1) + ["won"]

    engine = open_state(url)
    rollouts = Rollouts(engine, task)
    history = rollouts.history()
    assert [(event.generation, event.to_stage) for event in history] == [
        (1, "shadow"),
        (2, "canary"),
        (3, "rolled_back"),
    ]
    assert history[-1].deployment == rollouts.current()
    engine.dispose()
