"""Events of some keys out of sorted runs, as a scan of their source would give them, without a query.

Only where that is sure to be the same: times in microseconds, keys in the entity's own types, no event told twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asof.runs import Hashes, Run, hashes_of
from asof.timeline import Ints

_NEVER = -(1 << 62)


def micros(times: pa.Array | pa.ChunkedArray) -> Ints:
    """Microseconds since 1970; where there is no time, one before all others."""
    whole = times.cast(pa.timestamp("us", tz=getattr(times.type, "tz", None)), safe=False).cast(pa.int64())
    return pc.fill_null(whole, _NEVER).to_numpy()


@dataclass(frozen=True)
class Events:
    """Events of some keys (grain R)."""

    keys: Hashes
    """Of the keys, ascending."""
    key: Ints
    """Of each event, the place of its key among them."""
    rows: pa.Table
    """Columns by their names in the view."""
    event: Ints
    known: Ints
    """When each became known, never before it happened; microseconds, as `event`."""

    @classmethod
    def of(
        cls, runs: Sequence[Run], keys: Hashes, columns: Mapping[str, str], timestamp: str, created: str | None
    ) -> Events | None:
        """The events of some keys; None where a hash is not that of one key alone.

        Args:
            runs: of rows with one schema, times in microseconds; the last has rows of every key asked about.
            keys: hashes, ascending, each once.
            columns: what the rows call each column of the view that is wanted.
            timestamp: column of the event time, in the rows.
            created: column of the time a row became known, in the rows; None when it is the event time.
        """
        found = [run.look_up(keys) for run in runs]
        if not all(run.sure for run in runs):
            return None
        asked = _first(runs[-1], *found[-1])
        for run, (places, counts) in zip(runs, found, strict=True):
            if not _first(run, places, counts).equals(asked.take(pa.array(np.flatnonzero(counts)))):
                return None
        wanted = sorted({*columns.values(), timestamp, *([created] if created else [])})
        parts = [run.rows.select(wanted).take(pa.array(places)) for run, (places, _) in zip(runs, found, strict=True)]
        rows = pa.Table.from_batches(parts).combine_chunks()
        event = micros(rows[timestamp])
        known = np.maximum(event, micros(rows[created])) if created else event
        key = np.concatenate([np.repeat(np.arange(len(keys)), counts) for _, counts in found])
        return cls(keys, key, pa.table({name: rows[stored] for name, stored in columns.items()}), event, known)

    def scanned(self, keys: pa.Table, columns: Sequence[str], since: int | None, until: int) -> pa.Table:
        """What `asof.latest.rows_of` selects: code, event, known, c0, c1, ...

        Args:
            keys: (code, k0, k1, ...), in the types of the rows.
            columns: names to fetch, as c0, c1, ...
            since: leave out events before it; None for all.
            until: leave out what happens or becomes known after it.
        """
        code = np.full(len(self.keys), -1)  # nobody asks about a key that lacks a part
        code[np.searchsorted(self.keys, hashes_of(keys.drop_columns(["code"])))] = keys["code"].to_numpy()
        seen = (self.known <= until) & (self.event >= (_NEVER + 1 if since is None else since)) & (code >= 0)[self.key]
        fetched = {f"c{place}": self.rows[name] for place, name in enumerate(columns)}
        table = pa.table({"code": code[self.key], "event": self.event, "known": self.known, **fetched})
        return table if seen.all() else table.filter(pa.array(seen))


def _first(run: Run, places: Ints, counts: Ints) -> pa.RecordBatch:
    """The keys of a run's rows, each once; see `Run.look_up`."""
    first = places[(np.cumsum(counts) - counts)[counts > 0]]
    return run.rows.select(list(run.named)).take(pa.array(first))
