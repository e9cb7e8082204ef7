"""Takes a challenger off the traffic within seconds of a breach: looks every second at what the replicas counted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from contracts.clock import Clock
from serving.rollout import Move, Rollouts
from serving.rollout_state import StaleMove

_log = logging.getLogger(__name__)


class Guard:
    """Watches the releases of several tasks, in a thread of its own for as long as its `with` block lasts.

    Several guards of the same tasks do no harm: a rollback is one compare-and-swap, and one of them makes it.

    Args:
        rollouts: one for each task.
        clock: says when a rollback happened.
        told: receives each rollback.
        every: seconds between two looks.
    """

    def __init__(
        self, rollouts: Sequence[Rollouts], clock: Clock, told: Callable[[Move], None], every: float = 1.0
    ) -> None:
        self._rollouts = rollouts
        self._clock = clock
        self._told = told
        self._every = every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rollout-guard", daemon=True)

    def look(self) -> None:
        """Look at every task once; a state that cannot be read is looked at again the next time."""
        for each in self._rollouts:
            try:
                move = each.protect(self._clock.now())
            except StaleMove:
                continue  # somebody else moved it just now
            except Exception as error:  # a guard that gives up guards nothing
                _log.error("rollout of %s is not guarded just now: %s", each.task.name, error)
                continue
            if move is not None:
                _log.warning("version %d of %s was rolled back: %s", move.version, each.task.name, move.reason)
                self._told(move)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self.look()
