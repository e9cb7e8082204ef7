"""Work that is done once the answer is out: a queue that never makes anybody wait, and the thread that empties it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_BACKLOG = 1000
_Work = TypeVar("_Work")


class Shadows(Generic[_Work]):
    """Runs work in a thread of its own.

    Args:
        name: of the thread.
        run: does one piece; what it raises is its own business, so it should not.
        dropped: told of each piece that was not even tried, because too many waited.
    """

    def __init__(self, name: str, run: Callable[[_Work], None], dropped: Callable[[], None]) -> None:
        self._run, self._dropped = run, dropped
        self._waiting: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, work: _Work) -> None:
        """Leave a piece of work. Never waits."""
        if self._waiting.qsize() >= _BACKLOG:
            self._dropped()
        else:
            self._waiting.put(work)

    def close(self) -> None:
        """Return when all that waits is done."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (work := self._waiting.get()) is not None:
            self._run(work)
