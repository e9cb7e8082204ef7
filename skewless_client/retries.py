"""When a call is tried again, and how long it waits before: no sockets, no clock of its own."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

AGAIN = frozenset((408, 425, 429, 502, 503, 504))
"""Statuses that say "not now". Every request carries an id, so asking again is safe: it is counted once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retries:
    """How a call is repeated. Waits grow twofold from `first` to `most`, at random below that: callers spread."""

    attempts: int = 4
    """In all; 1 never repeats."""
    first: float = 0.05
    """Seconds before the second attempt, at most."""
    most: float = 2.0
    """Seconds between two attempts, at most, unless the server asks for more."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}.")
        if not 0 <= self.first <= self.most:
            raise ValueError(f"first and most must be 0 <= first <= most, got {self.first} and {self.most}.")

    def wait(self, attempt: int, retry_after: float | None) -> float | None:
        """Seconds to wait after the attempt of this number (1 is the first); None when it was the last.

        What the server asks for in Retry-After is always waited for, and a little more.
        """
        if attempt >= self.attempts:
            return None
        spread = random.uniform(0, min(self.most, self.first * 2 ** (attempt - 1)))
        return (retry_after or 0.0) + spread


def retry_after(header: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for, as number or date; None without a header that can be read."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            instant = parsedate_to_datetime(header)
        except ValueError:
            return None
        seconds = (instant - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None
