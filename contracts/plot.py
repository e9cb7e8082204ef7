"""One small plot with two axes, drawn as inline SVG; wide enough to be read on a phone as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from contracts.page import RULE, area, circle, line, path, svg, words

_WIDE, _TALL = 420.0, 250.0
_TOP, _BOTTOM = 14.0, 38.0
_LETTER = 6.2
"""About how wide one is."""


class Plot:
    """Add lines and dots in the data's own units, then `figure`.

    Args:
        x: lowest and highest value of the horizontal axis.
        y: likewise of the vertical one.
        x_name: what stands below.
        ticks: of the horizontal axis, as (value, text); chosen when none are given.
        rows: names of the rows a vertical axis has in the place of numbers, from the top; `y` is then ignored and the
            first row is at 0, the next at 1.
        log: whether the horizontal axis is logarithmic.
        whole: whether the vertical one counts: its numbers are whole ones.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float] = (0, 1),
        *,
        x_name: str = "",
        ticks: Sequence[tuple[float, str]] | None = None,
        rows: Sequence[str] = (),
        log: bool = False,
        whole: bool = False,
    ) -> None:
        self._scale: Callable[[float], float] = math.log10 if log else float
        self._x = (self._scale(x[0]), self._scale(x[1] if x[1] > x[0] else x[0] + 1))
        self._y = (len(rows) - 0.5, -0.5) if rows else (y[0], y[1] if y[1] > y[0] else y[0] + 1)
        self._tall = max(90.0, 22.0 * len(rows) + _TOP + _BOTTOM) if rows else _TALL
        longest = max((len(row) for row in rows), default=0)
        y_ticks = [] if rows else _aligned(round_values(*self._y, whole=whole))
        self._left = 12 + _LETTER * max(longest, max((len(text) for _, text in y_ticks), default=0))
        chosen = ticks if ticks is not None else [(v, _show(v)) for v in round_values(*x, most=5)]
        self._parts: list[str] = []
        floor = self._tall - _BOTTOM
        for value, text in chosen:
            at = self._across(value)
            self._parts.append(line(at, _TOP, at, floor, RULE) + words(at, floor + 14, text, "middle"))
        for value, text in y_ticks:
            at = self._up(value)
            self._parts.append(line(self._left, at, _WIDE - 14, at, RULE) + words(self._left - 6, at + 4, text, "end"))
        for place, row in enumerate(rows):
            self._parts.append(words(self._left - 8, self._up(place) + 4, row, "end"))
        self._parts.append(words((self._left + _WIDE) / 2, self._tall - 6, x_name, "middle"))

    def line(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        """A line through points."""
        self._parts.append(path([(self._across(x), self._up(y)) for x, y in points], colour))

    def straight(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        colour: str,
        *,
        width: float = 1,
        dashed: bool = False,
    ) -> None:
        """One straight line."""
        (x1, y1), (x2, y2) = start, end
        self._parts.append(
            line(self._across(x1), self._up(y1), self._across(x2), self._up(y2), colour, width=width, dashed=dashed)
        )

    def upright(self, x: float, colour: str) -> None:
        """A dashed line from bottom to top, at `x`."""
        at = self._across(x)
        self._parts.append(line(at, _TOP, at, self._tall - _BOTTOM, colour, dashed=True))

    def band(self, points: Sequence[tuple[float, float, float]], colour: str) -> None:
        """The room between a lower and an upper line; points are (x, low, high), from left to right."""
        there = [(self._across(x), self._up(high)) for x, _, high in points]
        back = [(self._across(x), self._up(low)) for x, low, _ in reversed(points)]
        self._parts.append(area([*there, *back], colour))

    def note(self, x: float, text: str) -> None:
        """A word at the top, at `x`."""
        self._parts.append(words(self._across(x), _TOP - 4, text, "middle"))

    def dot(self, x: float, y: float, colour: str, title: str, *, radius: float = 4) -> None:
        """A dot that says `title` when it is pointed at."""
        self._parts.append(circle(self._across(x), self._up(y), colour, title, radius=radius))

    def figure(self, title: str, caption: str) -> str:
        """The plot with its title and, as HTML, what it shows."""
        drawn = svg(_WIDE, self._tall, self._parts, title)
        return f"<figure><h3>{escape(title)}</h3>{drawn}<figcaption>{caption}</figcaption></figure>"

    def _across(self, value: float) -> float:
        low, high = self._x
        share = (self._scale(value) - low) / (high - low)
        return self._left + min(max(share, 0.0), 1.0) * (_WIDE - 14 - self._left)

    def _up(self, value: float) -> float:
        low, high = self._y
        share = (value - low) / (high - low)
        return self._tall - _BOTTOM - min(max(share, 0.0), 1.0) * (self._tall - _BOTTOM - _TOP)


def round_values(low: float, high: float, most: int = 6, *, whole: bool = False) -> list[float]:
    """Round values between two, at most so many and at equal distances; with `whole`, whole ones."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    factors: tuple[float, ...] = (1, 2, 2.5, 5, 10)
    if whole:
        rough, factors = max(rough, 1.0), (1, 2, 5, 10)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in factors if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [at * step for at in range(first, last + 1)]


def _aligned(values: Sequence[float]) -> list[tuple[float, str]]:
    """Each with its text, all with the same decimals."""
    shown = [_show(value) for value in values]
    decimals = max((len(text.partition(".")[2]) for text in shown), default=0)
    return [(value, f"{value:,.{decimals}f}") for value in values]


def _show(value: float) -> str:
    return f"{value:,.10g}" if abs(value) < 1e4 else f"{value:,.0f}"
