"""A circuit breaker: what fails again and again is left alone for a while, and nobody waits for it meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "half-open", "open"]


class Breaker:
    """Says whether something that may fail should be tried. Thread-safe.

    Closed, everything is tried. After some failures in a row it opens: nothing is. When its rest is over it is
    half-open: one try goes through, alone, and closes it or opens it again.

    Args:
        failures: in a row, that open it.
        rest: seconds it stays open. A try that has not come back after as long no longer keeps the next one waiting.
        now: a clock in seconds.
    """

    def __init__(self, failures: int = 5, rest: float = 1.0, now: Callable[[], float] = time.monotonic) -> None:
        self._most, self._rest, self._now = failures, rest, now
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._open_since: float | None = None
        self._last_try = 0.0
        self.failed = 0
        """Tries that failed, ever."""
        self.opened = 0
        """Times it opened after it was closed."""
        self.spared = 0
        """Tries that were not made."""

    @property
    def state(self) -> State:
        """What it would say now."""
        if self._open_since is None:
            return "closed"
        return "open" if self._now() - self._open_since < self._rest else "half-open"

    def admits(self) -> bool:
        """Whether to try now. Whoever is told yes says how it went."""
        if self._open_since is None:
            return True
        with self._lock:
            now = self._now()
            if self._open_since is None:
                return True
            if now - max(self._open_since, self._last_try) < self._rest:
                self.spared += 1
                return False
            self._last_try = now
            return True

    def succeed(self) -> None:
        """A try went well."""
        if self._in_a_row:
            with self._lock:
                self._in_a_row, self._open_since = 0, None

    def fail(self) -> None:
        """A try failed."""
        with self._lock:
            self.failed += 1
            self._in_a_row += 1
            if self._in_a_row >= self._most:
                self.opened += self._open_since is None
                self._open_since = self._now()
