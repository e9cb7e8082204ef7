"""Writing Parquet so that a reader, or a killed writer, never leaves half a file.

Locally a file gets its name when it is whole. An object store shows an object when all of it has arrived. A Delta table
shows what its log says.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from asof.dataset import DeltaTable, ObjectStore, is_remote
from asof.errors import AsofError
from asof.files import parquet_files
from asof.source import Source


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


def put(uri: str, rows: pa.Table, endpoint: str = "") -> None:
    """Write one file, whole or not at all, to a local path or to an object store."""
    if not is_remote(uri):
        replace(Path(uri), rows)
        return
    filesystem, path = ObjectStore(uri, endpoint).place()
    whole = pa.BufferOutputStream()
    pq.write_table(rows, whole)
    with filesystem.open_output_stream(path) as object_:
        object_.write(whole.getvalue())


def append(source: Source, rows: pa.Table) -> None:
    """Add rows to a Parquet file (rewritten) or folder (one new file), or to a Delta table.

    Raises:
        LandingMismatch: the columns differ from those already there.
    """
    if isinstance(source.dataset, DeltaTable):
        source.dataset.append(_as(source.dataset.open().schema, rows, source.path))
    elif source.dataset is not None:
        _append_object(source.dataset, rows)
    else:
        _append_file(Path(source.path), rows)


def _append_file(path: Path, rows: pa.Table) -> None:
    if path.is_file():
        there = pq.read_table(path)
        replace(path, pa.concat_tables([there, _as(there.schema, rows, path)]))
        return
    files = parquet_files(path) if path.exists() else ()
    if files:
        rows = _as(pq.read_schema(files[0]), rows, path)
    if path.suffix == ".parquet" and not path.exists():
        replace(path, rows)
    else:
        replace(path / f"{uuid.uuid4().hex}.parquet", rows)


def _append_object(store: ObjectStore, rows: pa.Table) -> None:
    filesystem, path = store.place()
    kind = filesystem.get_file_info(path).type
    if kind == pafs.FileType.File:
        there = pq.read_table(path, filesystem=filesystem)
        put(store.uri, pa.concat_tables([there, _as(there.schema, rows, store.uri)]), store.endpoint)
        return
    if kind == pafs.FileType.Directory:
        first = store.open().files[0]
        rows = _as(pq.read_schema(first, filesystem=filesystem), rows, store.uri)
    if kind == pafs.FileType.NotFound and path.endswith(".parquet"):
        put(store.uri, rows, store.endpoint)
    else:
        put(f"{store.uri.rstrip('/')}/{uuid.uuid4().hex}.parquet", rows, store.endpoint)


def _as(schema: pa.Schema, rows: pa.Table, source: Path | str) -> pa.Table:
    if set(schema.names) != set(rows.column_names):
        missing = sorted(set(schema.names) - set(rows.column_names))
        extra = sorted(set(rows.column_names) - set(schema.names))
        raise LandingMismatch(f"Rows for {source}: missing columns {missing}, unknown columns {extra}.")
    try:
        return rows.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise LandingMismatch(f"Rows for {source} do not fit its types: {error}") from error
