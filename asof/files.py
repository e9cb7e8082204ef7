"""Parquet files of a source, and the time each one covers, so that a query opens only those it needs."""

from __future__ import annotations

import functools
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq

from asof.clockwork import to_micros


def parquet_files(path: Path) -> tuple[Path, ...]:
    """The file itself, or the Parquet files below a folder by name.

    Hidden files are left out, and those that begin with an underscore: a writer has not finished them.
    """
    if path.is_file():
        return (path,)
    found = (file for file in path.rglob("*.parquet") if file.is_file())
    return tuple(sorted(f for f in found if not any(p.startswith((".", "_")) for p in f.relative_to(path).parts)))


def covering(files: tuple[Path, ...], column: str, since: int | None, until: int) -> tuple[Path, ...]:
    """The files that can hold a time in [since, until]; at least one, so that there is a schema to read.

    Args:
        files: candidates.
        column: their time column.
        since: microseconds; None for no lower bound.
        until: microseconds.
    """
    kept = []
    for file in files:
        state = file.stat()
        first, last = _extent(str(file), column, state.st_mtime_ns, state.st_size)
        if (last is None or since is None or last >= since) and (first is None or first <= until):
            kept.append(file)
    return tuple(kept) or files[:1]


@functools.lru_cache(maxsize=1 << 16)
def _extent(file: str, column: str, modified: int, size: int) -> tuple[int | None, int | None]:
    """First and last time of a column by the file's own statistics; None where it does not say.

    `modified` and `size` are part of the question: a file that was replaced is asked again.
    """
    metadata = pq.read_metadata(file)
    names = metadata.schema.to_arrow_schema().names
    if column not in names:
        return None, None
    firsts, lasts = [], []
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(_leaf(metadata, column)).statistics
        if statistics is None or not statistics.has_min_max or not isinstance(statistics.min, datetime):
            return None, None
        firsts.append(to_micros(statistics.min))
        lasts.append(to_micros(statistics.max))
    return min(firsts, default=None), max(lasts, default=None)


def _leaf(metadata: pq.FileMetaData, column: str) -> int:
    """Where a top-level column is among the file's leaves (a list or struct before it has several)."""
    return next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == column)
