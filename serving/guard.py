"""An online store behind a circuit breaker: while it fails it is left alone, and nobody waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from contracts.errors import SkewlessError
from serving.breaker import Breaker
from serving.online import Key, OnlineReader, Row, StoreBusy, StoreUnavailable, ViewSpec

Answered = Callable[[Sequence[tuple[ViewSpec, Sequence[Key]]], Sequence[Sequence[Row | None]]], None]


class GuardedReader:
    """Reads through a breaker. As thread-safe as what it reads from.

    Args:
        reader: of the store.
        breaker: of the store.
        answered: told what was asked and found.
    """

    def __init__(self, reader: OnlineReader, breaker: Breaker, answered: Answered) -> None:
        self._reader = reader
        self._breaker = breaker
        self._answered = answered

    @property
    def waits(self) -> bool:
        """Whether reading waits for a server."""
        return self._reader.waits

    def read(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[list[Row | None]]:
        """Rows of each view for its distinct keys, in their order.

        Raises:
            StoreUnavailable: the store failed, or has failed so often that it is not asked now.
        """
        if not self._breaker.admits():
            raise StoreUnavailable(
                "The online store failed again and again and is not asked for a while.",
                hint="see what is wrong with it; it is tried again by itself (`degradation.breaker_rest`).",
            )
        try:
            found = self._reader.read(asked)
        except StoreBusy:  # nothing is known yet
            raise
        except Exception as error:  # a store of somebody else's making fails in its own ways
            self._breaker.fail()
            if isinstance(error, SkewlessError):
                raise
            raise StoreUnavailable(f"The online store failed: {type(error).__name__}: {error}.") from error
        self._breaker.succeed()
        self._answered(asked, found)
        return found
