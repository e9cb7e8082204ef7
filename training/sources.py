"""The files a frame was read from, as hashes: what to compare when a frame cannot be made again."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from asof.files import parquet_files
from contracts.files import sha256_file


@dataclass(frozen=True, slots=True)
class SourceChanges:
    """How the files of two readings differ, by path."""

    changed: tuple[str, ...]
    missing: tuple[str, ...]
    """Read then, gone now."""
    added: tuple[str, ...]
    """Not there then."""

    def __bool__(self) -> bool:
        return bool(self.changed or self.missing or self.added)


def file_hashes(paths: Iterable[Path], base: Path) -> dict[str, str]:
    """SHA-256 of every Parquet file at or below `paths`, by its path relative to `base`: equal in every checkout."""
    files = {file for path in paths for file in parquet_files(path)}
    return {Path(os.path.relpath(file, base)).as_posix(): sha256_file(file) for file in sorted(files)}


def compare(recorded: Mapping[str, str], found: Mapping[str, str]) -> SourceChanges:
    """What became of the recorded files."""
    return SourceChanges(
        changed=tuple(sorted(name for name in recorded.keys() & found.keys() if recorded[name] != found[name])),
        missing=tuple(sorted(recorded.keys() - found.keys())),
        added=tuple(sorted(found.keys() - recorded.keys())),
    )
