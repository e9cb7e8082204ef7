"""The registry on a real MLflow store: numbers identify, aliases name, nothing guesses."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.locations import Locations
from contracts.registry import AmbiguousModel, Registry, UnknownVersion


@pytest.fixture(scope="module")
def locations(tmp_path_factory: pytest.TempPathFactory) -> Locations:
    return Locations(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def registry(locations: Locations) -> Registry:
    return Registry(locations)


def register(registry: Registry, task: str, status: str = "candidate") -> int:
    return registry.register(
        task,
        run_id="0" * 32,
        bundle=Path("/bundles/b"),
        status=status,  # type: ignore[arg-type]
        dataset_hash="d",
        model_hash="m",
    ).version


def test_versions_are_numbered_and_keep_what_they_are(registry: Registry) -> None:
    assert [register(registry, "churn"), register(registry, "churn", "rejected")] == [1, 2]
    first, second = registry.versions("churn")
    assert (first.task, first.version, first.status, first.bundle) == ("churn", 1, "candidate", Path("/bundles/b"))
    assert (first.run_id, first.dataset_hash, first.model_hash) == ("0" * 32, "d", "m")
    assert second.status == "rejected"
    assert register(registry, "fraud") == 1


def test_a_task_without_versions(registry: Registry) -> None:
    assert registry.versions("nothing") == []
    assert registry.aliases("nothing") == {}
    registry.set_alias("nothing", "champion", None)
    with pytest.raises(UnknownVersion, match="no version 'champion'") as caught:
        registry.resolve("nothing@champion")
    assert caught.value.hint == "train one: `skewless train nothing`."


def test_an_alias_moves_and_goes(registry: Registry) -> None:
    one, two = register(registry, "moving"), register(registry, "moving")
    registry.set_alias("moving", "champion", one)
    registry.set_alias("moving", "challenger", two)
    assert registry.aliases("moving") == {"champion": 1, "challenger": 2}
    registry.set_alias("moving", "champion", two)
    for _ in range(2):
        registry.set_alias("moving", "challenger", None)
    assert registry.aliases("moving") == {"champion": 2}


def test_a_version_is_named_by_number_or_alias_and_never_guessed(registry: Registry) -> None:
    register(registry, "named")
    register(registry, "named")
    registry.set_alias("named", "champion", 1)
    assert registry.resolve("named@2").version == 2
    assert registry.resolve("named@champion").version == 1
    with pytest.raises(AmbiguousModel, match="'named' names a task") as caught:
        registry.resolve("named")
    assert caught.value.hint == "name one of @1, @2, @champion."
    for missing in ("named@3", "named@challenger"):
        with pytest.raises(UnknownVersion):
            registry.resolve(missing)


def test_opening_again_finds_what_is_there(registry: Registry, locations: Locations) -> None:
    register(registry, "kept")
    assert [each.version for each in Registry(locations).versions("kept")] == [1]
