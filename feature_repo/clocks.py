"""Between the clocks on the wall and UTC, daylight saving included."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from feature_repo.rows import Rule

HOME = "America/New_York"
"""The clock of the three origin airports, which the source's local columns show."""
_DAY = 24 * 60


def clock_time(column: str) -> Rule:
    """Refuses numbers that no clock shows as hhmm; a null passes. Midnight may be 0 or 2400."""
    value = pl.col(column)
    return f"{column} is not a clock time", ~(value.is_between(0, 2400) & (value % 100 < 60))


def local_clock(instant: str, hour: pl.Expr, minute: pl.Expr | None = None) -> Rule:
    """Refuses rows whose `instant`, read in New York, is not their own `year`, `month`, `day`, hour and minute."""
    there = pl.col(instant).dt.convert_time_zone(HOME)
    agrees = (
        (there.dt.year() == pl.col("year"))
        & (there.dt.month() == pl.col("month"))
        & (there.dt.day() == pl.col("day"))
        & (there.dt.hour() == hour)
    )
    if minute is not None:
        agrees &= there.dt.minute() == minute
    return f"{instant} disagrees with its local clock", ~agrees


def with_next_on_clock(frame: pl.DataFrame, name: str, after: str, clock: str, zone: str) -> pl.DataFrame:
    """Add `name`: the first instant later than `after` at which the clock in `zone` shows `clock` (hhmm).

    Only the day of `after` there and the next are searched: null where that finds nothing, in the spring night whose
    clocks skip that time.
    """

    def there(place: str) -> pl.Expr:
        midnight = pl.col(after).dt.convert_time_zone(place).dt.replace_time_zone(None).dt.truncate("1d")
        candidates = [
            (midnight + pl.duration(days=days, minutes=_minutes(clock)))
            .dt.replace_time_zone(place, ambiguous=which, non_existent="null")
            .dt.convert_time_zone("UTC")
            for days in (0, 1)
            for which in ("earliest", "latest")  # half past one comes twice in the night the clocks go back
        ]
        return pl.min_horizontal(pl.when(candidate > pl.col(after)).then(candidate) for candidate in candidates)

    return _by_zone(frame, zone, lambda place: [there(place).alias(name)])


def with_clock_gap(frame: pl.DataFrame, instant: str, clock: str, zone: str) -> pl.DataFrame:
    """Add `gap` and `change`, in minutes.

    `gap` is by how much `instant`, read in `zone`, is ahead of `clock` (hhmm), within half a day either way. `change`
    is by how much the clocks there were put forward in the three hours before: a gap equal to it is a record kept on
    the old time.
    """

    def there(place: str) -> list[pl.Expr]:
        now, before = ((pl.col(instant) - pl.duration(hours=hours)).dt.convert_time_zone(place).dt for hours in (0, 3))
        shown = now.hour().cast(pl.Int64) * 60 + now.minute()
        gap = (shown - _minutes(clock) + _DAY // 2) % _DAY - _DAY // 2
        return [gap.alias("gap"), (now.dst_offset() - before.dst_offset()).dt.total_minutes().alias("change")]

    return _by_zone(frame, zone, there)


def _minutes(clock: str) -> pl.Expr:
    return pl.col(clock) // 100 * 60 + pl.col(clock) % 100


def _by_zone(frame: pl.DataFrame, zone: str, there: Callable[[str], list[pl.Expr]]) -> pl.DataFrame:
    """Polars converts a whole column to one zone: do each zone's rows apart and put them back in their order."""
    places = sorted(frame[zone].unique())
    rows = frame.with_row_index("_row")
    parts = [rows.filter(pl.col(zone) == place).with_columns(there(place)) for place in places]
    empty = rows.clear().with_columns(there(HOME))
    return pl.concat([empty, *parts]).sort("_row").drop("_row")
