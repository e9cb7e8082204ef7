"""Writing Parquet so that a reader, or a killed writer, never leaves half a file."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from asof.errors import AsofError


class LandingMismatch(AsofError, ValueError):
    """The rows to append do not have the columns of the source."""


def replace(path: Path, rows: pa.Table) -> None:
    """Write one file; until it is whole the old one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Readers skip names that begin with a dot or an underscore.
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        pq.write_table(rows, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def append(source: Path, rows: pa.Table) -> None:
    """Add rows to a Parquet file (rewritten) or folder (one new file).

    Raises:
        LandingMismatch: the columns differ from those already there.
    """
    if source.is_file():
        there = pq.read_table(source)
        replace(source, pa.concat_tables([there, _as(there.schema, rows, source)]))
        return
    files = sorted(source.rglob("*.parquet")) if source.exists() else []
    if files:
        rows = _as(pq.read_schema(files[0]), rows, source)
    if source.suffix == ".parquet" and not source.exists():
        replace(source, rows)
    else:
        replace(source / f"{uuid.uuid4().hex}.parquet", rows)


def _as(schema: pa.Schema, rows: pa.Table, source: Path) -> pa.Table:
    if set(schema.names) != set(rows.column_names):
        missing = sorted(set(schema.names) - set(rows.column_names))
        extra = sorted(set(rows.column_names) - set(schema.names))
        raise LandingMismatch(f"Rows for {source}: missing columns {missing}, unknown columns {extra}.")
    try:
        return rows.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise LandingMismatch(f"Rows for {source} do not fit its types: {error}") from error
