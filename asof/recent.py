"""The rows of a view's source that can still matter, kept in the process that pushes: a push must not read everything.

They are rows, not values: every value comes out of `as_of`, which is handed these in place of the files. Left out is
only what no question from some moment on can see: events before every window, and of a plain view what is older than
the newest row its key had by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asof.definition import View
from asof.intake import needed, stored_name
from asof.latest import first_known
from asof.pushed import Batch, still_missing
from asof.source import Scan, Session, Source, identifier, text
from asof.timeline import FOREVER

_SHRINK_ABOVE = 100_000
"""Rows gathered since the last pruning that call for another."""

_CHUNKS = 32
"""Pieces, one a push, that are worth putting together: DuckDB reads many small ones slowly."""

_ALWAYS = 1 << 61

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class State:
    """What there is to read of a source now; it does not change while one push is under way."""

    files: tuple[Path, ...]
    since: Callable[[int], list[Batch]]
    """The rows pushed online only with a number above the given one."""
    any_pushed: bool
    """Whether there are any such rows."""


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
        self._files: dict[Path, tuple[int, int]] = {}
        self._number = 0
        self._from = 0
        self._rows: pa.Table | None = None
        self._pruned = 0
        self._forgotten: Hashes = np.zeros(0, np.uint64)
        self._told: set[int] = set()
        self._repeats = False
        self._asked: tuple[pa.Table, Hashes, bool, bool] | None = None

    @property
    def columns(self) -> list[str]:
        """Those kept of each row."""
        return self._columns

    def at(self, now: int, state: State, session: Session) -> pa.Table | None:
        """Rows enough for any question at `now` or later; None when there is nothing to read at all.

        Args:
            now: microseconds, of the push.
            state: what there is to read.
            session: reads it.
        """
        found = {file: (stat.st_mtime_ns, stat.st_size) for file in state.files for stat in (file.stat(),)}
        if not found and not state.any_pushed:
            return None
        fresh = [file for file in found if file not in self._files]
        changed = any(found.get(file) != known for file, known in self._files.items())
        # Without an event id, a file may bring the rows that so far were pushed only.
        landed = bool(fresh) and state.any_pushed and not self._source.event_id
        batches = state.since(self._number) if state.any_pushed else []
        if self._rows is None or changed or landed or now < self._from:
            self._read(now, state, session)
        elif fresh or batches:
            more = [session.arrow(f"select {self._chosen()} from {_read(tuple(fresh))} s")] if fresh else []
            more += [batch.rows.select(self._columns) for batch in batches]
            arrived = pa.concat_tables([_plain(part) for part in more])
            if self.knows_again(arrived, session):
                self._read(now, state, session)
            else:
                self._add(arrived, session)
        if self._repeats or (self._rows is not None and self._rows.num_rows > 2 * self._pruned + _SHRINK_ABOVE):
            assert self._rows is not None
            self._prune(session.hold("rows", self._rows.combine_chunks()), now, session)
        self._files = found
        self._number = max((batch.number for batch in batches), default=self._number)
        return self._rows

    def remember(self, rows: pa.Table, number: int, session: Session) -> None:
        """Count the rows of the push under way, once they are among the pushed ones: they need not be read back."""
        if self.knows_again(rows, session):
            self._rows = None
        if self._rows is not None:
            self._add(rows, session)
            self._number = number

    def knows_again(self, rows: pa.Table, session: Session) -> bool:
        """Whether a row may tell of an event whose first telling is not among the rows kept."""
        return self._ask(rows, session)[2]

    def is_new(self, rows: pa.Table, session: Session) -> bool:
        """Whether no two rows, of those kept and these together, tell of one event."""
        return not self._repeats and self._ask(rows, session)[3]

    def _ask(self, rows: pa.Table, session: Session) -> tuple[pa.Table, Hashes, bool, bool]:
        """The rows, the hashes of their event ids, whether one is forgotten, whether each is new and there once."""
        if self._asked is None or self._asked[0] is not rows:
            hashes, forgotten, new = np.zeros(0, np.uint64), False, True
            if self._source.event_id:
                each = self._hashes(self._alike(rows))
                hashes = np.unique(each)
                new = len(hashes) == len(each) and self._told.isdisjoint(hashes.tolist())
                if len(self._forgotten):
                    place = np.searchsorted(self._forgotten, hashes)  # sorted: numpy's set operations leave them so
                    found = self._forgotten[np.minimum(place, len(self._forgotten) - 1)] == hashes
                    forgotten = bool(found.any())
            self._asked = rows, hashes, forgotten, new
        return self._asked

    def _alike(self, rows: pa.Table) -> pa.Table:
        """Rows in the columns and types of the kept ones: one event has one hash, whoever tells of it."""
        chosen = _plain(rows.select(self._columns))
        return chosen if self._rows is None else chosen.cast(self._rows.schema, safe=False)

    def _add(self, rows: pa.Table, session: Session) -> None:
        assert self._rows is not None
        _, hashes, _, new = self._ask(rows, session)
        self._repeats |= not new
        self._told.update(hashes.tolist())
        self._asked = None
        together = pa.concat_tables([self._rows, _plain(rows.select(self._columns))], promote_options="default")
        self._rows = together.combine_chunks() if together.column(0).num_chunks > _CHUNKS else together

    def _read(self, now: int, state: State, session: Session) -> None:
        parts = [f"select {self._chosen()} from {_read(state.files)} s"] if state.files else []
        batches = state.since(0)
        if batches and not self._source.event_id:
            batches = still_missing(batches, state.files, [], self._source.created, session)
        parts += [f"select {self._chosen()} from {session.hold('pushed', batch.rows)} s" for batch in batches]
        everything = f"({' union all by name '.join(parts)})"
        self._prune(everything, now, session)

    def _prune(self, relation: str, now: int, session: Session) -> None:
        kinds = session.connection.sql(f"select * from {relation}")
        scan = Scan(self._source, relation, dict(zip(kinds.columns, map(str, kinds.types), strict=True)))
        kept = _plain(session.arrow(self._pruning(scan, now)))
        if self._source.event_id:
            names = ", ".join(f"s.{identifier(name)}" for name in self._source.event_id)
            all_of_them = self._hashes(_plain(session.arrow(f"select {names} from {relation} s")))
            told = self._hashes(kept)
            forgotten = np.setdiff1d(all_of_them, told)
            self._told = set(told.tolist())
            self._forgotten = np.union1d(self._forgotten, forgotten) if self._rows is not None else forgotten
        self._rows, self._pruned, self._from = kept, kept.num_rows, now
        self._repeats, self._asked = False, None

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
        keys = ", ".join(f"s.{identifier(stored_name(view, key.name))}" for key in view.keys)
        partition = f"partition by {keys}" if keys else ""
        newest = f"max(case when {known} <= {grid} then {event} end) over ({partition})"
        return f"select {self._chosen()} from {relation} s qualify {event} >= coalesce({newest}, {event})"

    def _hashes(self, rows: pa.Table) -> Hashes:
        """Of the event ids of rows of the kept ones' types; a row that lacks a part of its id has none."""
        ids = pl.DataFrame(rows.select(list(self._source.event_id)))
        return ids.drop_nulls().hash_rows().to_numpy()

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
    return pq.read_schema(files[0]) if files else None
