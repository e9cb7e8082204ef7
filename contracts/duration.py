"""Durations as people write them in a task file: `"90m"`, `"2h"`, `"7d"`, `"1d 12h"`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
PATTERN = r"^\s*(\d+(\.\d+)?\s*[smhdw]\s*)+$"
"""The same, for an editor that checks a file against the JSON Schema."""


def parse_duration(value: object) -> object:
    """`"90m"`, `"2h"`, `"7d"` or `"1d 12h"` to a timedelta; a timedelta passes through. Raises ValueError otherwise."""
    if isinstance(value, timedelta):
        return value
    parts = _DURATION.findall(value) if isinstance(value, str) else []
    if not parts or _DURATION.sub("", str(value)).strip():
        raise ValueError("a duration is a number and a unit of s, m, h, d or w, such as '90m' or '7d'")
    return sum((timedelta(**{_UNITS[unit]: float(number)}) for number, unit in parts), timedelta())


def show_duration(span: timedelta) -> str:
    """The shortest way to write it: "90d", "1d 12h", "0s".

    >>> show_duration(timedelta(days=1, hours=12))
    '1d 12h'
    """
    seconds = round(span.total_seconds(), 6)
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        count, seconds = divmod(seconds, size)
        parts += [f"{count:g}{unit}"] if count else []
    return " ".join([*parts, f"{seconds:g}s"] if seconds or not parts else parts)


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    Field(gt=timedelta(0)),
    WithJsonSchema({"type": "string", "pattern": PATTERN}),
]
"""A length of time above zero."""
