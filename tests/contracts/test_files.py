"""Files and folders are whole or absent, through errors and kills."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.files import sha256_file, sha256_text, whole_file, whole_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def broken_off(path: Path) -> None:
    path.write_text("half")
    raise RuntimeError("broken off")


def test_a_file_appears_whole_and_replaces_the_older_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    for text in ("old", "new"):
        with whole_file(target) as part:
            assert part.parent == target.parent
            part.write_text(text)
        assert target.read_text() == text
    assert names(target.parent) == ["a.txt"]
    assert target.stat().st_mode & 0o777 == 0o644


def test_an_error_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), whole_file(target) as part:
        broken_off(part)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_appears_whole_and_replaces_the_older_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    for name in ("old", "new"):
        with whole_folder(target) as part:
            assert not (target / name).exists()
            (part / name).write_text(name)
        assert names(target) == [name]
    assert names(target.parent) == ["bundle"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_an_error_leaves_the_older_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(RuntimeError), whole_folder(target) as part:
        broken_off(part / "half")
    assert names(target) == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_a_kill_while_writing_leaves_the_older_folder_and_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").touch()
    program = (
        "import os, pathlib, signal, sys\n"
        "from contracts.files import whole_folder\n"
        "with whole_folder(pathlib.Path(sys.argv[1])) as part:\n"
        "    (part / 'half').touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert names(target) == ["old"]
    assert len(names(tmp_path)) == 2
    with whole_folder(target) as part:
        (part / "new").touch()
    assert names(tmp_path) == ["bundle"]
    assert names(target) == ["new"]


def test_a_kill_between_the_two_renames_is_undone_by_the_next(tmp_path: Path) -> None:
    target, old = tmp_path / "bundle", tmp_path / ".bundle.old"
    old.mkdir()
    (old / "kept").touch()
    with pytest.raises(RuntimeError), whole_folder(target) as part:
        broken_off(part / "half")
    assert names(target) == ["kept"]


def test_a_kill_after_both_renames_leaves_only_rubbish(tmp_path: Path) -> None:
    target, old = tmp_path / "bundle", tmp_path / ".bundle.old"
    for folder, name in ((old, "old"), (target, "new")):
        folder.mkdir()
        (folder / name).touch()
    with pytest.raises(RuntimeError), whole_folder(target) as part:
        broken_off(part / "half")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["bundle"]


def test_hashes_are_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    content = os.urandom(300_000)
    path.write_bytes(content)
    assert sha256_file(path) == hashlib.sha256(content).hexdigest()
    assert sha256_text("Zürich") == hashlib.sha256("Zürich".encode()).hexdigest()
