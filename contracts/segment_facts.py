"""What a compacted segment holds, known without its rows: a reader who wants others need not open it.

Such a file is written once, whole; it is asked once a process.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """Of one segment."""

    rows: int
    schema: pa.Schema
    versions: tuple[int, ...]
    """Whose rows they are."""
    extent: tuple[datetime, datetime] | None
    """First and last event timestamp; None where the file does not say."""

    def may_hold(self, conditions: Sequence[tuple[str, datetime]]) -> bool:
        """Whether a row's event timestamp may meet all of these, each ">=" or "<" and an instant."""
        if self.extent is None:
            return self.rows > 0
        first, last = self.extent
        return all(last >= bound if sign == ">=" else first < bound for sign, bound in conditions)


def segment_facts(segment: Path) -> SegmentFacts:
    """The facts of a compacted segment."""
    state = segment.stat()
    return _read(segment, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=1 << 12)
def _read(segment: Path, modified: int, size: int) -> SegmentFacts:
    """`modified` and `size` are part of the question: a file in the place of another is read."""
    with pq.ParquetFile(segment) as file:
        metadata, schema = file.metadata, file.schema_arrow.remove_metadata()
        versions = file.read(["version"])["version"].unique().to_pylist()
    return SegmentFacts(metadata.num_rows, schema, tuple(versions), _extent(metadata))


def _extent(metadata: pq.FileMetaData) -> tuple[datetime, datetime] | None:
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    columns = [group.column(at) for group in groups for at in range(group.num_columns)]
    found = [each.statistics for each in columns if each.path_in_schema == "event_timestamp"]
    if not found or not all(each is not None and each.has_min_max for each in found):
        return None
    return min(each.min for each in found), max(each.max for each in found)
