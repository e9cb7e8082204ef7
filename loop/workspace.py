"""A run's own ground: one at a time, and it clears only what an earlier run left behind."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import orjson
from sqlalchemy import select

from contracts.errors import SkewlessError
from contracts.files import whole_file
from contracts.locations import Locations
from contracts.state import deployments, open_state

_MARK = "run.json"


class WorkspaceBusy(SkewlessError, BlockingIOError):
    """Another run is under way in this project."""


class WorkspaceTaken(SkewlessError, FileExistsError):
    """The project serves a model that no run put there."""


@contextmanager
def workspace(locations: Locations, task: str) -> Iterator[None]:
    """Hold the project's run lock and start from a clean rollout state and prediction log.

    A run lives in virtual time, so it cannot continue state from another time. Versions, runs and bundles stay.

    Raises:
        WorkspaceBusy: another process holds the lock; it is released when that process ends, however it ends.
        WorkspaceTaken: there is rollout state that no run made; clearing it could take a live model down.
    """
    lock = locations.lock("run")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkspaceBusy(
                f"Another `skewless run` is working in {locations.data}.", hint="wait for it, or end that process."
            ) from error
        _clear(locations, task)
        yield


def _clear(locations: Locations, task: str) -> None:
    mark = locations.data / _MARK
    if not mark.exists():
        state = locations.data / "state.db"
        if state.exists():
            with open_state(locations.state_url).connect() as connection:
                serving = connection.execute(select(deployments.c.task)).scalars().all()
            if serving:
                raise WorkspaceTaken(
                    f"{locations.data} holds rollout state of {', '.join(serving)} that no `skewless run` made.",
                    hint="run in another project folder: `skewless -C DIR run`.",
                )
        with whole_file(mark) as part:
            part.write_bytes(orjson.dumps({"task": task}))
    for leftover in ("state.db", "state.db-wal", "state.db-shm"):
        (locations.data / leftover).unlink(missing_ok=True)
    shutil.rmtree(locations.predictions(task), ignore_errors=True)
