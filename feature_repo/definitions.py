"""What is known about a flight before it leaves: every Feast object of the flights example, and nothing else.

`feast apply` reads this file. Conventions:

- A view that changes over time is tagged `asof.every: 1h`: its value at t is its value at the last full hour at or
  before t, offline as online, so what an hourly materialization serves is what training saw.
- `created` is when a row could first be read; no value uses a row before that.
- A TTL of 0 never expires.
"""

from datetime import timedelta

from feast import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    RequestSource,
    StreamFeatureView,
    ValueType,
)
from feast.aggregation import Aggregation
from feast.data_format import ParquetFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Float64, Int64, String, UnixTimestamp

EVERY_HOUR = {"asof.every": "1h"}
FOREVER = timedelta(0)
WINDOWS = {"1h": timedelta(hours=1), "3h": timedelta(hours=3), "24h": timedelta(hours=24), "7d": timedelta(days=7)}


def _events(table: str, name: str | None = None, **field_mapping: str) -> FileSource:
    return FileSource(
        name=name or table,
        path=f"../data/events/{table}",
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
        field_mapping=field_mapping,
    )


# Entities -----------------------------------------------------------------------------------------------------------

origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING, description="Airport left from.")
dest = Entity(name="dest", join_keys=["dest"], value_type=ValueType.STRING, description="Airport bound for.")
carrier = Entity(
    name="carrier", join_keys=["carrier"], value_type=ValueType.STRING, description="Airline, two letters."
)
aircraft = Entity(name="aircraft", join_keys=["tailnum"], value_type=ValueType.STRING, description="One airframe.")
route = Entity(name="route", join_keys=["route"], value_type=ValueType.STRING, description="Origin and destination.")

# Plain views: the latest row ----------------------------------------------------------------------------------------

weather = FeatureView(
    name="weather",
    description="Hourly observation at the origin: F, %, degrees, mph, inches, millibars, miles. A record is out an "
    "hour after its stamp, so the newest is one to two hours old; three allow for one that is missing.",
    entities=[origin],
    ttl=timedelta(hours=3),
    source=_events("weather"),
    schema=[
        Field(name="origin", dtype=String),
        *(
            Field(name=name, dtype=Float64)
            for name in ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
        ),
    ],
    tags=EVERY_HOUR,
    online=True,
)

aircraft_facts = FeatureView(
    name="aircraft_facts",
    description="What the register says of the aircraft.",
    entities=[aircraft],
    ttl=FOREVER,
    source=_events("aircraft"),
    schema=[
        Field(name="tailnum", dtype=String),
        Field(name="year_built", dtype=Int64),
        Field(name="engines", dtype=Int64),
        Field(name="seats", dtype=Int64),
    ],
    online=True,
)


def _airport(entity: Entity, end: str) -> FeatureView:
    """Position of one end of the flight: the same table, read under the names of that end."""
    names = {"lat": f"{end}_lat", "lon": f"{end}_lon", "elevation_ft": f"{end}_elevation_ft"}
    return FeatureView(
        name=f"{end}_airport",
        description=f"Position (degrees) and elevation (feet) of the {end} airport.",
        entities=[entity],
        ttl=FOREVER,
        source=_events("airports", name=f"{end}_airports", faa=end, **names),
        schema=[
            Field(name=end, dtype=String),
            Field(name=names["lat"], dtype=Float64),
            Field(name=names["lon"], dtype=Float64),
            Field(name=names["elevation_ft"], dtype=Int64),
        ],
        online=True,
    )


origin_airport = _airport(origin, "origin")
dest_airport = _airport(dest, "dest")

aircraft_last_arrival = FeatureView(
    name="aircraft_last_arrival",
    description="Where and when the aircraft last reached a gate on a flight out of New York, and minutes late.",
    entities=[aircraft],
    ttl=timedelta(hours=24),
    source=_events(
        "arrivals",
        actual_arrival="aircraft_last_arrived_at",
        arr_delay="aircraft_last_arr_delay",
        dest="aircraft_last_airport",
    ),
    schema=[
        Field(name="tailnum", dtype=String),
        Field(name="aircraft_last_arrived_at", dtype=UnixTimestamp),
        Field(name="aircraft_last_arr_delay", dtype=Int64),
        Field(name="aircraft_last_airport", dtype=String),
    ],
    tags=EVERY_HOUR,
    online=True,
)

# Departures: windows, and the last one -------------------------------------------------------------------------------

departures = _events("departures")
# Windows keep to their hourly grid, pushed or not; what is pushed to the second one is served as it happens.
departures_stream = PushSource(name="departures_stream", batch_source=departures)
departures_push = PushSource(name="departures_push", batch_source=departures)


def _departures_by(entity: Entity) -> StreamFeatureView:
    """Departures that share a key, over each window: how many, their mean and worst delay (minutes), the share late.

    A stream view, because Feast's registry keeps the aggregations of no other kind.
    """
    key = entity.join_key
    measures = {
        "dep_count": ("dep_delay", "count", Int64),
        "dep_delay_mean": ("dep_delay", "mean", Float64),
        "dep_delay_max": ("dep_delay", "max", Int64),
        "dep_late_share": ("late", "mean", Float64),
    }
    named = {f"{key}_{m}_{w}": (*how, span) for w, span in WINDOWS.items() for m, how in measures.items()}
    return StreamFeatureView(
        name=f"{key}_departures",
        description=f"Departures by {key} over the last hour, 3 hours, day and week; late is more than 15 minutes.",
        entities=[entity],
        ttl=timedelta(hours=3),
        source=departures_stream,
        timestamp_field="event_timestamp",
        schema=[Field(name=n, dtype=dtype) for n, (_, _, dtype, _) in named.items()],
        aggregations=[
            Aggregation(column=column, function=function, time_window=span, name=name)
            for name, (column, function, _, span) in named.items()
        ],
        tags=EVERY_HOUR,
    )


origin_departures = _departures_by(origin)
carrier_departures = _departures_by(carrier)
dest_departures = _departures_by(dest)
route_departures = _departures_by(route)

origin_last_departures = StreamFeatureView(
    name="origin_last_departures",
    description="Delays (minutes) of the last 32 departures of a day at the origin, oldest first.",
    entities=[origin],
    ttl=timedelta(hours=3),
    source=departures_stream,
    timestamp_field="event_timestamp",
    schema=[Field(name="origin_last_dep_delays", dtype=Array(Int64))],
    aggregations=[
        Aggregation(column="dep_delay", function="last_32", time_window=WINDOWS["24h"], name="origin_last_dep_delays")
    ],
    tags=EVERY_HOUR,
)

route_last_departure = FeatureView(
    name="route_last_departure",
    description="Delay (minutes) of the last departure on the route, at any instant: it is pushed as it happens.",
    entities=[route],
    ttl=timedelta(hours=24),
    source=departures_push,
    schema=[
        Field(name="route", dtype=String),
        Field(name="dep_delay", dtype=Int64),
    ],
    online=True,
)

# At request time ----------------------------------------------------------------------------------------------------

request = RequestSource(
    name="flight_request",
    schema=[
        Field(name="scheduled_departure", dtype=UnixTimestamp),
        Field(name="scheduled_arrival", dtype=UnixTimestamp),
    ],
)


@on_demand_feature_view(
    sources=[
        request,
        origin_airport[["origin_lat", "origin_lon"]],
        dest_airport[["dest_lat", "dest_lon"]],
        weather[["wind_dir", "wind_speed"]],
        aircraft_last_arrival[["aircraft_last_arrived_at"]],
    ],
    schema=[
        Field(name="local_hour_sin", dtype=Float64),
        Field(name="local_hour_cos", dtype=Float64),
        Field(name="local_weekday_sin", dtype=Float64),
        Field(name="local_weekday_cos", dtype=Float64),
        Field(name="scheduled_block_minutes", dtype=Float64),
        Field(name="route_distance_km", dtype=Float64),
        Field(name="route_bearing_deg", dtype=Float64),
        Field(name="tailwind_mph", dtype=Float64),
        Field(name="turnaround_slack_hours", dtype=Float64),
    ],
    mode="python",
    description="Time of day and week in New York as points on a circle, the flight's scheduled length, its great "
    "circle, the wind along it, and the hours between the aircraft's last arrival and this departure.",
)
def flight_plan(inputs: dict[str, list]) -> dict[str, list]:
    """One list per output, a value a row; any null input of an output makes it null. Feast keeps this source text only,
    so everything it needs is inside."""
    import math
    from datetime import UTC, datetime
    from typing import Any
    from zoneinfo import ZoneInfo

    new_york = ZoneInfo("America/New_York")
    earth_km = 6371.0088

    def absent(*values: object) -> bool:
        return any(value is None or value != value for value in values)  # None, NaN, NaT

    def seconds(instant: datetime | float) -> float:
        if isinstance(instant, datetime):
            return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()
        return float(instant)

    circles: dict[tuple[float, ...], tuple[float, float]] = {}

    def great_circle(lat: float, lon: float, to_lat: float, to_lon: float) -> tuple[float, float]:
        """Kilometres, and initial bearing in degrees clockwise from north."""
        ends = (lat, lon, to_lat, to_lon)
        if ends not in circles:
            a, b, c, d = map(math.radians, ends)
            half = math.sin((c - a) / 2) ** 2 + math.cos(a) * math.cos(c) * math.sin((d - b) / 2) ** 2
            east = math.sin(d - b) * math.cos(c)
            north = math.cos(a) * math.sin(c) - math.sin(a) * math.cos(c) * math.cos(d - b)
            distance = 2 * earth_km * math.asin(min(1.0, math.sqrt(half)))
            circles[ends] = distance, math.degrees(math.atan2(east, north)) % 360.0
        return circles[ends]

    def one(*row: Any) -> tuple[float | None, ...]:
        departs, arrives, lat, lon, to_lat, to_lon, wind_from, wind_mph, arrived = row
        hour: tuple[float | None, ...] = (None, None)
        weekday = hour
        block = slack = distance = bearing = tailwind = None
        if not absent(departs):
            local = datetime.fromtimestamp(seconds(departs), new_york)
            day = 2 * math.pi * (local.hour * 60 + local.minute) / 1440
            week = 2 * math.pi * local.weekday() / 7
            hour, weekday = (math.sin(day), math.cos(day)), (math.sin(week), math.cos(week))
        if not absent(departs, arrives):
            block = (seconds(arrives) - seconds(departs)) / 60
        if not absent(departs, arrived):
            slack = (seconds(departs) - seconds(arrived)) / 3600
        if not absent(lat, lon, to_lat, to_lon):
            distance, bearing = great_circle(lat, lon, to_lat, to_lon)
        if not absent(bearing, wind_mph) and wind_mph == 0:
            tailwind = 0.0  # calm air has no direction
        elif not absent(bearing, wind_mph, wind_from):
            tailwind = -wind_mph * math.cos(math.radians(wind_from - bearing))
        return (*hour, *weekday, block, distance, bearing, tailwind, slack)

    wanted = [
        *("scheduled_departure", "scheduled_arrival", "origin_lat", "origin_lon", "dest_lat", "dest_lon"),
        *("wind_dir", "wind_speed", "aircraft_last_arrived_at"),
    ]
    names = [
        *("local_hour_sin", "local_hour_cos", "local_weekday_sin", "local_weekday_cos", "scheduled_block_minutes"),
        *("route_distance_km", "route_bearing_deg", "tailwind_mph", "turnaround_slack_hours"),
    ]
    columns = [inputs[name] for name in wanted]
    if not isinstance(columns[0], list):  # one row, a value a name
        return dict(zip(names, one(*columns), strict=True))
    rows = [one(*row) for row in zip(*columns, strict=True)]
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


hour_request = RequestSource(
    name="hour_request",
    schema=[Field(name="hour", dtype=UnixTimestamp), Field(name="planned", dtype=Int64)],
)


@on_demand_feature_view(
    sources=[hour_request],
    schema=[
        Field(name="hour_sin", dtype=Float64),
        Field(name="hour_cos", dtype=Float64),
        Field(name="is_weekend", dtype=Int64),
        Field(name="planned_departures", dtype=Int64),
    ],
    mode="python",
    description="The hour asked about on New York's clock as a point on a circle, and the departures planned for it.",
)
def hour_ahead(inputs: dict[str, list]) -> dict[str, list]:
    """One list per output, a value a row."""
    import math
    from datetime import UTC
    from zoneinfo import ZoneInfo

    rows = inputs["hour"] if isinstance(inputs["hour"], list) else [inputs["hour"]]
    aware = [None if t is None or t != t else t if t.tzinfo else t.replace(tzinfo=UTC) for t in rows]
    local = [None if t is None else t.astimezone(ZoneInfo("America/New_York")) for t in aware]
    angle = [None if t is None else 2 * math.pi * t.hour / 24 for t in local]
    found = {
        "hour_sin": [None if a is None else math.sin(a) for a in angle],
        "hour_cos": [None if a is None else math.cos(a) for a in angle],
        "is_weekend": [None if t is None else int(t.weekday() >= 5) for t in local],
    }
    if not isinstance(inputs["hour"], list):  # one row, a value a name
        found = {name: values[0] for name, values in found.items()}
    return {**found, "planned_departures": inputs["planned"]}


# Services -----------------------------------------------------------------------------------------------------------


def _windows(view: StreamFeatureView, *windows: str) -> StreamFeatureView:
    return view[[feature.name for feature in view.features if feature.name.endswith(windows)]]


late_arrival_v1 = FeatureService(
    name="late_arrival_v1",
    description="Features of the late_arrival task: numbers only, known two hours before departure.",
    features=[
        weather,
        aircraft_facts,
        origin_airport,
        dest_airport,
        aircraft_last_arrival[["aircraft_last_arr_delay"]],
        origin_departures,
        carrier_departures,
        _windows(dest_departures, "_24h"),
        _windows(route_departures, "_7d"),
        flight_plan,
    ],
)

airport_congestion_v1 = FeatureService(
    name="airport_congestion_v1",
    description="Features of the airport_congestion task: the airport's last departures one by one.",
    features=[weather, origin_last_departures, hour_ahead],
)

departure_board_v1 = FeatureService(
    name="departure_board_v1",
    description="How the origin and the route are doing right now, the last departure pushed as it happens.",
    features=[weather, _windows(origin_departures, "_1h", "_3h"), route_last_departure],
)
