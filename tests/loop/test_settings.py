"""skewless.toml: what a project says of itself, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.locations import RegistryChoice
from loop.project import Project
from loop.settings import SettingsError, registry_choice


def written(root: Path, text: str) -> Path:
    (root / "skewless.toml").write_text(text)
    return root


def test_without_the_file_versions_are_in_mlflow(tmp_path: Path) -> None:
    assert registry_choice(tmp_path) == RegistryChoice("mlflow")


def test_a_git_registry_lies_relative_to_the_file(tmp_path: Path) -> None:
    root = written(tmp_path, '[registry]\nkind = "git"\npath = "../models.git"')
    assert Project(root).locations.registry == RegistryChoice("git", (tmp_path / "../models.git").resolve())


def test_a_wandb_registry_stays_offline_unless_told(tmp_path: Path) -> None:
    assert registry_choice(written(tmp_path, '[registry]\nkind = "wandb"')).mode == "offline"
    chosen = registry_choice(written(tmp_path, '[registry]\nkind = "wandb"\nproject = "flights"\nmode = "online"'))
    assert (chosen.project, chosen.mode) == ("flights", "online")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[registry", "is not valid TOML"),
        ('[registry]\nkind = "svn"', r"registry.kind = 'svn': Input should be 'mlflow', 'git' or 'wandb'"),
        ('[registry]\nkind = "git"\npaht = "x"', r"registry.paht = 'x': no such field; did you mean 'path'\?"),
        ('[registry]\npath = "x"', "path is for kind 'git'; this registry is 'mlflow'"),
        ('[registry]\nkind = "git"\nmode = "online"', "mode is for kind 'wandb'; this registry is 'git'"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        registry_choice(written(tmp_path, text))
