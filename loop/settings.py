"""A project's own settings, `skewless.toml` beside `tasks/`. Without the file everything is as if it were empty.

[registry]
kind = "git"                    # mlflow (default), git or wandb: who holds the versions
path = "../models.git"          # git: the repository, relative to this file; data/registry.git when left out
# project = "flights"           # wandb: where its runs and artifacts go
# mode = "online"               # wandb: "offline" (default) keeps everything here until `wandb sync`
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

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


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    registry: _Registry = _Registry()


def registry_choice(root: Path) -> RegistryChoice:
    """Who holds the versions, by the project's settings.

    Raises:
        SettingsError: the file is not TOML, or says something that is not known.
    """
    path = root / FILE
    if not path.is_file():
        return RegistryChoice()
    try:
        chosen = _Settings.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).registry
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}.", hint="fix the line named above.") from error
    except ValidationError as error:
        raise SettingsError(
            f"{path} is wrong:\n" + "\n".join(explain(error, _Settings)), hint="fix the fields above."
        ) from error
    where = None if chosen.path is None else (root / chosen.path).resolve()
    return RegistryChoice(chosen.kind, where, chosen.project, chosen.mode)
