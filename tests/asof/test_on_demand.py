"""An on-demand view run lean gives what Feast's own run gives, and sees what serving shows it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from feast import Field, FileSource, OnDemandFeatureView, RequestSource
from feast.entity import Entity
from feast.feature_view import FeatureView
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, UnixTimestamp
from hypothesis import given
from hypothesis import strategies as st

from asof.on_demand import lean, to_lists

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
SEEN: list[set[str]] = []

shop = Entity(name="shop", join_keys=["shop"])
stock = FeatureView(
    name="stock",
    entities=[shop],
    source=FileSource(name="stock", path="stock.parquet", timestamp_field="at"),
    schema=[Field(name="pieces", dtype=Int64)],
)
clock = RequestSource(name="clock", schema=[Field(name="opened", dtype=UnixTimestamp)])


def view(mode: str) -> OnDemandFeatureView:
    def python(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
        SEEN.append(set(inputs))
        rows = zip(inputs["pieces"], inputs["opened"], strict=True)
        return {"open_pieces": [None if p is None or o is None else p * o.timestamp() for p, o in rows]}

    def pandas(inputs: pd.DataFrame) -> pd.DataFrame:
        SEEN.append(set(inputs.columns))
        return inputs[["pieces"]].rename(columns={"pieces": "open_pieces"}) * 2.5

    schema = [Field(name="open_pieces", dtype=Float64)]
    decorate = on_demand_feature_view(sources=[stock, clock], schema=schema, mode=mode)
    made: OnDemandFeatureView = decorate(python if mode == "python" else pandas)
    return made


TABLE = pa.table(
    {
        "shop": pa.array([1, 2, 3], pa.int64()),
        "opened": pa.array([NOON, None, NOON + timedelta(microseconds=1)], pa.timestamp("us", tz="UTC")),
        "pieces": pa.array([4, 5, None], pa.int64()),
        "weather": pa.array(["wet", "dry", None]),
    }
)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("mode", ["python", "pandas"])
def test_the_outputs_are_those_of_feast(mode: str, full: bool) -> None:
    table = TABLE.rename_columns(["shop", "opened", "stock__pieces", "weather"]) if full else TABLE
    made = view(mode)
    assert lean(made, {"weather"}).transform_arrow(table, full).equals(made.transform_arrow(table, full))


@pytest.mark.parametrize("mode", ["python", "pandas"])
def test_what_the_view_does_not_declare_stays_out_and_the_view_is_as_it_was(mode: str) -> None:
    made = view(mode)
    SEEN.clear()
    lean(made, {"weather"}).transform_arrow(TABLE)
    made.transform_arrow(TABLE)
    narrow, wide = SEEN
    assert narrow == {"shop", "opened", "pieces", "stock__pieces"}
    assert wide == narrow | {"weather"}


instants = st.none() | st.datetimes(datetime.fromisoformat("1900-01-01"), datetime.fromisoformat("2200-01-01"))


@given(st.lists(instants, max_size=5), st.sampled_from(["s", "ms", "us", "ns"]), st.sampled_from([None, "UTC"]))
def test_lists_hold_what_arrow_itself_gives(found: list[datetime | None], unit: str, zone: str | None) -> None:
    stamps = pa.array(found, pa.timestamp("us")).cast(pa.timestamp(unit), safe=False)
    stamps = stamps.cast(pa.timestamp(unit, tz=zone)) if zone else stamps
    table = pa.table({"at": stamps, "n": pa.array(range(len(found)), pa.int64())})
    got, expected = to_lists(table), table.to_pydict()
    assert got == expected
    assert [type(each) for each in got["at"]] == [type(each) for each in expected["at"]]
    assert [getattr(each, "tzinfo", None) for each in got["at"]] == [
        getattr(each, "tzinfo", None) for each in expected["at"]
    ]
