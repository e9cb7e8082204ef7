"""The rows of a view's source that can still matter, kept in the process that pushes: a push must not read everything.

They are rows, not values: every value comes out of `as_of`, which is handed those of the keys asked about in place of
the files. Left out, bit by bit as rows are added, is only what no question from some moment on can see: events before
every window, and of a plain view what is older than the newest row its key had by then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asof.definition import View
from asof.events import Events, micros
from asof.intake import needed, stored_name
from asof.latest import first_known, is_plain, sql_type
from asof.pushed import Batch, still_missing
from asof.quoting import identifier, text
from asof.runs import Hashes, HashSet, Mask, Run, Runs, changes, hashes_of
from asof.session import Session
from asof.source import Scan, Source
from asof.timeline import FOREVER

_ALWAYS, _NEVER = 1 << 61, -(1 << 62)
_NONE: Hashes = np.zeros(0, np.uint64)


@dataclass(frozen=True)
class State:
    """What there is to read of a source now; it does not change while one push is under way."""

    files: tuple[Path, ...]
    since: Callable[[int], list[Batch]]
    """The rows pushed online only with a number above the given one."""
    any_pushed: bool
    """Whether there are any such rows."""


@dataclass
class _Arriving:
    """Rows that are about to be kept, and what is known of them."""

    rows: pa.Table
    """As they came."""
    alike: pa.Table
    """In the columns and types of the kept ones."""
    ids: Hashes
    """Of their event ids, each once."""
    forgotten: bool
    """Whether one may tell of an event whose first telling is not kept."""
    new: bool
    """Whether each tells of an event that no other row does."""
    run: Run | None = None
    """Of them, once it was asked for."""


class RecentRows:
    """Rows of one view's source, columns named as in its files.

    Args:
        view: without a transformation, which could look at any row; its source is local files.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        source = view.source
        self._source = replace(
            source,
            timestamp=stored_name(view, source.timestamp),
            created=stored_name(view, source.created) if source.created else None,
            renamed=(),
            event_id=tuple(stored_name(view, name) for name in source.event_id),
        )
        self._columns = sorted(needed(view) | ({self._source.created} if self._source.created else set()))
        anonymous = replace(view, source=replace(source, event_id=()))
        self._without_id = sorted(needed(anonymous) | ({self._source.created} if self._source.created else set()))
        self._keys = tuple(stored_name(view, key.name) for key in view.keys)
        self._hashed = bool(view.keys) and all(
            is_plain(key.dtype) and not pa.types.is_floating(key.dtype) for key in view.keys
        )
        columns = {window.column for window in view.windows if window.column}
        self._wanted = {column: stored_name(view, column) for column in columns}
        self._files: dict[Path, tuple[int, int]] = {}
        self._number = 0
        self._from = 0
        self._runs: Runs | None = None
        self._types: dict[str, str] = {}
        self._told = HashSet(_NONE)
        self._forgotten = HashSet(_NONE)
        self._repeats = False
        self._arriving: _Arriving | None = None

    @property
    def columns(self) -> list[str]:
        """Those kept of each row."""
        return self._columns

    def refresh(self, now: int, state: State, session: Session) -> bool:
        """Have rows enough for any question at `now` or later; False when there is nothing to read at all.

        Args:
            now: microseconds, of the push.
            state: what there is to read.
            session: reads it.
        """
        found = {file: (stat.st_mtime_ns, stat.st_size) for file in state.files for stat in (file.stat(),)}
        if not found and not state.any_pushed:
            return False
        fresh = [file for file in found if file not in self._files]
        changed = any(found.get(file) != known for file, known in self._files.items())
        # Without an event id, a file may bring the rows that so far were pushed only.
        landed = bool(fresh) and state.any_pushed and not self._source.event_id
        batches = state.since(self._number) if state.any_pushed else []
        if self._runs is None or changed or landed or now < self._from:
            self._read(now, state, session)
        elif fresh or batches:
            more = [session.arrow(f"select {self._chosen()} from {_read(tuple(fresh))} s")] if fresh else []
            more += [batch.rows.select(self._columns) for batch in batches]
            arrived = pa.concat_tables([_plain(part) for part in more])
            if self.knows_again(arrived):
                self._read(now, state, session)
            else:
                self._add(arrived, now, session)
        if self._repeats:
            assert self._runs is not None
            self._prune(session.hold("rows", self._runs.all().combine_chunks()), now, session)
        self._files = found
        self._number = max((batch.number for batch in batches), default=self._number)
        return True

    def remember(self, rows: pa.Table, number: int, now: int, session: Session) -> None:
        """Count the rows of the push under way, once they are among the pushed ones: they need not be read back."""
        if self.knows_again(rows):
            self._runs = None
        if self._runs is not None:
            self._add(rows, now, session)
            self._number = number

    def knows_again(self, rows: pa.Table) -> bool:
        """Whether a row may tell of an event whose first telling is not among the rows kept."""
        return self._look(rows).forgotten

    def is_new(self, rows: pa.Table) -> bool:
        """Whether no two rows, of those kept and these together, tell of one event."""
        return not self._repeats and self._look(rows).new

    def lend(self, rows: pa.Table, session: Session) -> None:
        """Let these rows, and all that are kept of their keys, stand for the view's source in a session."""
        assert self._runs is not None
        arriving = self._look(rows)
        source = self.view.source
        if not self.is_new(rows):  # what an event was first told of may be another key
            session.lend(source, pa.concat_tables([self._runs.all(), arriving.alike]), instead=True)
            return
        run = self._run_of(arriving, session)
        keys = np.unique(run.key)
        if self._as_scanned:
            events = Events.of([*self._runs, run], keys, self._wanted, self._source.timestamp, self._source.created)
            if events is not None:
                session.lend_events(source, events, self._types)
                return
        kept = [*self._runs.rows_of(keys, self._without_id), run.rows.select(self._without_id)]
        session.lend(source, pa.Table.from_batches(kept).combine_chunks(), instead=True, once=True)

    @property
    def _as_scanned(self) -> bool:
        """Whether `Events` of the rows are what a scan gives: keys are of the view's types, no array wants an order."""
        assert self._runs is not None
        schema, view, source = self._runs.schema, self.view, self._source
        times = [schema.field(name).type for name in (source.timestamp, source.created) if name]
        return (
            view.is_windowed
            and not view.series
            and all(pa.types.is_timestamp(time) and time.unit == "us" for time in times)
            and self._hashed
            and [schema.field(name).type for name in self._keys] == [key.dtype for key in view.keys]
            and not any(pa.types.is_timestamp(key.dtype) for key in view.keys)  # a cast may have rounded it
        )

    def any_row(self) -> pa.Table | None:
        """One of the rows kept, if there are any."""
        rows = self._runs.all() if self._runs is not None else None
        return rows.slice(0, 1) if rows else None

    def _look(self, rows: pa.Table) -> _Arriving:
        if self._arriving is None or self._arriving.rows is not rows:
            alike, ids, forgotten, new = self._alike(rows), _NONE, False, True
            if self._source.event_id:
                each = self._id_hashes(alike)
                ids = np.unique(each)
                new = len(ids) == len(each) and not self._told.holds_any(ids)
                forgotten = self._forgotten.holds_any(ids)
            self._arriving = _Arriving(rows, alike, ids, forgotten, new)
        return self._arriving

    def _alike(self, rows: pa.Table) -> pa.Table:
        """Rows in the columns and types of the kept ones: one event has one hash, whoever tells of it."""
        chosen = _plain(rows.select(self._columns))
        return chosen if self._runs is None else chosen.cast(self._runs.schema, safe=False)

    def _add(self, rows: pa.Table, now: int, session: Session) -> None:
        assert self._runs is not None
        arriving = self._look(rows)
        self._repeats |= not arriving.new
        self._told.add(arriving.ids)
        self._arriving = None
        run = self._run_of(arriving, session)
        if self._repeats:  # until the repetitions are gone, none may displace what it repeats
            self._runs.hold(run)
            return
        left_out = self._runs.add(run, now)
        if any(part.num_rows for part in left_out):
            self._from = max(self._from, now)
            if self._source.event_id:
                self._forgotten.add(self._id_hashes(pa.Table.from_batches(left_out)))

    def _read(self, now: int, state: State, session: Session) -> None:
        parts = [f"select {self._chosen()} from {_read(state.files)} s"] if state.files else []
        batches = state.since(0)
        if batches and not self._source.event_id:
            batches = still_missing(batches, state.files, [], self._source.created, session)
        parts += [f"select {self._chosen()} from {session.hold('pushed', batch.rows)} s" for batch in batches]
        everything = f"({' union all by name '.join(parts)})"
        self._prune(everything, now, session)

    def _prune(self, relation: str, now: int, session: Session) -> None:
        types = session.types(relation)
        scan = Scan(self._source, relation, types)
        renamed = dict(self.view.source.renamed)
        self._types = {renamed.get(name, name): kind for name, kind in types.items()}
        kept = _plain(session.arrow(self._pruning(scan, now)))
        if self._source.event_id:
            names = ", ".join(f"s.{identifier(name)}" for name in self._source.event_id)
            all_of_them = self._id_hashes(_plain(session.arrow(f"select {names} from {relation} s")))
            told = self._id_hashes(kept)
            forgotten = np.setdiff1d(all_of_them, told)
            if self._runs is None:
                self._told, self._forgotten = HashSet(told), HashSet(forgotten)
            else:
                self._told.add(told)
                self._forgotten.add(forgotten)
        self._runs = Runs(Run.of(kept, self._key_hashes(kept, session), self._keys), self._matters)
        self._repeats, self._arriving, self._from = False, None, now

    def _pruning(self, scan: Scan, now: int) -> str:
        view, source = self.view, self._source
        event = scan.micros(source.timestamp, "timestamp field")
        known = event
        if source.created:
            known = f"greatest({event}, {scan.micros(source.created, 'created timestamp column')})"
        relation = first_known(scan, event, _ALWAYS) if source.event_id else scan.relation
        grid = now - now % view.every if view.every else now
        if view.is_windowed:
            reach = view.reach
            past = f" where {event} > {grid - reach}" if reach < FOREVER else ""
            return f"select {self._chosen()} from {relation} s{past}"
        keys = ", ".join(f"s.{identifier(name)}" for name in self._keys)
        partition = f"partition by {keys}" if keys else ""
        newest = f"max(case when {known} <= {grid} then {event} end) over ({partition})"
        return f"select {self._chosen()} from {relation} s qualify {event} >= coalesce({newest}, {event})"

    def _matters(self, rows: pa.RecordBatch, key: Hashes, now: int) -> Mask:
        """As `_pruning`, of rows in the order of their keys' hashes."""
        view, source = self.view, self._source
        event = micros(rows[source.timestamp])
        grid = now - now % view.every if view.every else now
        if view.is_windowed:
            return event > grid - view.reach
        if not len(event):
            return np.zeros(0, bool)
        known = np.maximum(event, micros(rows[source.created])) if source.created else event
        # Two keys may have one hash: where a value changes, another key begins, or the same one again.
        starts = np.flatnonzero(np.append(True, (key[1:] != key[:-1]) | changes(rows, self._keys)))
        newest = np.maximum.reduceat(np.where(known <= grid, event, _NEVER), starts)
        return event >= np.repeat(newest, np.diff(np.append(starts, len(event))))

    def _id_hashes(self, rows: pa.Table) -> Hashes:
        """Of the event ids of rows of the kept ones' types; a row that lacks a part of its id has none."""
        ids = rows.select(list(self._source.event_id))
        return hashes_of(ids.drop_null() if any(column.null_count for column in ids.columns) else ids)

    def _run_of(self, arriving: _Arriving, session: Session) -> Run:
        if arriving.run is None:
            arriving.run = Run.of(arriving.alike, self._key_hashes(arriving.alike, session), self._keys)
        return arriving.run

    def _key_hashes(self, rows: pa.Table, session: Session) -> Hashes:
        """Of the rows' keys as the view compares them; equal keys have one hash."""
        keys = self.view.keys
        if not self._hashed:
            return np.zeros(rows.num_rows, np.uint64)
        named = rows.select(list(self._keys))
        if named.schema.types != [key.dtype for key in keys]:
            held = session.hold("rows", named)
            casts = [
                f"cast({identifier(name)} as {sql_type(key.dtype)}) as k{place}"
                for place, (name, key) in enumerate(zip(self._keys, keys, strict=True))
            ]
            named = session.arrow(f"select {', '.join(casts)} from {held}")
            session.release(held)
        return hashes_of(named)

    def _chosen(self) -> str:
        return ", ".join(f"s.{identifier(name)}" for name in self._columns)


def _plain(rows: pa.Table) -> pa.Table:
    """Times labelled alike, whoever read them: DuckDB says Etc/UTC, files say what their writer did."""
    fields = [
        field.with_type(pa.timestamp("us", tz="UTC")) if pa.types.is_timestamp(field.type) and field.type.tz else field
        for field in rows.schema
    ]
    return rows.cast(pa.schema([field.with_nullable(True) for field in fields]), safe=False)


def _read(files: tuple[Path, ...]) -> str:
    return f"read_parquet([{', '.join(text(str(file)) for file in files)}])"


def schema_of(source: Source, files: tuple[Path, ...]) -> pa.Schema | None:
    """Columns and types of a source's data; None when there is none."""
    if source.dataset is not None:
        return source.dataset.open().schema
    if not files:
        return None
    state = files[0].stat()
    return _file_schema(files[0], state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=1 << 10)
def _file_schema(file: Path, modified: int, size: int) -> pa.Schema:
    """Of one file; `modified` and `size` are part of the question, so a replaced file is read again."""
    return pq.read_schema(file)
