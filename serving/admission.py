"""How much a replica takes on: requests at once, computations waiting, and none whose caller has given up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, ParamSpec, TypeVar

from contracts.errors import SkewlessError
from serving.log_writer import Overloaded

MOST_IN_FLIGHT = 512
_P = ParamSpec("_P")
_R = TypeVar("_R")


class TooLate(SkewlessError, TimeoutError):
    """The caller's deadline is over; nobody waits for an answer any more."""


def in_time(deadline: float | None) -> None:
    """Raise TooLate past a deadline, given by `time.perf_counter`; None is no deadline."""
    if deadline is not None and (late := time.perf_counter() - deadline) > 0:
        raise TooLate(
            f"The request's deadline was over {1000 * late:.0f} ms ago; nothing was computed or logged any more.",
            hint="give it more time, or ask less often.",
        )


class Admission:
    """Requests under way, by task. For one event loop.

    Args:
        each: task name to how many of its requests may be under way.
        most: of all tasks together.
    """

    def __init__(self, each: Mapping[str, int], most: int = MOST_IN_FLIGHT) -> None:
        self._each = dict(each)
        self.most = most
        self.in_flight = dict.fromkeys(each, 0)
        """Under way just now, by task."""
        self.refused = dict.fromkeys(each, 0)
        """Turned away so far, by task."""
        self._total = 0
        self.draining = False
        """Whether the replica is about to end: it answers what comes, and says that it should not be asked any more."""

    def enter(self, task: str) -> None:
        """Take on a request; `leave` when it is done. Raises Overloaded when there are too many."""
        mine = self.in_flight[task]
        if self._total >= self.most or mine >= self._each[task]:
            self.refused[task] += 1
            raise Overloaded(f"{self._total} requests are under way, {mine} of this task.", hint="ask again later.")
        self.in_flight[task] = mine + 1
        self._total += 1

    def leave(self, task: str) -> None:
        """A request is done."""
        self.in_flight[task] -= 1
        self._total -= 1


class Workers:
    """Threads for what does not belong on the event loop, and a queue before them that has an end.

    Args:
        threads: at work at once.
        most_waiting: computations that may wait for one.
    """

    def __init__(self, threads: int = 8, most_waiting: int = 128) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="prediction")
        self._room = threads + most_waiting
        self._threads_count = threads
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """Computations that wait for a thread."""
        return max(self._taken - self._threads_count, 0)

    async def run(self, work: Callable[_P, _R], *args: _P.args, **named: _P.kwargs) -> _R:
        """Do some work in a thread. Raises Overloaded when too much waits already."""
        with self._lock:
            if self._taken >= self._room:
                raise Overloaded(f"{self.waiting} computations wait for a thread.", hint="ask again later.")
            self._taken += 1
        context = copy_context()  # what is logged there belongs to the same request
        done: Future[_R] = self._threads.submit(lambda: context.run(work, *args, **named))
        done.add_done_callback(self._left)  # also when its caller went away before it began
        return await asyncio.wrap_future(done)

    def _left(self, done: Future[Any]) -> None:
        with self._lock:
            self._taken -= 1

    def close(self) -> None:
        """Return when nothing is at work any more."""
        self._threads.shutdown(wait=True)
