"""The repository as its users meet it: applied with Feast's own command, opened through asof."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VIEWS = {"weather", "aircraft_facts", "origin_airport", "dest_airport", "aircraft_last_arrival", "route_last_departure"}
WINDOWED = {"origin_departures", "carrier_departures", "dest_departures", "route_departures"}
ARRAYS = {"origin_last_departures"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a fresh clone has: the repository and its tasks, no data."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "feature_repo", tmp_path / "feature_repo", ignore=skip)
    shutil.copytree(ROOT / "tasks", tmp_path / "tasks")
    return tmp_path


def feast(*arguments: str, cwd: Path) -> str:
    command = [str(Path(sys.executable).with_name("feast")), *arguments]
    done = subprocess.run(command, cwd=cwd, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_feast_apply_works_in_a_fresh_clone_from_either_folder(checkout):
    said = feast("-c", "feature_repo", "apply", cwd=checkout)
    for name in VIEWS:
        assert f"Created feature view {name}\n" in said
    for name in WINDOWED | ARRAYS:
        assert f"Created stream feature view {name}\n" in said
    assert "Created on demand feature view flight_plan\n" in said
    for name in ("late_arrival_v1", "departure_board_v1", "airport_congestion_v1"):
        assert f"Created feature service {name}\n" in said
    assert sorted(os.listdir(checkout / "data")) == ["online.db", "registry.db"]
    again = feast("apply", cwd=checkout / "feature_repo")
    assert "No changes to infrastructure" in again
    assert "Created" not in again
    assert "Deleted" not in again


def test_a_registry_keeps_every_window_and_every_tag(checkout):
    from asof.repository import apply_repository, open_store

    apply_repository(checkout / "feature_repo")
    store = open_store(checkout / "feature_repo")
    assert {view.name for view in store.list_batch_feature_views()} == VIEWS
    windowed = {view.name: view for view in store.list_stream_feature_views()}
    assert set(windowed) == WINDOWED | ARRAYS
    (array,) = windowed.pop("origin_last_departures").aggregations
    assert (array.column, array.function, array.time_window.days) == ("dep_delay", "last_32", 1)
    for name, view in windowed.items():
        key = name.removesuffix("_departures")
        assert {(a.name, a.column, a.function, a.time_window.total_seconds() / 3600) for a in view.aggregations} == {
            (f"{key}_{measure}_{window}", column, function, hours)
            for window, hours in (("1h", 1), ("3h", 3), ("24h", 24), ("7d", 168))
            for measure, column, function in (
                ("dep_count", "dep_delay", "count"),
                ("dep_delay_mean", "dep_delay", "mean"),
                ("dep_delay_max", "dep_delay", "max"),
                ("dep_late_share", "late", "mean"),
            )
        }
        assert view.tags == {"asof.every": "1h"}


def test_the_model_sees_numbers_under_unique_names(checkout):
    from feast.types import Float64, Int64

    from asof.repository import apply_repository, open_store

    apply_repository(checkout / "feature_repo")
    store = open_store(checkout / "feature_repo")
    for service, least in (("late_arrival_v1", 60), ("departure_board_v1", 10)):
        features = [f for p in store.get_feature_service(service).feature_view_projections for f in p.features]
        names = [feature.name for feature in features]
        assert len(set(names)) == len(names) >= least
        assert {feature.dtype for feature in features} <= {Float64, Int64}
        assert not [name for name in names if name.endswith("_y")]


def test_a_view_of_the_model_is_static_or_on_the_hourly_grid(checkout):
    from asof.repository import apply_repository, open_store

    apply_repository(checkout / "feature_repo")
    store = open_store(checkout / "feature_repo")
    services = [store.get_feature_service(name) for name in ("late_arrival_v1", "airport_congestion_v1")]
    asked = {p.name for service in services for p in service.feature_view_projections} - {"flight_plan", "hour_ahead"}
    views = [store.registry.get_any_feature_view(name, store.project) for name in asked]
    ungridded = {view.name for view in views if not view.tags}
    assert ungridded == {"aircraft_facts", "origin_airport", "dest_airport"}
    assert {view.ttl.total_seconds() for view in views if view.name in ungridded} == {0}
    assert all(view.ttl.total_seconds() > 3600 for view in views if view.name not in ungridded)
