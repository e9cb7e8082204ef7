"""Hourly weather, and the registers of aircraft, airports and carriers."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from feature_repo.clocks import local_clock
from feature_repo.rows import FLOAT, INSTANT, INT, Landing, known, present, read, sort_out, typed, within

_REGISTERED = pl.datetime(2000, 1, 1, time_zone="UTC").cast(INSTANT)
"""Registers carry no history: they are taken as known since before the data begin."""

_SUPPLIED_ZONE = "America/Puerto_Rico"
_SUPPLIED = pl.DataFrame(
    [
        ("BQN", "Rafael Hernandez Airport", 18.4949, -67.1294, 237),
        ("PSE", "Mercedita Airport", 18.0083, -66.5630, 29),
        ("SJU", "Luis Munoz Marin International Airport", 18.4394, -66.0018, 9),
        ("STT", "Cyril E King Airport", 18.3373, -64.9734, 23),
    ],
    schema={"faa": pl.String, "name": pl.String, "lat": FLOAT, "lon": FLOAT, "alt": INT},
    orient="row",
)
"""Destinations that airports.csv lacks: published reference points, elevation in feet."""

_WEATHER_LIMITS = {
    "temp": (-80, 140),
    "dewp": (-100, 100),
    "humid": (0, 100),
    "wind_dir": (0, 360),
    "wind_speed": (0, 200),
    "wind_gust": (0, 250),
    "precip": (0, 20),
    "pressure": (850, 1090),
    "visib": (0, 100),
}
"""What an instrument can have read: degrees F, %, degrees, mph, inches, millibars, miles."""


def land_airports(folder: Path) -> Landing:
    """Airports by FAA code with position, elevation and time zone; the four missing destinations added, marked so."""
    raw = read(folder, "airports.csv", ["faa", "name", "lat", "lon", "alt", "tzone"])
    frame, rules = typed(raw, {"lat": FLOAT, "lon": FLOAT, "alt": INT})
    rules += [*present("faa", "lat", "lon", "alt"), within("lat", -90, 90), within("lon", -180, 180)]
    good, bad = sort_out(frame, rules, raw.columns, key=["faa"])
    missing = _SUPPLIED.join(good, on="faa", how="anti").with_columns(tzone=pl.lit(_SUPPLIED_ZONE), supplied=True)
    good = pl.concat([good.with_columns(supplied=False).select(missing.columns), missing])
    good = good.rename({"alt": "elevation_ft", "tzone": "time_zone"}).sort("faa")
    return Landing(raw.height, _registered(good), bad, supplied=missing.height)


def land_carriers(folder: Path) -> Landing:
    """Airlines by their two-letter code."""
    raw = read(folder, "airlines.csv", ["carrier", "name"])
    good, bad = sort_out(raw, present("carrier", "name"), raw.columns, key=["carrier"])
    return Landing(raw.height, _registered(good.sort("carrier")), bad)


def land_aircraft(folder: Path) -> Landing:
    """Aircraft by tail number."""
    raw = read(folder, "planes.csv", ["tailnum", "type", "manufacturer", "model", "engine", "year", "engines", "seats"])
    frame, rules = typed(raw, {"year": INT, "engines": INT, "seats": INT})
    rules += [*present("tailnum"), within("year", 1903, 2013), within("engines", 1, 8), within("seats", 1, 900)]
    good, bad = sort_out(frame, rules, raw.columns, key=["tailnum"])
    good = good.select(raw.columns).rename({"year": "year_built"}).sort("tailnum")
    return Landing(raw.height, _registered(good), bad)


def land_weather(folder: Path, airports: pl.DataFrame) -> Landing:
    """Hourly observations by airport: stamped with the hour's start, complete and so known one hour later."""
    local = ("year", "month", "day", "hour")
    raw = read(folder, "weather.csv", ["origin", *local, "time_hour", *_WEATHER_LIMITS])
    types = {"time_hour": INSTANT, **dict.fromkeys(local, INT), **dict.fromkeys(_WEATHER_LIMITS, FLOAT)}
    frame, rules = typed(raw, types)
    rules += [*present("origin", "time_hour", *local), known("origin", airports["faa"], "airport")]
    rules += [within(column, *limits) for column, limits in _WEATHER_LIMITS.items()]
    rules += [local_clock("time_hour", pl.col("hour"))]
    good, bad = sort_out(frame, rules, raw.columns, key=["origin", "time_hour"])
    hour = pl.col("time_hour")
    good = good.select("origin", *_WEATHER_LIMITS, event_timestamp=hour, created=hour + pl.duration(hours=1))
    return Landing(raw.height, good.sort("event_timestamp", "origin"), bad)


def _registered(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(event_timestamp=_REGISTERED, created=_REGISTERED)
