"""The pieces of a replay that worker processes do, each kept whole when it is done.

A worker that is killed leaves a piece undone; whoever does it again begins it anew, and comes to the same.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from multiprocessing import connection, parent_process, util
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from contracts.files import locked, whole_file
from contracts.task import Task
from loop.terminal import Steps

if TYPE_CHECKING:
    from loop.replay_life import Scene

LIVED = "{}: lived"
"""What `live` says when a policy was lived."""
_BOUNDLESS_MS = 1e9


@dataclass(frozen=True)
class Plan:
    """One replay: what is lived, and where it is kept."""

    task: Task
    """From `as_replayed`."""
    folder: Path
    start: datetime
    end: datetime
    every: timedelta
    """How often monitoring is run."""
    batch: bool = False
    """Whether the task is answered from precomputed predictions in production."""

    @property
    def window(self) -> Path:
        """Cases and vectors."""
        return self.folder / "window.parquet"

    @property
    def first(self) -> Path:
        """The project in which the first version was trained."""
        return self.folder / "first"

    @property
    def first_done(self) -> Path:
        """Is there once it was."""
        return self.folder / "first.json"

    def life(self, policy: str) -> Path:
        """What happened under a policy."""
        return self.folder / "lives" / f"{policy}.json"

    def project(self, policy: str) -> Path:
        """The project in which it happened."""
        return self.folder / "lives" / policy

    def log(self, policy: str) -> Path:
        """The policy's prediction log."""
        from loop.project import Project

        return Project(self.project(policy)).locations.predictions(self.task.name)

    def month(self, policy: str, start: datetime) -> Path:
        """What came of a month through the online path."""
        return self.folder / "served" / policy / f"{start:%Y-%m-%dT%H}.json"


def as_replayed(task: Task) -> Task:
    """The task without what a replay cannot say: how long an answer takes. Answers are computed when asked for."""
    return task.model_copy(
        update={
            "budget": task.budget.model_copy(update={"p99_ms": _BOUNDLESS_MS}),
            "serving": task.serving.model_copy(update={"mode": "online", "refuse_unknown": ()}),
            "rollout": task.rollout.model_copy(update={"load_test_requests": 0}),
        }
    )


def train_first(plan: Plan, say: Callable[[str], None]) -> None:
    """Train the version all policies begin with. Raises FirstVersionRejected."""
    from loop.replay_life import train_first as train

    train(_scene(plan), plan.first, say)
    with whole_file(plan.first_done) as part:
        part.write_bytes(b"{}")


_worker: tuple[Plan, Scene] | None = None


def enter_here(plan: Plan) -> None:
    """Do the pieces in this process."""
    global _worker
    _worker = plan, _scene(plan)


def enter(plan: Plan) -> None:
    """Begin a worker process: it ends with the one that started it, however that ends."""
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").propagate = False
    logging.getLogger("asof").setLevel(logging.ERROR)  # of a null key it would tell hour by hour
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Without the interpreter's own leave-taking, in which bindings tell the terminal what they have not freed.
    util.Finalize(None, os._exit, (0,), exitpriority=-1000)
    enter_here(plan)
    gc.freeze()  # what is loaded by now stays; looking through it for garbage again and again finds none


def live(policy: str) -> str:
    """Live a policy in this worker."""
    from loop.replay_life import live as live_policy
    from loop.replay_policies import POLICIES

    plan, scene = _mine()
    with locked(plan.folder / "locks" / policy):
        if not plan.life(policy).exists():
            life = live_policy(scene, POLICIES[policy], plan.first, plan.project(policy), Steps().say)
            with whole_file(plan.life(policy)) as part:
                part.write_bytes(orjson.dumps(asdict(life)))
    return LIVED.format(policy)


def serve(policy: str, start: datetime, end: datetime) -> str:
    """Serve a month of a policy that was lived, in this worker."""
    from loop.project import Project
    from loop.replay_served import serve_month
    from serving.rollout import Rollouts

    plan, scene = _mine()
    target = plan.month(policy, start)
    with locked(plan.folder / "locks" / f"{policy}-{start:%Y%m%dT%H}"):
        if not target.exists():
            engine = Project(plan.project(policy)).open_state()
            history = Rollouts(engine, plan.task).history()
            engine.dispose()
            found = serve_month(scene, history, plan.log(policy), target.with_suffix(""), start=start, end=end)
            with whole_file(target) as part:
                part.write_bytes(orjson.dumps(found.to_dict()))
    return f"{policy}: {start:%Y-%m} served through the online store"


def _mine() -> tuple[Plan, Scene]:
    assert _worker is not None, "enter() begins a worker"
    return _worker


def _scene(plan: Plan) -> Scene:
    from loop.features import open_features
    from loop.replay_life import Scene
    from loop.replay_window import read_window
    from serving.plan import compile_plan

    store = open_features(plan.task)
    return Scene(
        task=plan.task,
        window=read_window(plan.task, store, plan.window),
        compiled=compile_plan(store, plan.task.feature_service),
        store=store,
        start=plan.start,
        end=plan.end,
        every=plan.every,
    )


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "a worker has a parent"
    connection.wait([parent.sentinel])
    os._exit(1)
