"""A project's own settings, `skewless.toml` beside `tasks/`. Without the file everything is as if it were empty.

[registry]
kind = "git"                    # mlflow (default), git or wandb: who holds the versions
path = "../models.git"          # git: the repository, relative to this file; data/registry.git when left out
# project = "flights"           # wandb: where its runs and artifacts go
# mode = "online"               # wandb: "offline" (default) keeps everything here until `wandb sync`

[retention]
frames = 10                     # `skewless retention` keeps the training frames of so many newest versions; 0: of all
log = "365d"                    # and log files until their newest answer is so old; left out: for ever
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from contracts.duration import Duration
from contracts.errors import SkewlessError
from contracts.locations import RegistryChoice
from contracts.mistakes import explain

FILE = "skewless.toml"


class SettingsError(SkewlessError, ValueError):
    """A settings file that cannot be used."""


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
    log: Duration | None = None
    """Log files stay until their newest answer is older than this; None keeps all."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    registry: _Registry = _Registry()
    retention: Retention = Retention()


def registry_choice(root: Path) -> RegistryChoice:
    """Who holds the versions, by the project's settings.

    Raises:
        SettingsError: the file is not TOML, or says something that is not known.
    """
    chosen = _settings(root).registry
    where = None if chosen.path is None else (root / chosen.path).resolve()
    return RegistryChoice(chosen.kind, where, chosen.project, chosen.mode)


def retention_rules(root: Path) -> Retention:
    """What of the past may go, by the project's settings. Raises SettingsError."""
    return _settings(root).retention


def _settings(root: Path) -> _Settings:
    path = root / FILE
    if not path.is_file():
        return _Settings()
    try:
        return _Settings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}.", hint="fix the line named above.") from error
    except ValidationError as error:
        raise SettingsError(
            f"{path} is wrong:\n" + "\n".join(explain(error, _Settings)), hint="fix the fields above."
        ) from error
