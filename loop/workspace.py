"""A run's own ground: one at a time, and it clears only what an earlier run left behind."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import orjson
from sqlalchemy import select

from contracts.errors import SkewlessError
from contracts.files import whole_file
from contracts.locations import REPLICAS, Locations
from contracts.state import deployments, open_state

_MARK = "run.json"
_STATE = ("state.db", "state.db-wal", "state.db-shm")
_DRAIN_SECONDS = 90.0
"""A replica of a killed run has ended by then: it drains for seconds, and Ray is given less than a minute to stop."""


class WorkspaceBusy(SkewlessError, BlockingIOError):
    """Something else is at work in this project."""


class WorkspaceTaken(SkewlessError, FileExistsError):
    """The project serves a model that no run put there."""


@contextmanager
def workspace(locations: Locations, task: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the project for one run and start from a clean rollout state and prediction log.

    A run lives in virtual time, so it cannot continue state from another time. Versions, runs and bundles stay. On a
    database server nothing is ever cleared: who else uses it cannot be known from here.

    Args:
        locations: the project's data.
        task: whose log is cleared.
        say: told what is waited for.

    Raises:
        WorkspaceBusy: another run or `skewless serve` is at work here, or a replica does not end.
        WorkspaceTaken: there is rollout state that no run made, or on a server any at all; clearing it could take a
            live model down.
    """
    with _held(locations, fcntl.LOCK_EX, f"Another `skewless run`, or `skewless serve`, works in {locations.data}."):
        with _without_replicas(locations, say):
            _clear(locations, task)
        yield


def kept_from_runs(locations: Locations) -> AbstractContextManager[None]:
    """Keep every run out of the project for as long as something else lives on what it left behind.

    Raises:
        WorkspaceBusy: a run is under way.
    """
    return _held(locations, fcntl.LOCK_SH, f"A `skewless run` works in {locations.data}.")


@contextmanager
def _held(locations: Locations, how: int, otherwise: str) -> Iterator[None]:
    """The project's run lock; the system lets go of it when the process ends, however it ends."""
    lock = locations.lock("run")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        try:
            fcntl.flock(held, how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkspaceBusy(otherwise, hint="wait for it, or end that process.") from error
        yield


@contextmanager
def _without_replicas(locations: Locations, say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no replica writes below the data root: those of a killed run drain and compact their logs first."""
    lock = locations.lock(REPLICAS)
    deadline = time.monotonic() + _DRAIN_SECONDS
    with lock.open("a") as held:
        told = False
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise WorkspaceBusy(
                        f"A replica still serves from {locations.data} after {_DRAIN_SECONDS:.0f} s.",
                        hint=f"end it (`fuser {lock}` names its process), then run again.",
                    ) from error
                if not told:
                    say("waiting for the serving of an earlier run to end")
                    told = True
                time.sleep(0.1)
        yield


def _clear(locations: Locations, task: str) -> None:
    mark = locations.data / _MARK
    if locations.state_server:
        if serving := _serving(locations):
            raise WorkspaceTaken(
                f"{locations.state_server} holds rollout state of {', '.join(serving)}, and a run begins without any.",
                hint="name an empty database under [state] in skewless.toml, or run in a project folder without it.",
            )
    elif not mark.exists() and (locations.data / _STATE[0]).exists() and (serving := _serving(locations)):
        raise WorkspaceTaken(
            f"{locations.data} holds rollout state of {', '.join(serving)} that no `skewless run` made.",
            hint="run in another project folder: `skewless -C DIR run`.",
        )
    if not mark.exists():
        with whole_file(mark) as part:
            part.write_bytes(orjson.dumps({"task": task}))
    if not locations.state_server:
        for leftover in _STATE:
            (locations.data / leftover).unlink(missing_ok=True)
    shutil.rmtree(locations.predictions(task), ignore_errors=True)


def _serving(locations: Locations) -> list[str]:
    with open_state(locations.state_url).connect() as connection:
        return list(connection.execute(select(deployments.c.task)).scalars())
