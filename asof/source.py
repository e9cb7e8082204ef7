"""Where a view's rows come from, and the SQL that names them.

Every timestamp is compared as whole microseconds since 1970 in UTC; a naive timestamp is UTC.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from asof.clockwork import from_micros
from asof.dataset import DeltaTable, ObjectStore
from asof.errors import AsofError
from asof.files import covering
from asof.quoting import identifier, reading_files
from asof.transform import Transform

_YEARS = -62_135_596_800_000_000, 253_402_300_799_000_000  # 1 and 9999, microseconds
_YEARS_NS = -9_214_646_400_000_000, 9_214_646_400_000_000  # 1678 and 2261: what nanoseconds can count to


class ColumnNotFound(AsofError, LookupError):
    """A source lacks a column its view asks for."""


class NotATimestamp(AsofError, TypeError):
    """A column that must hold times holds something else."""


@dataclass(frozen=True)
class Source:
    """Rows with an event time, as one view reads them."""

    view: str
    """Name of the view, for errors."""
    path: str
    """An absolute file, a folder of Parquet files, or a remote URI."""
    timestamp: str
    """Column with the event time."""
    created: str | None
    """Column with the time the row became known; None when it is the event time."""
    renamed: tuple[tuple[str, str], ...] = ()
    """(name in the files, name in the view)."""
    dataset: ObjectStore | DeltaTable | None = None
    """Where the rows are, when they are not local Parquet files."""
    transform: Transform | None = None
    """Applied to the rows before anything else."""
    event_id: tuple[str, ...] = ()
    """Columns that say which event a row tells of; of rows that tell of one, the first known counts."""


@dataclass(frozen=True)
class Scan:
    """A source ready to be named in a query."""

    source: Source
    relation: str
    """SQL that stands for all rows, after renaming and transformation."""
    sql_types: dict[str, str]
    files: tuple[Path, ...] = ()
    """The files behind the relation, when it is nothing but their rows."""
    renaming: str = ""
    """SQL that renames their columns."""
    more: str = ""
    """A relation of rows that count with those of the files."""
    once: bool = False
    """Whether no event is told twice among the rows."""

    def between(self, since: int | None, until: int) -> str:
        """SQL for the rows, from no more files than have events in [since, until] (microseconds)."""
        if len(self.files) < 2:
            return self.relation
        stored = {new: old for old, new in self.source.renamed}
        column = stored.get(self.source.timestamp, self.source.timestamp)
        return reading_files(covering(self.files, column, since, until), self.renaming, self.more)

    def require(self, column: str, what: str) -> str:
        """The quoted column of the relation as `s`. Raises ColumnNotFound with the nearest name there is."""
        if column in self.sql_types:
            return f"s.{identifier(column)}"
        near = difflib.get_close_matches(column, self.sql_types, n=1)
        raise ColumnNotFound(
            f"View {self.source.view!r}: {what} {column!r} is not in {self.source.path}; "
            f"found {', '.join(sorted(self.sql_types))}.",
            hint=f"Did you mean {near[0]!r}?" if near else "Correct the view, or map the column with field_mapping.",
        )

    def micros(self, column: str, what: str) -> str:
        """SQL for a time column as microseconds. Raises NotATimestamp for text or numbers."""
        quoted, kind = self.require(column, what), self.sql_types[column]
        if kind.endswith("_NS"):
            return f"epoch_ns({quoted}) // 1000"
        if kind == "TIMESTAMP WITH TIME ZONE":
            return f"epoch_us({quoted})"
        if kind.startswith("TIMESTAMP") or kind == "DATE":
            return f"epoch_us(cast({quoted} as timestamp))"
        raise NotATimestamp(
            f"View {self.source.view!r}: {what} {column!r} must be a timestamp, found {kind} in {self.source.path}.",
            hint="Write it as a Parquet timestamp (UTC).",
        )

    def bound(self, column: str, comparison: str, micros: int) -> str:
        """A comparison on the column as stored, which DuckDB can use to skip row groups."""
        kind = self.sql_types[column]
        first, last = _YEARS_NS if kind.endswith("_NS") else _YEARS
        moment = from_micros(min(max(micros, first), last)).replace(tzinfo=None).isoformat(" ")
        zoned = kind == "TIMESTAMP WITH TIME ZONE"
        literal = f"timestamptz '{moment}+00'" if zoned else f"timestamp '{moment}'"
        return f"s.{identifier(column)} {comparison} {literal}"
