"""skewless.toml: what a project says of itself, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.locations import Locations, RegistryChoice
from contracts.settings import SettingsError, locate


def written(root: Path, text: str) -> Path:
    (root / "skewless.toml").write_text(text)
    return root


def test_without_the_file_everything_is_embedded(tmp_path: Path) -> None:
    assert locate(tmp_path) == Locations(tmp_path / "data", RegistryChoice("mlflow"))


def test_a_git_registry_lies_relative_to_the_file(tmp_path: Path) -> None:
    root = written(tmp_path, '[registry]\nkind = "git"\npath = "../models.git"')
    assert locate(root).registry == RegistryChoice("git", (tmp_path / "../models.git").resolve())


def test_a_wandb_registry_stays_offline_unless_told(tmp_path: Path) -> None:
    assert locate(written(tmp_path, '[registry]\nkind = "wandb"')).registry.mode == "offline"
    chosen = locate(written(tmp_path, '[registry]\nkind = "wandb"\nproject = "flights"\nmode = "online"')).registry
    assert (chosen.project, chosen.mode) == ("flights", "online")


def test_servers_take_the_place_of_files(tmp_path: Path) -> None:
    text = (
        '[state]\nurl = "postgresql://us@db:5433/state?sslmode=require"\n[mlflow]\nuri = "https://mlflow.us:5000/base"'
    )
    found = locate(written(tmp_path, text), tmp_path / "elsewhere")
    assert found.state_url == "postgresql://us@db:5433/state?sslmode=require"
    assert found.mlflow_uri == "https://mlflow.us:5000/base"
    assert found.data == tmp_path / "elsewhere"
    for url in ("postgresql+psycopg:///state?host=/run/postgresql", "postgresql://us:@/state?host=/run/postgresql"):
        found = locate(written(tmp_path, f'[state]\nurl = "{url}"'))
        assert found.state_url == url
    assert found.mlflow_uri == f"sqlite:///{tmp_path}/data/mlflow/mlflow.db"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[registry", "is not valid TOML"),
        ('[registry]\nkind = "svn"', r"registry.kind = 'svn': Input should be 'mlflow', 'git' or 'wandb'"),
        ('[registry]\nkind = "git"\npaht = "x"', r"registry.paht = 'x': no such field; did you mean 'path'\?"),
        ('[registry]\npath = "x"', "path is for kind 'git'; this registry is 'mlflow'"),
        ('[registry]\nkind = "git"\nmode = "online"', "mode is for kind 'wandb'; this registry is 'git'"),
        ('[state]\nurl = "mysql://db/x"', r"state.url = 'mysql://db/x': must begin with postgresql:// or postgresql\+"),
        ('[state]\nurl = "data/state.db"', "state.url = 'data/state.db': must begin with postgresql://"),
        ('[state]\nuri = "postgresql://db/x"', r"state.uri = .*: no such field; did you mean 'url'\?"),
        ('[mlflow]\nuri = "sqlite:///x.db"', "mlflow.uri = 'sqlite:///x.db': must begin with http:// or https://"),
        ('state = "postgresql://db/x"', "state = 'postgresql://db/x': Input should be a valid dictionary"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        locate(written(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        '[state]\nurl = "postgresql://us:s3cret@db/state"',
        '[state]\nurl = "postgresql://us:s3#cret/@db/state"',  # which no parser of URLs would find
        '[state]\nurl = "postgresql://us@db/state?sslmode=require&password=s3cret"',
        '[state]\nurl = "mysql://us:s3cret@db/state"',
        '[mlflow]\nuri = "https://us:s3cret@mlflow/"',
        '[mlflow]\nurl = "https://us:s3cret@mlflow/"',
    ],
)
def test_a_password_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match="holds a password") as caught:
        locate(written(tmp_path, text))
    assert "s3" not in str(caught.value)
    assert "PGPASSWORD" in caught.value.hint
    assert caught.value.__cause__ is None
