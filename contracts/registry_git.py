"""Versions as commits of a git repository: for a team that has git and wants no server.

Branch `models` holds a folder `TASK/vN` with the bundle and a sidecar `TASK/vN.json` that says what it is. Tag
`TASK/vN` marks the commit that brought it, tags `TASK/champion` and `TASK/challenger` mark those that serve. git itself
compares before it swaps a reference, so writers need no lock, on one machine or on a shared folder. Nothing is ever
checked out:

    git --git-dir data/registry.git show late_arrival/champion --stat
    git --git-dir data/registry.git archive late_arrival/v3 late_arrival/v3 | tar -x
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from contracts.bundle import MANIFEST
from contracts.files import whole_folder
from contracts.locations import Locations
from contracts.registry import ANYTHING, AliasMoved, Expected, ModelVersion, Registry, RegistryError, Status

_BRANCH = "refs/heads/models"
_NOTHING = "0" * 40
_PATIENCE = 30.0
"""Seconds during which a swap that others keep winning is tried again."""


class GitRegistry(Registry):
    """See `contracts.registry.Registry`.

    Args:
        locations: whose `registry` names the repository, bare or not, made (bare) when it is missing; a bundle that is
            registered and not here, as in a fresh clone, is put back below them.

    Raises:
        RegistryError: git is missing, or the folder is not a repository.
    """

    def __init__(self, locations: Locations) -> None:
        folder = locations.registry.path or locations.data / "registry.git"
        self._folder, self._locations = folder, locations
        if not folder.exists():
            with whole_folder(folder) as made:
                self._git("init", "--quiet", "--bare", "--initial-branch=models", str(made), anywhere=True)
        self._directory = folder / ".git" if (folder / ".git").exists() else folder
        self._git("rev-parse", "--git-dir")

    def register(
        self, task: str, *, run_id: str, bundle: Path, status: Status, dataset_hash: str, model_hash: str
    ) -> ModelVersion:
        """Commit the bundle and its sidecar under the next number, and tag it, in one transaction of git.

        Raises:
            RegistryError: the bundle cannot be read, or others won every swap for half a minute.
        """
        blobs = {file.name: self._git("hash-object", "-w", str(file)) for file in _files(bundle)}
        described = {
            "run_id": run_id,
            "status": status,
            "dataset_hash": dataset_hash,
            "model_hash": model_hash,
            "bundle": bundle.name,
        }
        deadline = time.monotonic() + _PATIENCE
        while True:
            head = self._reference(_BRANCH)
            number = max(_numbers(self._tags(task)), default=0) + 1
            sidecar = json.dumps({"task": task, "version": number, **described}, indent=1, sort_keys=True) + "\n"
            entries = {f"{task}/v{number}/{name}": blob for name, blob in blobs.items()}
            entries[f"{task}/v{number}.json"] = self._git("hash-object", "-w", "--stdin", given=sidecar)
            commit = self._commit(entries, head, f"{task} v{number}: {status}, model {model_hash[:12]}")
            swap = f"start\nupdate {_BRANCH} {commit} {head}\ncreate {_tag(task, f'v{number}')} {commit}\ncommit\n"
            if self._swapped(swap):
                return ModelVersion(task, number, run_id, bundle, status, dataset_hash, model_hash)
            if time.monotonic() > deadline:
                raise RegistryError(
                    f"No version of {task!r} could be registered in {self._folder}: others were faster for "
                    f"{_PATIENCE:g} s.",
                    hint=f"remove {self._directory / _BRANCH}.lock if no git process is running, and train again.",
                )
            time.sleep(0.02)

    def versions(self, task: str) -> list[ModelVersion]:
        """All versions of a task, oldest first; a bundle that is not here is put back from the repository."""
        found = self._described(task)
        for each in found:
            self._restore(each)
        return found

    def aliases(self, task: str) -> dict[str, int]:
        """Alias to version number; empty for a task without versions."""
        tags = self._tags(task)
        numbers = {tags[f"v{number}"]: number for number in _numbers(tags)}
        return {name: numbers[commit] for name, commit in tags.items() if not _is_number(name) and commit in numbers}

    def set_alias(self, task: str, alias: str, version: int | None, *, expected: Expected = ANYTHING) -> None:
        """Point an alias at a version, or remove it. Raises AliasMoved, UnknownVersion."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            found = self.check_move(task, alias, version, expected)
            if version is None and found is None:
                return
            tags = self._tags(task)
            before = _NOTHING if found is None else tags[f"v{found}"]
            after = _NOTHING if version is None else tags[f"v{version}"]
            if self._swapped(f"start\nupdate {_tag(task, alias)} {after} {before}\ncommit\n"):
                return
            if time.monotonic() > deadline:
                raise AliasMoved(task, alias, expected=found, found=self.aliases(task).get(alias))
            time.sleep(0.02)

    def _described(self, task: str) -> list[ModelVersion]:
        tags = self._tags(task)
        found = []
        for number in _numbers(tags):
            told: dict[str, Any] = json.loads(self._git("show", f"{tags[f'v{number}']}:{task}/v{number}.json"))
            bundle = self._locations.bundles(task) / told["bundle"]
            hashes = told["dataset_hash"], told["model_hash"]
            found.append(ModelVersion(task, number, told["run_id"], bundle, told["status"], *hashes))
        return found

    def _restore(self, version: ModelVersion) -> None:
        if (version.bundle / MANIFEST).is_file():
            return
        folder = f"{_tag(version.task, f'v{version.version}')}:{version.task}/v{version.version}"
        with whole_folder(version.bundle) as part:
            for name in self._git("ls-tree", "--name-only", folder).splitlines():
                (part / name).write_bytes(self._bytes("cat-file", "blob", f"{folder}/{name}"))

    def _tags(self, task: str) -> dict[str, str]:
        """Names below the task, to commits."""
        told = self._git("for-each-ref", "--format=%(refname) %(objectname)", f"refs/tags/{task}/")
        lines = (line.rsplit(" ", 1) for line in told.splitlines())
        return {name.removeprefix(f"refs/tags/{task}/"): commit for name, commit in lines}

    def _reference(self, name: str) -> str:
        return self._git("for-each-ref", "--format=%(objectname)", name) or _NOTHING

    def _commit(self, entries: dict[str, str], head: str, message: str) -> str:
        """A commit on top of `head` with more files; an index of its own keeps writers out of each other's way."""
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            if head != _NOTHING:
                self._git("read-tree", head, more=index)
            lines = "".join(f"100644 {blob}\t{path}\n" for path, blob in entries.items())
            self._git("update-index", "--add", "--index-info", given=lines, more=index)
            tree = self._git("write-tree", more=index)
        parents = [] if head == _NOTHING else ["-p", head]
        return self._git("commit-tree", tree, *parents, "-m", message)

    def _swapped(self, transaction: str) -> bool:
        """Whether the references were as the transaction says and are now as it wants them: all of them, or none."""
        return self._run(["update-ref", "--stdin"], given=transaction.encode()).returncode == 0

    def _git(self, *words: str, given: str = "", more: dict[str, str] | None = None, anywhere: bool = False) -> str:
        return self._bytes(*words, given=given, more=more, anywhere=anywhere).decode().strip()

    def _bytes(self, *words: str, given: str = "", more: dict[str, str] | None = None, anywhere: bool = False) -> bytes:
        done = self._run(list(words), given=given.encode(), more=more, anywhere=anywhere)
        if done.returncode:
            raise RegistryError(
                f"git {words[0]} failed in {self._folder}: {done.stderr.decode(errors='replace').strip()}",
                hint="the folder of a git registry is a git repository, or does not exist yet and is made.",
            )
        return done.stdout

    def _run(
        self, words: list[str], *, given: bytes = b"", more: dict[str, str] | None = None, anywhere: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in _SIGNED.items()}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        place = [] if anywhere else ["--git-dir", str(self._directory)]
        try:
            return subprocess.run(
                ["git", *place, *words], input=given, capture_output=True, env=kept | who | (more or {}), check=False
            )
        except FileNotFoundError as error:
            raise RegistryError(
                "git is not installed, and the project's settings name a git registry.",
                hint="install git, or choose another registry in skewless.toml.",
            ) from error


_SIGNED = {"NAME": "skewless", "EMAIL": "skewless@localhost"}


def _files(bundle: Path) -> list[Path]:
    found = sorted(path for path in bundle.glob("*") if path.is_file())
    if MANIFEST not in {path.name for path in found}:
        raise RegistryError(f"No bundle at {bundle}: {MANIFEST} is missing.", hint="train the version again.")
    return found


def _tag(task: str, name: str) -> str:
    return f"refs/tags/{task}/{name}"


def _numbers(tags: Iterable[str]) -> list[int]:
    """Of the versions, rising."""
    return sorted(int(name[1:]) for name in tags if _is_number(name))


def _is_number(name: str) -> bool:
    return name[:1] == "v" and name[1:].isdigit()
