"""The one place that opens or applies a Feast repository.

    store = open_store(repo_path)        # feast.FeatureStore on asof's offline store and compute engine
    apply_repository(repo_path)          # what `feast apply` does, in process, from any working directory

A repository whose sources are files runs on asof whatever its own `feature_store.yaml` names as offline store: that
is what makes a stranger's repository work unchanged. Other offline stores (a warehouse) are left as they are.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import linecache
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from feast import FeatureStore, RepoConfig
from feast.repo_operations import _get_repo_contents, apply_total_with_repo_instance
from pydantic import ValidationError

from asof.errors import AsofError

OFFLINE_STORE = "asof.offline_store.AsofOfflineStore"
BATCH_ENGINE = "asof.compute.AsofComputeEngine"

_FILE_BASED = {"file", "dask", "duckdb"}
# Applying changes the working directory and the module table, which belong to the whole process.
_process_state = threading.Lock()


class RepositoryNotFound(AsofError, FileNotFoundError):
    """The path holds no `feature_store.yaml`."""


class InvalidRepository(AsofError, ValueError):
    """`feature_store.yaml` or the definitions beside it cannot be used."""


class UnappliedRegistry(AsofError, LookupError):
    """The repository was never applied, so its registry names no view."""


def load_config(repo_path: Path) -> RepoConfig:
    """Read `feature_store.yaml`, putting asof in place of Feast's file-based stores.

    Args:
        repo_path: folder holding `feature_store.yaml`; relative paths inside it resolve against this folder.

    Raises:
        RepositoryNotFound: there is no such file.
        InvalidRepository: it is not YAML, or Feast refuses it.
    """
    repo_path = Path(repo_path).resolve()
    return _config(repo_path, _on_asof(_settings(repo_path)))


def open_beside(repo_path: Path, *, project: str, registry: Path) -> FeatureStore:
    """A store of a program's own beside a repository: the same online store, its own project in its own registry file.

    What is applied to it is none of the repository's: `feast apply` there, which removes whatever the repository does
    not define, neither sees nor drops it. Its sources are files, read through asof.

    Args:
        repo_path: folder holding `feature_store.yaml`.
        project: a name; it begins the names of tables in the online store, after the repository's own project's.
        registry: file; made by the first object that is applied.

    Raises:
        RepositoryNotFound, InvalidRepository: as `load_config`.
    """
    repo_path = Path(repo_path).resolve()
    raw = _settings(repo_path)
    own = {"project": f"{raw.get('project')}_{project}", "registry": str(Path(registry).resolve())}
    files = {"offline_store": {"type": OFFLINE_STORE}, "batch_engine": {"type": BATCH_ENGINE}}
    return FeatureStore(repo_path=str(repo_path), config=_config(repo_path, {**_on_asof(raw), **own, **files}))


def _settings(repo_path: Path) -> dict[str, Any]:
    path = repo_path / "feature_store.yaml"
    if not path.is_file():
        raise RepositoryNotFound(
            f"No Feast repository at {repo_path}: feature_store.yaml is missing.",
            hint="Give the folder that holds feature_store.yaml, or create one with `feast init`.",
        )
    try:
        raw = yaml.safe_load(os.path.expandvars(path.read_text()))
    except yaml.YAMLError as error:
        raise InvalidRepository(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise InvalidRepository(f"{path} must hold a mapping, found {type(raw).__name__}.")
    return raw


def _config(repo_path: Path, settings: dict[str, Any]) -> RepoConfig:
    try:
        config = RepoConfig(**settings)
    except (ValidationError, ValueError, KeyError) as error:
        path = repo_path / "feature_store.yaml"
        raise InvalidRepository(f"Feast refuses {path}: {error}", hint="Correct the field it names.") from error
    config.repo_path = repo_path
    return config


def _on_asof(raw: dict[str, Any]) -> dict[str, Any]:
    offline = raw.get("offline_store") or {}
    if isinstance(offline, str):
        offline = {"type": offline}
    kind = offline.get("type", "dask")
    if kind in _FILE_BASED:
        offline = {"type": OFFLINE_STORE}
    elif kind != OFFLINE_STORE:
        return raw
    engine = raw.get("batch_engine") or {}
    if not isinstance(engine, dict) or engine.get("type") != BATCH_ENGINE:
        engine = {"type": BATCH_ENGINE}
    # asof reads naive times as UTC itself, in every kind of frame; Feast would copy a pandas one to do the same.
    return {"coerce_tz_aware": False, **raw, "offline_store": offline, "batch_engine": engine}


def open_store(repo_path: Path) -> FeatureStore:
    """Open an applied repository.

    Args:
        repo_path: folder holding `feature_store.yaml`.

    Returns:
        A `feast.FeatureStore`; file-based repositories read and materialize through asof.

    Raises:
        RepositoryNotFound: no `feature_store.yaml` there.
        InvalidRepository: Feast refuses it.
        UnappliedRegistry: `feast apply` has not been run.
    """
    store = FeatureStore(repo_path=str(Path(repo_path).resolve()), config=load_config(repo_path))
    try:
        projects = [project.name for project in store.registry.list_projects(allow_cache=True)]
    except FileNotFoundError:
        projects = []
    if store.project not in projects:
        raise UnappliedRegistry(
            f"The registry of {Path(repo_path).resolve()} does not know project {store.project!r}.",
            hint=f"feast -c {repo_path} apply",
        )
    return store


def open_apart(repo_path: Path, folder: Path) -> FeatureStore:
    """A repository's definitions as they are registered now, with a registry and an online store of their own.

    Nothing was ever materialized in it, and what is materialized reaches nobody else: for rehearsals.

    Args:
        repo_path: folder holding `feature_store.yaml`; its sources stay where they are.
        folder: for `registry.db` and `online.db`, a SQLite store; what is there is replaced.

    Raises:
        RepositoryNotFound, InvalidRepository, UnappliedRegistry: as `open_store`.
    """
    repo_path, folder = Path(repo_path).resolve(), Path(folder).resolve()
    registered = open_store(repo_path).registry.proto()
    for view in [*registered.feature_views, *registered.stream_feature_views]:
        del view.meta.materialization_intervals[:]
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("online.db*"):
        leftover.unlink()
    (folder / "registry.db").write_bytes(registered.SerializeToString())
    own = {
        "registry": str(folder / "registry.db"),
        "online_store": {"type": "sqlite", "path": str(folder / "online.db")},
    }
    return FeatureStore(repo_path=str(repo_path), config=_config(repo_path, {**_on_asof(_settings(repo_path)), **own}))


def apply_repository(repo_path: Path) -> None:
    """Register every Feast object defined below `repo_path`, as `feast apply` does.

    The definitions are imported as `feast apply` imports them (module names relative to the repository) and forgotten
    afterwards, so that repositories with equally named modules can be applied in one process.

    Raises:
        RepositoryNotFound: no `feature_store.yaml` there.
        InvalidRepository: Feast refuses the configuration or the definitions.
    """
    repo_path = Path(repo_path).resolve()
    config = load_config(repo_path)
    said = io.StringIO()
    with _process_state, _imports_from(repo_path), contextlib.redirect_stdout(said):
        try:
            contents = _get_repo_contents(repo_path, config.project, config)
        except SystemExit as error:
            raise InvalidRepository(
                f"Feast refuses the definitions in {repo_path}: {said.getvalue().strip()}"
            ) from error
        except Exception as error:  # a module of definitions runs as it is imported: anything may come of it
            raise InvalidRepository(
                f"The definitions in {repo_path} cannot be imported: {type(error).__name__}: {error}",
                hint=f"Correct {_place(error, repo_path)}.",
            ) from error
        store = FeatureStore(repo_path=str(repo_path), config=config)
        apply_total_with_repo_instance(store, config.project, store.registry, contents, skip_source_validation=False)


def _place(error: Exception, repo_path: Path) -> str:
    """The last line of the repository itself that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(repo_path)]
    return f"{inside[-1].filename}, line {inside[-1].lineno}" if inside else "the module it names"


@contextlib.contextmanager
def _imports_from(repo_path: Path) -> Iterator[None]:
    """Import modules by their path below `repo_path`, and leave the process as it was."""
    cwd, path, bytecode = Path.cwd(), list(sys.path), sys.dont_write_bytecode
    names = {p.stem for p in repo_path.iterdir() if p.suffix == ".py" or (p.is_dir() and p.stem.isidentifier())}
    names -= {"asof", "feast"}  # never import a second copy of the host or of ourselves

    def loaded() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in names]

    # Another repository's `definitions`, or an older state of this one, must not answer for the file on disk.
    others = {name: sys.modules.pop(name) for name in loaded()}
    sys.path.insert(0, str(repo_path))
    os.chdir(repo_path)
    importlib.invalidate_caches()
    linecache.checkcache()  # Feast stores a function's source as `inspect` remembers it
    try:
        yield
    finally:
        os.chdir(cwd)
        sys.path[:] = path
        sys.dont_write_bytecode = bytecode
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(others)
