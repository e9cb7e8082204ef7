"""The request-time transform against an obvious reading of each quantity."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest

NEW_YORK = ZoneInfo("America/New_York")
JFK, LAX, HNL, SJU = (40.639751, -73.778925), (33.942536, -118.408075), (21.318681, -157.922428), (18.4394, -66.0018)
NOON = datetime(2013, 6, 14, 16, 0, tzinfo=UTC)  # a Friday, 12:00 in New York


@pytest.fixture(scope="module")
def definitions():
    import feature_repo.definitions

    return feature_repo.definitions


@pytest.fixture(scope="module")
def udf(definitions):
    """The function as Feast gives it back from a registry: rebuilt from its source text alone."""
    from feast.on_demand_feature_view import OnDemandFeatureView

    return OnDemandFeatureView.from_proto(definitions.flight_plan.to_proto()).feature_transformation.udf


def inputs(**changes):
    row = {
        "scheduled_departure": NOON,
        "scheduled_arrival": NOON + timedelta(minutes=375),
        "origin_lat": JFK[0],
        "origin_lon": JFK[1],
        "dest_lat": LAX[0],
        "dest_lon": LAX[1],
        "wind_dir": 270.0,
        "wind_speed": 12.0,
        "aircraft_last_arrived_at": NOON - timedelta(minutes=90),
    }
    assert set(changes) <= set(row)
    return {name: [value] for name, value in (row | changes).items()}


def ask(udf, **changes):
    return {name: values[0] for name, values in udf(inputs(**changes)).items()}


def unit(lat, lon):
    a, b = math.radians(lat), math.radians(lon)
    return np.array([math.cos(a) * math.cos(b), math.cos(a) * math.sin(b), math.sin(a)])


def course(start, end):
    """Distance and initial bearing from vectors: no formula shared with the transform."""
    p, q = unit(*start), unit(*end)
    distance = 6371.0088 * math.atan2(np.linalg.norm(np.cross(p, q)), p @ q)
    east = np.cross([0, 0, 1], p)
    east /= np.linalg.norm(east)
    north = np.cross(p, east)
    return distance, math.degrees(math.atan2(q @ east, q @ north)) % 360


@pytest.mark.parametrize(
    ("start", "end"), [(JFK, LAX), (JFK, HNL), (JFK, SJU), (LAX, JFK), (SJU, JFK), ((0, 0), (0, 90))]
)
def test_the_great_circle_agrees_with_vectors(udf, start, end):
    got = ask(udf, origin_lat=start[0], origin_lon=start[1], dest_lat=end[0], dest_lon=end[1])
    distance, bearing = course(start, end)
    assert got["route_distance_km"] == pytest.approx(distance, rel=1e-12)
    assert got["route_bearing_deg"] == pytest.approx(bearing, abs=1e-9)


def test_known_figures_of_a_known_route(udf):
    got = ask(udf)
    assert got["route_distance_km"] == pytest.approx(3974, abs=5)
    assert got["route_bearing_deg"] == pytest.approx(274, abs=1)


@pytest.mark.parametrize("wind_from", range(0, 361, 45))
def test_the_wind_pushes_along_the_route_as_its_vector_says(udf, wind_from):
    _, bearing = course(JFK, LAX)
    toward = math.radians(wind_from + 180)
    ahead = math.radians(bearing)
    along = 12 * (math.sin(toward) * math.sin(ahead) + math.cos(toward) * math.cos(ahead))
    assert ask(udf, wind_dir=float(wind_from))["tailwind_mph"] == pytest.approx(along, abs=1e-9)


def test_a_westerly_is_a_head_wind_to_the_west(udf):
    assert ask(udf, wind_dir=270.0)["tailwind_mph"] < -11.9


def test_calm_air_needs_no_direction_and_variable_wind_has_none(udf):
    assert ask(udf, wind_speed=0.0, wind_dir=None)["tailwind_mph"] == 0.0
    assert ask(udf, wind_speed=3.0, wind_dir=None)["tailwind_mph"] is None


@pytest.mark.parametrize(
    "instant",
    [
        datetime(2013, 3, 10, 6, 59, tzinfo=UTC),  # 01:59 before the clocks go forward
        datetime(2013, 3, 10, 7, 0, tzinfo=UTC),  # 03:00, a minute later
        datetime(2013, 11, 3, 5, 30, tzinfo=UTC),  # 01:30 for the first time
        datetime(2013, 11, 3, 6, 30, tzinfo=UTC),  # 01:30 again
        datetime(2013, 7, 1, 3, 0, tzinfo=UTC),  # Monday in UTC, still Sunday in New York
    ],
)
def test_hour_and_weekday_are_those_of_new_york(udf, instant):
    got, local = ask(udf, scheduled_departure=instant), instant.astimezone(NEW_YORK)
    hour = math.degrees(math.atan2(got["local_hour_sin"], got["local_hour_cos"])) % 360 / 15
    weekday = math.degrees(math.atan2(got["local_weekday_sin"], got["local_weekday_cos"])) % 360 * 7 / 360
    assert hour == pytest.approx(local.hour + local.minute / 60, abs=1e-9)
    assert round(weekday, 9) % 7 == local.weekday()


def test_block_and_slack_are_plain_differences(udf):
    got = ask(udf)
    assert got["scheduled_block_minutes"] == 375.0
    assert got["turnaround_slack_hours"] == 1.5
    assert ask(udf, aircraft_last_arrived_at=NOON + timedelta(hours=2))["turnaround_slack_hours"] == -2.0


@pytest.mark.parametrize(
    "form",
    [
        lambda t: t,
        lambda t: t.replace(tzinfo=None),
        lambda t: t.astimezone(NEW_YORK),
        lambda t: int(t.timestamp()),
        lambda t: t.timestamp(),
    ],
    ids=["utc", "naive", "new_york", "seconds", "float_seconds"],
)
def test_an_instant_means_the_same_in_every_form_feast_hands_over(udf, form):
    times = {
        "scheduled_departure": NOON,
        "scheduled_arrival": NOON + timedelta(hours=3),
        "aircraft_last_arrived_at": NOON,
    }
    assert ask(udf, **{name: form(t) for name, t in times.items()}) == ask(udf, **times)


CLOCK = {"local_hour_sin", "local_hour_cos", "local_weekday_sin", "local_weekday_cos"}
BLOCK, SLACK, WIND = {"scheduled_block_minutes"}, {"turnaround_slack_hours"}, {"tailwind_mph"}
CIRCLE = {"route_distance_km", "route_bearing_deg"}
NEEDED_BY = {
    "scheduled_departure": CLOCK | BLOCK | SLACK,
    "scheduled_arrival": BLOCK,
    **dict.fromkeys(("origin_lat", "origin_lon", "dest_lat", "dest_lon"), CIRCLE | WIND),
    "wind_dir": WIND,
    "wind_speed": WIND,
    "aircraft_last_arrived_at": SLACK,
}


@pytest.mark.parametrize("nothing", [None, math.nan], ids=["none", "nan"])
@pytest.mark.parametrize("name", NEEDED_BY)
def test_a_null_input_nulls_what_needs_it_and_nothing_else(udf, name, nothing):
    got, whole = ask(udf, **{name: nothing}), ask(udf)
    assert {output for output, value in got.items() if value is None} == NEEDED_BY[name]
    assert {k: v for k, v in got.items() if v is not None} == {k: whole[k] for k in got if k not in NEEDED_BY[name]}


def test_many_rows_are_many_single_rows_in_order(udf):
    rows = [{}, {"dest_lat": SJU[0], "dest_lon": SJU[1]}, {"wind_dir": None}, {"scheduled_departure": None}, {}]
    asked = [inputs(**row) for row in rows]
    together = udf({name: [row[name][0] for row in asked] for name in asked[0]})
    assert [{name: values[i] for name, values in together.items()} for i in range(5)] == [ask(udf, **r) for r in rows]


def test_a_row_of_plain_values_is_a_list_of_one(udf):
    assert udf({name: values[0] for name, values in inputs().items()}) == ask(udf)


def test_no_rows_give_no_rows(udf):
    assert set(map(tuple, udf({name: [] for name in inputs()}).values())) == {()}


def test_its_outputs_are_those_it_declares(definitions, udf):
    assert list(udf(inputs())) == [field.name for field in definitions.flight_plan.features]
    assert all(isinstance(value, float) for value in ask(udf).values())
