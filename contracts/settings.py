"""A project's own settings, `skewless.toml` beside `tasks/`. Without the file everything is as if it were empty.

[state]
url = "postgresql://skewless@db/skewless"   # rollout and alert state; data/state.db when left out

[mlflow]
uri = "http://mlflow:5000"      # a server or a PostgreSQL database; data/mlflow when left out

[registry]
kind = "git"                    # mlflow (default), git or wandb: who holds the versions
path = "../models.git"          # git: the repository, relative to this file; data/registry.git when left out
# project = "flights"           # wandb: where its runs and artifacts go
# mode = "online"               # wandb: "offline" (default) keeps everything here until `wandb sync`

[retention]
frames = 10                     # `skewless retention` keeps the training frames of so many newest versions; 0: of all

A password in the file is refused. The drivers take it from where they always do: PostgreSQL's from PGPASSWORD or
PGPASSFILE, an MLflow server's from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from contracts.errors import SkewlessError
from contracts.locations import Locations, RegistryChoice
from contracts.mistakes import explain

FILE = "skewless.toml"
_DATABASES = ("postgresql", "postgresql+psycopg")
_PASSWORD = re.compile(r"://[^:/@]*:[^@].*@|[?&]password=.")
"""In a URL: what stands between user and host, or among the parameters."""


class SettingsError(SkewlessError, ValueError):
    """A settings file that cannot be used."""


def _of_scheme(*schemes: str) -> AfterValidator:
    def check(value: str) -> str:
        if urlsplit(value).scheme not in schemes:
            raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return value

    return AfterValidator(check)


class _State(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, _of_scheme(*_DATABASES)] = ""


class _Mlflow(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: Annotated[str, _of_scheme("http", "https", *_DATABASES)] = ""


class _Registry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mlflow", "git", "wandb"] = "mlflow"
    path: Path | None = None
    project: str = "skewless"
    mode: Literal["offline", "online"] = "offline"

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        for field, kind in (("path", "git"), ("project", "wandb"), ("mode", "wandb")):
            if field in self.model_fields_set and self.kind != kind:
                raise ValueError(f"{field} is for kind {kind!r}; this registry is {self.kind!r}")
        return self


class Retention(BaseModel):
    """What of the past may go; as it is, nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: int = Field(default=0, ge=0)
    """Training frames of so many newest versions stay, and of every version that served; 0 keeps all."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    state: _State = _State()
    mlflow: _Mlflow = _Mlflow()
    registry: _Registry = _Registry()
    retention: Retention = Retention()


def locate(root: Path, data: Path | None = None) -> Locations:
    """Where the project below `root` keeps what it makes, by its settings.

    Args:
        root: the folder with the settings file, if there is one.
        data: its data root; `root/data` when None.

    Raises:
        SettingsError: the file is not TOML, says something that is not known, or holds a password.
    """
    found = _settings(root)
    chosen = found.registry
    where = None if chosen.path is None else (root / chosen.path).resolve()
    return Locations(
        data or root / "data",
        RegistryChoice(chosen.kind, where, chosen.project, chosen.mode),
        state_server=found.state.url,
        mlflow_server=found.mlflow.uri,
    )


def retention_rules(root: Path) -> Retention:
    """What of the past may go, by the project's settings. Raises SettingsError."""
    return _settings(root).retention


def _settings(root: Path) -> _Settings:
    path = root / FILE
    if not path.is_file():
        return _Settings()
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}.", hint="fix the line named above.") from error
    for section, values in written.items():
        for field, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, str) and _PASSWORD.search(value):  # before anything that would show it
                raise SettingsError(
                    f"{path}: {section}.{field} holds a password.",
                    hint="take it out of the file: PGPASSWORD or PGPASSFILE brings PostgreSQL's, "
                    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD an MLflow server's.",
                )
    try:
        return _Settings.model_validate(written)
    except ValidationError as error:
        raise SettingsError(
            f"{path} is wrong:\n" + "\n".join(explain(error, _Settings)), hint="fix the fields above."
        ) from error
