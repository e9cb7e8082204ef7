"""Durations are read as people write them, and written so that they can be read."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.duration import PATTERN, parse_duration, show_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("90m", 5400), ("2h", 7200), ("7d", 604_800), ("2w", 1_209_600), ("1d 12h", 129_600), ("1.5h", 5400)],
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@given(st.integers(1, 10**6), st.sampled_from("smhdw"))
def test_every_whole_duration_is_read(number: int, unit: str) -> None:
    scale = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
    assert parse_duration(f"{number}{unit}") == timedelta(seconds=number * scale[unit])
    assert parse_duration(timedelta(seconds=number)) == timedelta(seconds=number)


@pytest.mark.parametrize("text", ["", "7", "d", "-5m", "7 days", "1h, 2m", 7, None, True])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a number and a unit"):
        parse_duration(text)
    if isinstance(text, str):
        assert not re.fullmatch(PATTERN, text)


@given(st.integers(1, 10**9))
def test_what_is_shown_is_read_back_and_passes_an_editor(seconds: int) -> None:
    shown = show_duration(timedelta(seconds=seconds))
    assert parse_duration(shown) == timedelta(seconds=seconds)
    assert re.fullmatch(PATTERN, shown)


def test_the_shortest_way_to_write_it() -> None:
    assert show_duration(timedelta(days=90)) == "90d"
    assert show_duration(timedelta(days=1, hours=12)) == "1d 12h"
    assert show_duration(timedelta(minutes=90)) == "1h 30m"
    assert show_duration(timedelta(0)) == "0s"
    assert show_duration(timedelta(seconds=0.5)) == "0.5s"
