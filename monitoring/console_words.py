"""How the console writes figures, instants and messages down."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from contracts.duration import show_duration

NOTHING = "\N{EN DASH}"
"""Stands for what is not known."""
_PARTS = re.compile(r"What: (?P<what>.*?) Why: (?P<why>.*?) Do: (?P<do>.*)", re.DOTALL)
_BACKTICKS = re.compile(r"`([^`]+)`")


def number(value: float | None, digits: int = 4) -> str:
    """With separators and so many decimals; a dash for None."""
    if value is None:
        return NOTHING
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def percent(share: float | None) -> str:
    """A share in percent; small ones keep a decimal."""
    if share is None:
        return NOTHING
    return f"{share:.1%}" if 0 < share < 0.1 and round(share * 1000) % 10 else f"{share:.0%}"


def instant(at: datetime | str) -> str:
    """Minutes are enough; always UTC."""
    value = datetime.fromisoformat(at) if isinstance(at, str) else at
    return f"{value:%Y-%m-%d %H:%M}"


def day(at: datetime | str) -> str:
    """An instant's day, and its time where that is not midnight."""
    return instant(at).removesuffix(" 00:00")


def date(at: datetime | str) -> str:
    """An instant's day in words, which may break between them."""
    value = datetime.fromisoformat(at) if isinstance(at, str) else at
    return f"{value.day} {value:%b %Y}"


def age(seconds: float | None) -> str:
    """Seconds in the two largest units that tell them."""
    if seconds is None:
        return NOTHING
    if seconds < 1:
        return "under 1 s"
    for unit, size in (("day", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            value = seconds / size
            shown = f"{value:.1f}".removesuffix(".0") if value < 10 else f"{value:,.0f}"
            return f"{shown} {unit}{'s' if unit == 'day' else ''}"
    return f"{seconds:.0f} s"


def every(length: timedelta) -> str:
    """A duration as a task file writes it."""
    return show_duration(length)


def told(message: str) -> dict[str, str]:
    """An alert's message in its three parts, or as a whole under `what`."""
    found = _PARTS.fullmatch(message.strip())
    parts = found.groupdict() if found else {"what": message, "why": "", "do": ""}
    return {name: part[:1].upper() + part[1:] for name, part in parts.items()}


def pieces(text: str) -> list[tuple[bool, str]]:
    """Text and code in turn: what stands between backticks is code."""
    return [(at % 2 == 1, piece) for at, piece in enumerate(_BACKTICKS.split(text)) if piece]
