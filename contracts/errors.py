"""The one base of every error Skewless raises on purpose: a fact, its evidence, the next step."""

from __future__ import annotations


class SkewlessError(Exception):
    """Something a person can act on; the command line prints it without a traceback.

    Subclasses also derive from the builtin that fits (`ValueError`, `LookupError`, ...) and live beside their raiser.

    Args:
        fact: what is wrong, naming field and value.
        hint: the next step, as a sentence or a command.
    """

    exit_status = 2
    """What a command ends with: 2, it could not be tried; 1 where a subclass is the answer no."""

    def __init__(self, fact: str, *, hint: str = "") -> None:
        super().__init__(f"{fact}\n\nHint: {hint}" if hint else fact)
        self.fact = fact
        self.hint = hint
