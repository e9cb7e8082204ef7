"""Every registry keeps one contract: numbers identify, aliases name, nothing guesses, and two writers harm nobody."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from contracts.bundle import MANIFEST
from contracts.locations import Locations, RegistryChoice
from contracts.registry import AliasMoved, AmbiguousModel, Registry, RegistryError, UnknownVersion, open_registry

KINDS = ("mlflow", "git", "wandb")


@pytest.fixture(scope="module", params=KINDS)
def locations(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Locations:
    return Locations(tmp_path_factory.mktemp("registry"), RegistryChoice(request.param))


@pytest.fixture(scope="module")
def registry(locations: Locations) -> Registry:
    return open_registry(locations)


@pytest.fixture(scope="module")
def bundle(locations: Locations) -> Path:
    folder = locations.bundles("churn") / "b"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(bytes(range(256)))
    (folder / MANIFEST).write_text("{}")
    return folder


def register(registry: Registry, task: str, bundle: Path, status: Any = "candidate") -> int:
    return registry.register(
        task, run_id="0" * 32, bundle=bundle, status=status, dataset_hash="d", model_hash="m"
    ).version


def test_versions_are_numbered_and_keep_what_they_are(registry: Registry, bundle: Path) -> None:
    assert [register(registry, "churn", bundle), register(registry, "churn", bundle, "rejected")] == [1, 2]
    first, second = registry.versions("churn")
    assert (first.task, first.version, first.status, first.bundle) == ("churn", 1, "candidate", bundle)
    assert (first.run_id, first.dataset_hash, first.model_hash) == ("0" * 32, "d", "m")
    assert second.status == "rejected"
    assert register(registry, "fraud", bundle) == 1


def test_a_task_without_versions(registry: Registry) -> None:
    assert registry.versions("nothing") == []
    assert registry.aliases("nothing") == {}
    registry.set_alias("nothing", "champion", None)
    with pytest.raises(UnknownVersion, match="no version 'champion'") as caught:
        registry.resolve("nothing@champion")
    assert caught.value.hint == "train one: `skewless train nothing`."


def test_an_alias_moves_and_goes(registry: Registry, bundle: Path) -> None:
    one, two = register(registry, "moving", bundle), register(registry, "moving", bundle)
    registry.set_alias("moving", "champion", one)
    registry.set_alias("moving", "challenger", two)
    assert registry.aliases("moving") == {"champion": 1, "challenger": 2}
    registry.set_alias("moving", "champion", two)
    for _ in range(2):
        registry.set_alias("moving", "challenger", None)
    assert registry.aliases("moving") == {"champion": 2}
    with pytest.raises(UnknownVersion, match="no version '9'"):
        registry.set_alias("moving", "champion", 9)


def test_an_alias_moves_only_from_where_it_is_expected(registry: Registry, bundle: Path) -> None:
    one, two = register(registry, "swapped", bundle), register(registry, "swapped", bundle)
    registry.set_alias("swapped", "champion", one, expected=None)
    with pytest.raises(AliasMoved, match="names version 1, not no version as expected"):
        registry.set_alias("swapped", "champion", two, expected=None)
    with pytest.raises(AliasMoved, match="names version 1, not version 2 as expected"):
        registry.set_alias("swapped", "champion", None, expected=two)
    registry.set_alias("swapped", "champion", two, expected=one)
    assert registry.aliases("swapped") == {"champion": 2}


def test_a_version_is_named_by_number_or_alias_and_never_guessed(registry: Registry, bundle: Path) -> None:
    register(registry, "named", bundle)
    register(registry, "named", bundle)
    registry.set_alias("named", "champion", 1)
    assert registry.resolve("named@2").version == 2
    assert registry.resolve("named@champion").version == 1
    with pytest.raises(AmbiguousModel, match="'named' names a task") as caught:
        registry.resolve("named")
    assert caught.value.hint == "name one of @1, @2, @champion."
    for missing in ("named@3", "named@challenger"):
        with pytest.raises(UnknownVersion):
            registry.resolve(missing)


def test_opening_again_finds_what_is_there(registry: Registry, locations: Locations, bundle: Path) -> None:
    register(registry, "kept", bundle)
    assert [each.version for each in open_registry(locations).versions("kept")] == [1]


WRITER = """
    import sys
    from pathlib import Path
    from contracts.locations import Locations, RegistryChoice
    from contracts.registry import AliasMoved, open_registry

    kind, data, bundle = sys.argv[1:]
    registry = open_registry(Locations(Path(data), RegistryChoice(kind)))
    print("ready", flush=True)
    sys.stdin.readline()
    what = dict(run_id="r", bundle=Path(bundle), status="candidate", dataset_hash="d", model_hash="m")
    numbers = [registry.register("busy", **what).version for _ in range(2)]
    won = 0
    for each in numbers:
        try:
            registry.set_alias("busy", "champion", each, expected=None)
            won += 1
        except AliasMoved:
            pass
    print([numbers, won])
"""


def test_processes_that_write_at_once_get_numbers_of_their_own_and_one_wins_the_alias(
    registry: Registry, locations: Locations, bundle: Path
) -> None:
    words = [sys.executable, "-c", textwrap.dedent(WRITER), locations.registry.kind, str(locations.data), str(bundle)]
    writers = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    answers = [json.loads(writer.communicate(timeout=240)[0]) for writer in writers]
    numbers = sorted(number for mine, _ in answers for number in mine)
    assert numbers == [1, 2, 3, 4]
    assert sum(won for _, won in answers) == 1
    assert [each.version for each in registry.versions("busy")] == numbers


class TestGit:
    @pytest.fixture
    def made(self, tmp_path: Path) -> tuple[Registry, Locations, Path]:
        locations = Locations(tmp_path / "data", RegistryChoice("git", tmp_path / "models.git"))
        folder = locations.bundles("churn") / "b"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(bytes(range(256)))
        (folder / MANIFEST).write_text("{}")
        return open_registry(locations), locations, folder

    def test_another_checkout_gets_the_bundle_from_the_repository(
        self, made: tuple[Registry, Locations, Path], tmp_path: Path
    ) -> None:
        registry, locations, bundle = made
        register(registry, "churn", bundle)
        elsewhere = Locations(tmp_path / "elsewhere", locations.registry)
        found = open_registry(elsewhere).resolve("churn@1")
        assert found.bundle == elsewhere.bundles("churn") / "b"
        assert {file.name: file.read_bytes() for file in found.bundle.iterdir()} == {
            file.name: file.read_bytes() for file in bundle.iterdir()
        }

    def test_git_shows_what_a_version_is(self, made: tuple[Registry, Locations, Path]) -> None:
        registry, locations, bundle = made
        register(registry, "churn", bundle)
        register(registry, "churn", bundle, "rejected")
        registry.set_alias("churn", "champion", 1)

        def git(*words: str) -> str:
            folder = str(locations.registry.path)
            return subprocess.run(
                ["git", "--git-dir", folder, *words], capture_output=True, text=True, check=True
            ).stdout

        assert git("ls-tree", "-r", "--name-only", "models").split() == [
            f"churn/v{number}{name}" for number in (1, 2) for name in (".json", f"/{MANIFEST}", "/model.onnx")
        ]
        assert json.loads(git("show", "churn/v2:churn/v2.json")) == {
            "task": "churn",
            "version": 2,
            "run_id": "0" * 32,
            "status": "rejected",
            "dataset_hash": "d",
            "model_hash": "m",
            "bundle": "b",
        }
        assert git("rev-parse", "churn/champion") == git("rev-parse", "churn/v1")
        assert git("fsck", "--strict") == ""

    def test_a_folder_that_is_no_repository_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "plain").mkdir()
        with pytest.raises(RegistryError, match=r"git rev-parse failed in .*plain"):
            open_registry(Locations(tmp_path / "data", RegistryChoice("git", tmp_path / "plain")))

    def test_a_missing_git_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(RegistryError, match="git is not installed"):
            open_registry(Locations(tmp_path / "data", RegistryChoice("git", tmp_path / "models.git")))

    def test_a_folder_without_a_bundle_is_not_registered(self, made: tuple[Registry, Locations, Path]) -> None:
        registry, _, bundle = made
        (bundle / MANIFEST).unlink()
        with pytest.raises(RegistryError, match="No bundle at"):
            register(registry, "churn", bundle)
        assert registry.versions("churn") == []

    def test_a_write_that_never_gets_its_turn_gives_up_and_registers_nothing(
        self, made: tuple[Registry, Locations, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry, locations, bundle = made
        register(registry, "churn", bundle)
        monkeypatch.setattr("contracts.registry_git._PATIENCE", 0.2)
        assert locations.registry.path is not None
        lock = locations.registry.path / "refs" / "heads" / "models.lock"  # as a git that was killed leaves it
        lock.touch()
        with pytest.raises(RegistryError, match=r"others were faster for 0\.2 s") as caught:
            register(registry, "churn", bundle)
        assert str(lock) in caught.value.hint
        lock.unlink()
        assert register(registry, "churn", bundle) == 2


class TestWandb:
    def test_bundles_and_moves_are_logged_where_sync_finds_them(self, tmp_path: Path) -> None:
        locations = Locations(tmp_path / "data", RegistryChoice("wandb", project="flights"))
        bundle = locations.bundles("churn") / "b"
        bundle.mkdir(parents=True)
        (bundle / "model.onnx").write_bytes(b"model")
        registry = open_registry(locations)
        register(registry, "churn", bundle)
        registry.set_alias("churn", "champion", 1)
        registry.set_alias("churn", "champion", 1)  # nothing moves, nothing is logged
        logged = sorted((locations.data / "wandb" / "wandb").glob("offline-run-*/*.wandb"))
        assert len(logged) == 2
        content = [file.read_bytes() for file in logged]
        assert any(b"model.onnx" in each and b"dataset_hash" in each for each in content)

    def test_a_version_that_wandb_did_not_take_is_not_registered(self, tmp_path: Path) -> None:
        locations = Locations(tmp_path / "data", RegistryChoice("wandb"))
        bundle = tmp_path / "b"
        bundle.mkdir()
        (bundle / "model.onnx").write_bytes(b"model")
        registry = open_registry(locations)
        (locations.data / "wandb").write_text("a file where the folder should be")
        with pytest.raises(RegistryError, match="did not take the register of 'churn'"):
            register(registry, "churn", bundle)
        assert registry.versions("churn") == []

    def test_without_the_package_it_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "wandb", None)
        with pytest.raises(RegistryError, match="wandb is not installed"):
            open_registry(Locations(tmp_path, RegistryChoice("wandb")))
