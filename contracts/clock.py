"""Where "now" comes from: an argument, so that a year can be replayed and a test can stand still."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Anything that can say what time it is."""

    def now(self) -> datetime:
        """The current instant, timezone-aware in UTC."""
        ...


class SystemClock:
    """The machine's own clock; built in composition roots only."""

    def now(self) -> datetime:
        """The wall clock's instant in UTC."""
        return datetime.now(UTC)


@dataclass
class VirtualClock:
    """A clock that moves only when it is told to."""

    instant: datetime

    def __post_init__(self) -> None:
        self.instant = as_utc(self.instant)

    def now(self) -> datetime:
        """The instant last set."""
        return self.instant

    def advance_to(self, instant: datetime) -> None:
        """Move forward to `instant`. Raises ValueError when that would run backwards."""
        instant = as_utc(instant)
        if instant < self.instant:
            raise ValueError(f"A clock cannot run backwards: now {self.instant}, asked for {instant}.")
        self.instant = instant

    def advance(self, step: timedelta) -> None:
        """Move forward by `step`, which must not be negative."""
        self.advance_to(self.instant + step)


def as_utc(instant: datetime) -> datetime:
    """`instant` in UTC. Raises ValueError for a naive datetime: guessing a zone is how skew begins."""
    if instant.tzinfo is None:
        raise ValueError(f"Timestamp {instant.isoformat()} has no time zone; give it one, for example +00:00.")
    return instant.astimezone(UTC)


def parse_instant(text: str) -> datetime:
    """An ISO 8601 instant; a bare date means midnight UTC, a missing zone means UTC.

    For people at a command line only. Raises ValueError for anything else.
    """
    parsed = datetime.fromisoformat(text)
    return as_utc(parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC))
