"""One training of a task at a time, on this machine."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from contracts.errors import SkewlessError
from contracts.locations import Locations
from contracts.task import Task


class TrainingInProgress(SkewlessError, RuntimeError):
    """Another process is training the same task."""


@contextmanager
def one_at_a_time(task: Task, locations: Locations) -> Iterator[None]:
    """Hold the task's training lock; the system lets go of it when the process ends, however it ends."""
    path = locations.lock(f"train-{task.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise TrainingInProgress(
                f"Task {task.name!r} is being trained already, by process {file.read() or 'unknown'}.",
                hint="wait until it is done.",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
