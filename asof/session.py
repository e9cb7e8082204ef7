"""The DuckDB connection that reads sources, and what it has learned about them.

with Session(threads=2) as session:
    scan = session.scan(source)       # schema read once, then reused
    session.arrow(f"select count(*) from {scan.relation}")
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa

from asof.errors import AsofError
from asof.events import Events
from asof.files import parquet_files
from asof.quoting import identifier, reading_files, text
from asof.source import Scan, Source
from asof.transform import apply


class SourceNotFound(AsofError, FileNotFoundError):
    """The path of a source holds no data."""


class EngineFailure(AsofError, RuntimeError):
    """DuckDB could not run the query: out of memory, a corrupt file, a value that does not fit its type."""


@functools.cache
def _instance(settings: tuple[tuple[str, Any], ...]) -> duckdb.DuckDBPyConnection:
    """One DuckDB instance per process and settings: opening one costs more than a small query."""
    return duckdb.connect(config={name: value for name, value in settings if value is not None})


class Session:
    """A connection to an in-memory DuckDB, and what it has learned about sources; not shared between threads.

    Args:
        threads: worker threads; DuckDB's choice when None.
        memory_limit: for example "4GB"; beyond it DuckDB spills to `temp_directory`.
        temp_directory: where to spill.
        search_path: folder that relative paths in a caller's SQL resolve against.
        elsewhere: computes what is asked in this session, in other processes; None to compute here.
    """

    def __init__(
        self,
        *,
        threads: int | None = None,
        memory_limit: str | None = None,
        temp_directory: str | None = None,
        search_path: Path | None = None,
        elsewhere: Any = None,
    ) -> None:
        self.elsewhere = elsewhere
        self.temp_directory = temp_directory
        self.threads = threads or os.cpu_count() or 1
        wanted = {"threads": threads, "memory_limit": memory_limit, "temp_directory": temp_directory}
        self._settings = tuple(wanted.items())
        self._search_path = search_path
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._scans: dict[Source, Scan] = {}
        self._lent: dict[Source, tuple[str, bool, bool]] = {}
        self._held: dict[str, Any] = {}
        self._unknown: dict[str, Any] = {}
        self._events: dict[Source, Events] = {}
        self._names = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the connection and everything it holds."""
        if self._connection is not None:
            self._connection.close()

    def arrow(self, sql: str) -> pa.Table:
        """Run a query. Raises EngineFailure with DuckDB's own words."""
        try:
            return self._ready().sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise _failure(error) from error

    def stream(self, sql: str, rows: int, *, in_order: bool = False) -> Generator[pa.RecordBatch]:
        """The result of a query in batches of about so many rows, one at least; nothing else may be asked meanwhile.

        Args:
            sql: a query.
            rows: so many.
            in_order: as files have them. One thread reads, also for other sessions of these settings meanwhile: of
                several threads each reads a stretch of its own, and DuckDB keeps no order through a join.

        Raises EngineFailure with DuckDB's own words.
        """
        if in_order:
            self.execute("set threads = 1")
        reader = None
        empty = True
        try:
            reader = self._ready().sql(sql).to_arrow_reader(rows)
            for batch in reader:
                empty = False
                yield batch
            if empty:
                yield pa.record_batch([pa.nulls(0, field.type) for field in reader.schema], schema=reader.schema)
        except (duckdb.Error, OSError) as error:  # Arrow's reader passes an error of DuckDB on as an OSError
            raise _failure(error) from error
        finally:
            if reader is not None:
                reader.close()  # until then the connection takes no other statement
            if in_order:
                given = dict(self._settings)["threads"]
                self.execute(f"set threads = {given}" if given else "reset threads")

    def execute(self, sql: str) -> None:
        """Run a statement. Raises EngineFailure with DuckDB's own words."""
        try:
            self._ready().execute(sql)
        except duckdb.Error as error:
            raise _failure(error) from error

    def name(self, stem: str) -> str:
        """A table name not yet used in this session."""
        return f"{stem}_{next(self._names)}"

    def hold(self, stem: str, data: Any) -> str:
        """Make Arrow data readable under a fresh name; DuckDB hears of it with the next question."""
        name = self.name(stem)
        self._held[name] = self._unknown[name] = data
        return name

    def held(self, name: str) -> Any:
        """The data held under a name."""
        return self._held[name]

    def release(self, name: str) -> None:
        """Forget data held before."""
        del self._held[name]
        if self._unknown.pop(name, None) is None and self._connection is not None:
            self._connection.unregister(name)

    def types(self, relation: str) -> dict[str, str]:
        """Columns of a relation and their DuckDB types. Raises EngineFailure with DuckDB's own words."""
        return _columns(self._ready(), relation)

    def _ready(self) -> duckdb.DuckDBPyConnection:
        """The connection, told of all that is held. Opened with the first question: many pushes ask none."""
        if self._connection is None:
            self._connection = self._opened()
        for name in list(self._unknown):
            self._connection.register(name, self._unknown.pop(name))
        return self._connection

    def _opened(self) -> duckdb.DuckDBPyConnection:
        try:
            # A cursor has its own settings, temporary tables and registered data, and they end with it.
            connection = _instance(self._settings).cursor()
        except duckdb.Error as error:
            given = ", ".join(f"{name}: {value}" for name, value in self._settings if value is not None)
            raise EngineFailure(
                f"DuckDB does not start with the settings {given}: {error}",
                hint="Correct offline_store.threads, memory_limit or temp_directory in feature_store.yaml.",
            ) from error
        connection.execute("set TimeZone = 'UTC'")
        if self._search_path is not None:
            connection.execute(f"set file_search_path = {text(str(self._search_path))}")
        return connection

    def lend(self, source: Source, rows: pa.Table, *, instead: bool = False, once: bool = False) -> None:
        """Let rows count with those of the source's files, or instead of them, in this session.

        Args:
            source: not scanned yet.
            rows: columns as the files have them.
            instead: the files are not opened.
            once: of lent rows alone, that no two tell of one event.
        """
        self._lent[source] = (self.hold("lent", rows), instead, once and instead)

    def lend_events(self, source: Source, events: Events, types: dict[str, str]) -> None:
        """Let events stand for a source in questions about windows of their keys, and about no other.

        Args:
            source: not scanned yet.
            events: all that such a question may see.
            types: columns of the source, as the view calls them, and their DuckDB types.
        """
        self._events[source] = events
        self._scans[source] = Scan(source, "", types)

    def has_lent(self, source: Source) -> bool:
        """Whether rows were lent for a source."""
        return source in self._lent or source in self._events

    def events_of(self, source: Source) -> Events | None:
        """The events that stand for a source, if any do."""
        return self._events.get(source)

    def scan(self, source: Source) -> Scan:
        """Find the source's files, read their schema and run its transformation, once per session."""
        if source not in self._scans:
            self._scans[source] = self._open(source)
        return self._scans[source]

    def supply(self, source: Source, rows: pa.Table) -> None:
        """Let rows stand for a source whose transformation has run elsewhere."""
        relation = self.hold("rows", rows)
        self._scans[source] = Scan(source, relation, self._types((), relation))

    def keep(self, source: Source) -> None:
        """Read the source into memory once, for many questions in this session: its files must not change meanwhile."""
        scan = self.scan(source)
        name = self.name("kept")
        # In order of time, a question about some hours passes over the blocks of all others.
        by = scan.require(source.timestamp, "timestamp field")
        self.execute(f"create temp table {name} as select * from {scan.relation} s order by {by}")
        self._scans[source] = replace(scan, relation=name, files=(), renaming="", more="")

    def _open(self, source: Source) -> Scan:
        files: tuple[Path, ...] = ()
        more, instead, once = self._lent.get(source, ("", False, False))
        if not instead and source.dataset is None:
            files = parquet_files(Path(source.path))
            instead = bool(more) and not files
        if instead:
            reading, more = more, ""
        elif source.dataset is not None:
            try:
                reading = self.hold("rows", source.dataset.open())
            except OSError as error:
                raise _nothing_at(source, f": {error}") from error
            reading = f"(select * from {reading} union all by name select * from {more})" if more else reading
        elif files:
            reading = reading_files(files, more=more)
        else:
            raise _nothing_at(source)
        renaming, types = "", self._types(files, reading)
        if source.renamed:
            # A mapping may name columns that only other tables of the same source have.
            mapping = {old: new for old, new in source.renamed if old in types}
            pairs = [f"{identifier(old)} as {identifier(new)}" for old, new in mapping.items()]
            renaming = f" rename ({', '.join(pairs)})" if pairs else ""
            reading = f"(select *{renaming} from {reading})"
            types = {mapping.get(name, name): kind for name, kind in types.items()}
        if source.transform is not None:
            reading, files, more, once = self._transformed(reading, source), (), "", False
            types = self._types((), reading)
        return Scan(source, reading, types, files, renaming, more, once)

    def _types(self, files: tuple[Path, ...], relation: str) -> dict[str, str]:
        """Columns and their DuckDB types; those of files are remembered, by what identifies their content."""
        if not files:
            return self.types(relation)
        state = files[0].stat()
        return _file_types(files[0], state.st_mtime_ns, state.st_size)

    def _transformed(self, relation: str, source: Source) -> str:
        assert source.transform is not None
        if source.transform.is_sql:
            rows = self.name("rows")
            self.execute(f"create temp view {rows} as select * from {relation}")
            return f"({source.transform.sql(rows)})"
        rows_in = self.arrow(f"select * from {relation}")
        return self.hold("rows", apply(source.transform, rows_in, source.view))


@functools.lru_cache(maxsize=1 << 12)
def _file_types(file: Path, modified: int, size: int) -> dict[str, str]:
    """Columns of one file; `modified` and `size` are part of the question, so a replaced file is read again."""
    return _columns(_instance(()).cursor(), reading_files((file,)))


def _columns(connection: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    try:
        bound = connection.sql(f"select * from {relation}")
    except duckdb.Error as error:
        raise _failure(error) from error
    return dict(zip(bound.columns, map(str, bound.types), strict=True))


def _nothing_at(source: Source, because: str = "") -> SourceNotFound:
    return SourceNotFound(
        f"View {source.view!r}: no data at {source.path}{because}.",
        hint="Land the data first, or correct the source's path.",
    )


def _failure(error: Exception) -> EngineFailure:
    hint = ""
    if isinstance(error, duckdb.OutOfMemoryException) or str(error).startswith("Out of Memory"):
        hint = "Raise offline_store.memory_limit, or set offline_store.temp_directory so that DuckDB can spill."
    return EngineFailure(f"DuckDB: {error}", hint=hint)
