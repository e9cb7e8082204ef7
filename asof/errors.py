"""The one base of every error asof raises on purpose: a fact, its evidence, the next step."""

from __future__ import annotations


class AsofError(Exception):
    """Something a person can act on.

    Subclasses also derive from the builtin that fits (`ValueError`, `LookupError`, ...) and live beside their raiser.

    Args:
        fact: what is wrong, naming view, column and value.
        hint: the next step, as a sentence or a command.
    """

    def __init__(self, fact: str, *, hint: str = "") -> None:
        super().__init__(f"{fact}\n\nHint: {hint}" if hint else fact)
        self.fact = fact
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Exception would rebuild from args, losing the hint; errors do cross process borders on a cluster.
        return _rebuild, (type(self), self.fact, self.hint)


def _rebuild(kind: type[AsofError], fact: str, hint: str) -> AsofError:
    return kind(fact, hint=hint)
