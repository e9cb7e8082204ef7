"""The rollback drill: a rollback of the live challenger, watched from outside, before one is needed in earnest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert, select

from contracts.errors import SkewlessError
from contracts.state import drills
from serving.rollout import Rollouts
from serving.rollout_state import Deployment

ACTOR = "drill"


class DrillImpossible(SkewlessError, ValueError):
    """No challenger is in shadow or canary, so that there is nothing to roll back."""


@dataclass
class _Record:
    """What happened, in order; kept whether the drill passed or not."""

    version: int
    champion: int
    stage: str
    share: float
    generations: list[int]
    answers_checked: int = 0
    wrong_answers: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    rolled_back_s: float | None = None
    """From the decision until serving reported it."""
    restored_s: float | None = None
    """From the re-submission until serving reported it."""


def rollback_drill(
    rollouts: Rollouts,
    ready: Callable[[int], None],
    predict: Callable[[], list[dict[str, Any]]],
    now: datetime,
) -> bool:
    """Roll the challenger back under way, see that only the champion answers, and let it enter again.

    The version begins again in shadow, with its samples and its bake from zero: a drill costs a challenger the progress
    it had made and never shortens its climb, so hold it soon after shadow begins. After a failed drill the challenger
    stays rolled back, which is the safe state, until a person submits it again.

    Args:
        rollouts: the task's releases.
        ready: returns when every replica serves the given generation; raises when that takes too long.
        predict: asks for predictions; returns the answers, each with its `variant` and `version`.
        now: the instant written to the history.

    Returns:
        Whether it passed. Either way a row with the evidence is on record.

    Raises:
        DrillImpossible: nothing is in shadow or canary.
        StaleMove: somebody moved the deployment while the drill began; nothing was recorded.
    """
    before = rollouts.current()
    if before is None or before.challenger is None or before.stage not in ("shadow", "canary"):
        stage = before.stage if before else "without any deployment"
        raise DrillImpossible(
            f"Task {rollouts.task.name!r} is {stage}: a rollback drill needs a challenger in shadow or canary.",
            hint="train and submit a version, then hold the drill while it is in shadow.",
        )
    record = _Record(before.challenger, before.champion, before.stage, before.share, [before.generation])
    began = time.perf_counter()
    dropped = rollouts.rollback("rollback drill", ACTOR, now, expected=before.generation).deployment
    try:
        record.generations.append(dropped.generation)
        ready(dropped.generation)
        record.rolled_back_s = time.perf_counter() - began
        _look_at_answers(predict(), dropped, record)
        if not record.failures:
            _let_in_again(rollouts, before, dropped, ready, now, record)
    except Exception as error:  # whatever breaks in a rehearsal is its finding
        record.failures.append(f"{type(error).__name__}: {error}")
    passed = not record.failures
    _put_on_record(rollouts.engine, rollouts.task.name, passed, now, record)
    return passed


def last_drill(engine: Engine, task: str) -> dict[str, Any]:
    """What the task's latest rollback drill found; empty before the first."""
    query = select(drills.c.evidence).where(drills.c.task == task, drills.c.kind == "rollback")
    with engine.begin() as connection:
        found: dict[str, Any] | None = connection.execute(query.order_by(drills.c.id.desc()).limit(1)).scalar()
    return found or {}


def _look_at_answers(answers: list[dict[str, Any]], serving: Deployment, record: _Record) -> None:
    record.answers_checked = len(answers)
    record.wrong_answers = [
        answer for answer in answers if answer["variant"] != "champion" or answer["version"] != serving.champion
    ][:5]
    if not answers:
        record.failures.append("no prediction was answered after the rollback")
    if record.wrong_answers:
        record.failures.append(f"answers did not come from champion {serving.champion}: {record.wrong_answers}")


def _let_in_again(
    rollouts: Rollouts,
    before: Deployment,
    dropped: Deployment,
    ready: Callable[[int], None],
    now: datetime,
    record: _Record,
) -> None:
    began = time.perf_counter()
    again = rollouts.submit(record.version, Path(before.challenger_bundle or ""), now, actor=ACTOR).deployment
    record.generations.append(again.generation)
    if again.generation != dropped.generation + 1:
        record.failures.append(f"somebody moved generation {dropped.generation}: {again.generation} follows")
    ready(again.generation)
    record.restored_s = time.perf_counter() - began


def _put_on_record(engine: Engine, task: str, passed: bool, now: datetime, record: _Record) -> None:
    row = {"task": task, "kind": "rollback", "passed": passed, "at": now, "evidence": asdict(record)}
    with engine.begin() as connection:
        connection.execute(insert(drills).values(row))
