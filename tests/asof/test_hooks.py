"""What asof replaces of Feast for speed alone gives what Feast's own gives."""

from __future__ import annotations

import importlib.util

import pandas as pd
import pytest
from feast import utils

from asof import hooks, offline_store

TIMES = pd.Series(pd.date_range("2013-03-09 21:00", periods=99, freq="37min"))


@pytest.fixture(scope="module")
def feasts_own():
    """Feast's module as it is before asof is imported."""
    spec = importlib.util.find_spec("feast.utils")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_df_tzaware


@pytest.mark.parametrize("backend", ["numpy", "pyarrow"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_times_of_an_entity_frame_are_in_utc_as_feast_makes_them(feasts_own, unit, zone, backend):
    times = TIMES.where(TIMES[7] != TIMES).astype(f"datetime64[{unit}]").dt.tz_localize("UTC").dt.tz_convert(zone)
    repeated = pd.concat([times[:9]] * 11, ignore_index=True)
    frame = pd.DataFrame({"key": "a", "event_timestamp": times, "planned": repeated, "row": range(len(times))})
    frame = frame.convert_dtypes(dtype_backend="pyarrow") if backend == "pyarrow" else frame
    given = frame.copy()
    found = utils.make_df_tzaware(frame)
    pd.testing.assert_frame_equal(found, feasts_own(frame))
    pd.testing.assert_frame_equal(frame, given)
    found.loc[0, "row"] = -1
    assert frame["row"][0] == 0


def test_feast_takes_ours(feasts_own):
    assert offline_store.AsofOfflineStore
    assert utils.make_df_tzaware is hooks.in_utc
    assert feasts_own is not hooks.in_utc
