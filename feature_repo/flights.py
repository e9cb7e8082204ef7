"""Schedules, and the departures and arrivals that came of them, from one raw row a flight."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from feature_repo.clocks import HOME, clock_time, local_clock, with_clock_gap, with_next_on_clock
from feature_repo.rows import INSTANT, INT, Landing, Rule, known, present, read, sort_out, typed, within

LATE_MINUTES = 15
"""A departure or an arrival is late when it is later than this."""

_PLAN = ("year", "month", "day", "sched_dep_time", "sched_arr_time", "flight", "distance", "minute")
_MOVES = ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time")
_NAMES = ("flight_id", "carrier", "flight", "tailnum", "origin", "dest", "route")


def land_flights(folder: Path, airports: pl.DataFrame, carriers: pl.DataFrame) -> dict[str, Landing]:
    """Three tables of `flights.csv`.

    - `schedules`: every flight, cancelled ones too; published a day before it departs.
    - `departures`: the flights that left, known when they leave. Minutes late are the record; the instant is the
      scheduled one plus the delay, and the clock time in the source must agree with it.
    - `arrivals`: the flights that reached the gate of their destination, known when they do; likewise.

    A row with a bad schedule is set aside whole; a bad departure or arrival is set aside for itself.
    """
    raw = read(folder, "flights.csv", [*_PLAN, "time_hour", "carrier", "tailnum", "origin", "dest", *_MOVES])
    schedules, refused = _schedules(raw, airports, carriers)
    left, stayed = _departures(schedules, raw.columns)
    arrived, lost = _arrivals(schedules, left, raw.columns)
    published = pl.col("scheduled_departure") - pl.duration(days=1)
    plan = schedules.select(
        *_NAMES,
        "scheduled_departure",
        "scheduled_arrival",
        pl.col("distance").alias("distance_mi"),
        event_timestamp=published,
        created=published,
    )
    return {
        "schedules": Landing(raw.height, plan.sort("event_timestamp", "flight_id"), refused),
        "departures": Landing(left.height + stayed.height, _movements(left, "departure"), stayed, notes=_notes(left)),
        "arrivals": Landing(arrived.height + lost.height, _movements(arrived, "arrival"), lost, notes=_notes(arrived)),
    }


def _schedules(raw: pl.DataFrame, airports: pl.DataFrame, carriers: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    frame, rules = typed(raw, {"time_hour": INSTANT, **dict.fromkeys(_PLAN, INT)})
    rules += present("carrier", "origin", "dest", "time_hour", *_PLAN)
    rules += [known("origin", airports["faa"], "airport"), known("dest", airports["faa"], "airport")]
    rules += [known("carrier", carriers["carrier"], "airline"), within("distance", 1, 13000)]
    rules += [("origin and dest are the same", pl.col("origin") == pl.col("dest"))]
    rules += [clock_time("sched_dep_time"), clock_time("sched_arr_time"), within("minute", 0, 59)]
    sound, malformed = sort_out(frame, rules, raw.columns)

    zones = airports.select(dest="faa", zone="time_zone")
    sound = sound.join(zones, on="dest", how="left", maintain_order="left").with_columns(
        scheduled_departure=pl.col("time_hour") + pl.duration(minutes="minute")
    )
    planned = pl.col("sched_dep_time")
    rules = [local_clock("scheduled_departure", planned // 100, planned % 100)]
    rules += [("dest has no time zone", pl.col("zone").is_null())]
    placed, misplaced = sort_out(sound, rules, raw.columns)

    placed = with_next_on_clock(placed, "scheduled_arrival", "scheduled_departure", "sched_arr_time", "zone")
    block = (pl.col("scheduled_arrival") - pl.col("scheduled_departure")).dt.total_minutes()
    stamp = pl.col("scheduled_departure").dt.strftime("%Y%m%dT%H%MZ")
    named = placed.with_columns(
        route=pl.format("{}-{}", "origin", "dest"),
        flight_id=pl.format("{}{}-{}-{}", "carrier", "flight", "origin", stamp),
    )
    rules = [("sched_arr_time does not exist on the clock of dest", pl.col("scheduled_arrival").is_null())]
    rules += [("scheduled block is not within 20 minutes and 16 hours", ~block.is_between(20, 16 * 60))]
    good, mistimed = sort_out(named, rules, raw.columns, key=["flight_id"])
    return good, pl.concat([malformed, misplaced, mistimed])


def _departures(schedules: pl.DataFrame, raw: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    said = schedules.filter(pl.col("dep_delay").is_not_null() | pl.col("dep_time").is_not_null())
    frame, rules = typed(said, {"dep_delay": INT, "dep_time": INT})
    rules += [*present("dep_delay", "dep_time"), within("dep_delay", -180, 2880), clock_time("dep_time")]
    return _moved(frame.with_columns(zone=pl.lit(HOME)), rules, "departure", "dep", raw)


def _arrivals(schedules: pl.DataFrame, left: pl.DataFrame, raw: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    said = schedules.filter(pl.col("arr_delay").is_not_null())  # a diverted flight lands elsewhere and has none
    departed = left.select("flight_id", "actual_departure")
    said = said.join(departed, on="flight_id", how="left", maintain_order="left")
    frame, rules = typed(said, {"arr_delay": INT, "arr_time": INT, "air_time": INT})
    rules += [*present("arr_time", "air_time"), within("arr_delay", -180, 2880), clock_time("arr_time")]
    rules += [("no departure is on record", pl.col("actual_departure").is_null())]
    arrived, refused = _moved(frame, rules, "arrival", "arr", raw)
    flown = (pl.col("actual_arrival") - pl.col("actual_departure")).dt.total_minutes()
    arrived, too_soon = sort_out(arrived, [("gate to gate took less than air_time", flown < pl.col("air_time"))], raw)
    return arrived, pl.concat([refused, too_soon])


def _moved(
    frame: pl.DataFrame, rules: list[Rule], event: str, short: str, raw: list[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Add `actual_<event>` and refuse the rows whose clock time says otherwise."""
    sound, malformed = sort_out(frame, rules, raw)
    actual = f"actual_{event}"
    sound = sound.with_columns((pl.col(f"scheduled_{event}") + pl.duration(minutes=f"{short}_delay")).alias(actual))
    timed = with_clock_gap(sound, actual, f"{short}_time", "zone")
    apart = (pl.col("gap") != 0) & (pl.col("gap") != pl.col("change"))
    good, contradicted = sort_out(timed, [(f"{short}_time contradicts {short}_delay", apart)], raw)
    return good, pl.concat([malformed, contradicted])


def _movements(frame: pl.DataFrame, event: str) -> pl.DataFrame:
    when, delay = pl.col(f"actual_{event}"), "dep_delay" if event == "departure" else "arr_delay"
    columns = frame.select(
        *_NAMES,
        f"scheduled_{event}",
        when,
        delay,
        late=(pl.col(delay) > LATE_MINUTES).cast(pl.Int64),
        event_timestamp=when,
        created=when,
    )
    return columns.sort("event_timestamp", "flight_id")


def _notes(frame: pl.DataFrame) -> dict[str, int]:
    """Records kept on the old time in the hours after a clock change: the delay is right, the clock time is stale."""
    stale = int((frame["gap"] != 0).sum())
    return {"clock time is from before the clocks changed": stale} if stale else {}
