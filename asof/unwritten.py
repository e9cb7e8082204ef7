"""What is said when an online store cannot be written, whichever it is."""

from __future__ import annotations

from collections.abc import Sequence

from asof.errors import AsofError


class StoreNotWritten(AsofError, OSError):
    """The online store does not answer, or refuses: it is full, locked, read-only, no database, not the writer's."""


def not_written(views: Sequence[str], store: str, where: str, why: object) -> StoreNotWritten:
    """The error of a write.

    Args:
        views: names of what was to be written.
        store: such as "SQLite".
        where: its address.
        why: what its driver said.
    """
    what = f"View {views[0]!r}" if len(views) == 1 else f"Views {', '.join(map(repr, views))}"
    return StoreNotWritten(
        f"{what} could not be written to the {store} online store at {where}: {' '.join(str(why).split())}",
        hint="Mend it, or correct online_store in feature_store.yaml, then write again: nothing is lost by that.",
    )
