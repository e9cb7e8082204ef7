"""What a plan asks an online store, whichever it is, and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from asof.wire import Key
from contracts.errors import SkewlessError

TIMEOUT_SECONDS = 2.0
"""How long a store on the network may take to connect or to answer, unless its own settings say otherwise."""

Row = tuple[int, tuple[Any, ...]]
"""What a view holds for a key: event timestamp (microseconds since the epoch), values in the order of its features."""


class StoreUnavailable(SkewlessError, ConnectionError):
    """An online store that does not answer, or that lacks what the registry says it holds."""


class StoreBusy(StoreUnavailable):
    """A store that would have to be waited for, asked where nobody may wait: to be asked again in a thread."""


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """One stored view, as a plan reads it."""

    name: str
    """Under which its features are known: the alias, where the service gives one."""
    table: str
    """The view's own name in the registry."""
    join_keys: tuple[str, ...]
    """As stored, in sorted order."""
    columns: tuple[str, ...]
    """Request columns that give the join keys, in their order."""
    features: tuple[str, ...]
    ttl: int
    """Microseconds; 0 is for ever."""
    grid: int
    """Microseconds between the instants at which the view takes a new value; 0 is every instant."""
    empty: tuple[Any, ...] | None = None
    """A windowed view's values where no event is in any window: zero for counts, else None. None for a plain view."""


class OnlineReader(Protocol):
    """Where stored rows come from. May be used from any thread."""

    @property
    def waits(self) -> bool:
        """Whether reading waits for a server, so that it does not belong on an event loop."""
        ...

    def read(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[list[Row | None]]:
        """Rows of each view for its (distinct, null-free) keys, in their order; None where there is no row.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        ...
