"""One layout below the data root; naming a place does not make it."""

from pathlib import Path

from contracts.locations import Locations


def test_every_place_lies_below_the_data_root_and_none_is_created(tmp_path: Path) -> None:
    data = tmp_path / "data"
    places = Locations(data)
    paths = [
        places.events,
        places.mlflow_artifacts,
        places.predictions("churn"),
        places.snapshots("churn"),
        places.bundles("churn"),
        places.lock("train-churn"),
    ]
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(data) for path in paths)
    assert places.state_url == f"sqlite:///{data}/state.db"
    assert places.mlflow_uri == f"sqlite:///{data}/mlflow/mlflow.db"
    assert not data.exists()


def test_tasks_do_not_share_what_is_theirs(tmp_path: Path) -> None:
    places = Locations(tmp_path)
    for of in (places.predictions, places.snapshots, places.bundles):
        assert of("a") != of("b")
