"""Instants have a zone, and clocks do not run backwards."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.clock import SystemClock, VirtualClock, as_utc, parse_instant

START = datetime(2024, 1, 1, tzinfo=UTC)
NAIVE = datetime(2024, 1, 1)  # noqa: DTZ001 - the point of the test


def test_a_virtual_clock_moves_only_when_told() -> None:
    clock = VirtualClock(START)
    assert clock.now() == clock.now() == START
    clock.advance(timedelta(hours=1))
    assert clock.now() == START + timedelta(hours=1)
    clock.advance_to(clock.now())
    with pytest.raises(ValueError, match="cannot run backwards"):
        clock.advance_to(START)
    with pytest.raises(ValueError, match="cannot run backwards"):
        clock.advance(-timedelta(microseconds=1))
    assert clock.now() == START + timedelta(hours=1)


def test_a_virtual_clock_speaks_utc_whatever_it_is_told() -> None:
    clock = VirtualClock(datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))))
    assert (clock.now(), clock.now().tzinfo) == (START, UTC)


def test_an_instant_without_a_zone_is_refused_everywhere() -> None:
    with pytest.raises(ValueError, match="2024-01-01T00:00:00 has no time zone"):
        as_utc(NAIVE)
    with pytest.raises(ValueError, match="no time zone"):
        VirtualClock(NAIVE)
    with pytest.raises(ValueError, match="no time zone"):
        VirtualClock(START).advance_to(NAIVE)


def test_the_systems_clock_is_aware_and_does_not_stand_still() -> None:
    clock = SystemClock()
    assert clock.now().tzinfo is UTC
    assert clock.now() <= clock.now()


@given(st.datetimes(timezones=st.timezones(), min_value=datetime(1990, 1, 1), max_value=datetime(2040, 1, 1)))  # noqa: DTZ001
def test_utc_is_the_same_instant(instant: datetime) -> None:
    converted = as_utc(instant)
    assert converted.tzinfo is UTC
    # not `==` between zones: Python holds every instant in or beside a change of clocks for unequal to all others
    assert converted.timestamp() == instant.timestamp()
    assert parse_instant(converted.isoformat()) == converted


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2024-01-01", START),
        ("2024-01-01T00:00:00", START),
        ("2024-01-01T00:00:00Z", START),
        ("2024-01-01T02:00:00+02:00", START),
    ],
)
def test_instants_at_the_command_line(text: str, instant: datetime) -> None:
    assert parse_instant(text) == instant


def test_what_is_not_an_instant_is_refused() -> None:
    with pytest.raises(ValueError, match="soon"):
        parse_instant("soon")
