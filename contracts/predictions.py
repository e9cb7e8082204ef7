"""The prediction log's format: what serving writes before it answers, and monitoring reads.

Live rows are in SQLite segments (write-ahead log, full synchronisation: a committed row survives power loss), one
segment a writer. Closed segments are compacted to Parquet, a file a segment. Readers see both as one table.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts.clock import as_utc
from contracts.files import whole_file
from contracts.segment_facts import segment_facts
from contracts.segment_rows import (
    COLUMNS,
    decode_rows,
    is_begun,
    micros,
    open_to_read,
    select_rows,
    stored_features,
    with_every_column,
)

_INSTANT = pa.timestamp("us", tz="UTC")
_DDL = """
create table if not exists predictions (
    request_id text not null, position integer not null, variant text not null, version integer not null,
    case_id text, event_timestamp integer not null, answered_at integer not null,
    inputs blob not null, numbers blob not null, texts blob not null, view_times blob not null,
    score real not null, decision integer not null, latency_ms real not null, degraded text not null,
    quantiles blob not null,
    primary key (request_id, position, variant)
) without rowid;
create table if not exists features (name text primary key, kind text not null, position integer not null);
create table if not exists counters (name text primary key, value integer not null);
insert or ignore into counters values ('answered', 0), ('lost', 0), ('settled', 0);
"""
_INSERT = """
insert into predictions values (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)
on conflict (request_id, position, variant) do nothing
"""  # not "or ignore", which would also drop a row with a null, and SQLite reads a score that is NaN as null
ANSWERED_VARIANTS = ("champion", "canary")
REHEARSAL = "rehearsal-"
"""Begins the request ids of load tests, and then the variants their rows are logged under: all of the work is done,
and none of it is evidence of anything, nor part of the account."""
_Read = TypeVar("_Read")


@dataclass(slots=True)  # not frozen: made for every row of every answer, which would take twice the time
class PredictionRow:
    """One scored row. `numbers` and `texts` are in the order of the segment's features of that kind."""

    request_id: str
    position: int
    variant: str
    version: int
    case_id: str | None
    event_timestamp: datetime
    answered_at: datetime
    inputs: dict[str, Any]
    numbers: np.ndarray
    texts: Sequence[str]
    view_times: dict[str, int | None]
    score: float
    decision: int
    latency_ms: float
    degraded: Sequence[str] = ()
    quantiles: Mapping[str, float] = field(default_factory=dict)
    """Level, such as "0.9", to the value predicted for it."""


def open_segment(path: Path, features: Sequence[tuple[str, str]]) -> sqlite3.Connection:
    """Open a segment for appending; `features` is (name, "number" | "text") in model order.

    Raises ValueError when the segment exists with other features: a new schema starts a new segment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=20)
    try:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.executescript(f"begin immediate; {_DDL} commit;")
        found = stored_features(connection)
        if not found:
            rows = [(name, kind, position) for position, (name, kind) in enumerate(features)]
            connection.executemany("insert into features values (?, ?, ?)", rows)
    except BaseException:
        connection.close()
        raise
    if found and found != list(features):
        connection.close()
        raise ValueError(f"Segment {path} holds other features: {found[:3]}…, asked for {list(features)[:3]}….")
    return connection


def append(
    connection: sqlite3.Connection,
    rows: Iterable[PredictionRow],
    *,
    answered: int = 0,
    lost: int = 0,
    settled: int | None = None,
) -> None:
    """Commit rows and the counters that account for them in one transaction; returns when they are on disk.

    `answered` counts the caller-facing rows among them (or rows whose answer went out unlogged, then also in `lost`).
    A row whose (request, position, variant) is already there is left as it was. `settled` is, of a writer that answers
    before it commits, how many of its answers have been logged or counted as lost by now, in all its segments.

    Raises:
        sqlite3.Error: the transaction failed (a full disk, a score that is not a number); nothing of it is kept.
    """
    connection.execute("begin immediate")
    try:
        connection.executemany(_INSERT, [_encode(row) for row in rows])
        connection.execute("update counters set value = value + ? where name = 'answered'", (answered,))
        if lost:
            connection.execute("update counters set value = value + ? where name = 'lost'", (lost,))
        if settled is not None:
            connection.execute("update counters set value = ? where name = 'settled'", (settled,))
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:  # a full disk has taken it back already, and its error is the one to tell
            connection.execute("rollback")
        raise


def add_lost(connection: sqlite3.Connection, rows: int, *, settled: int) -> None:
    """Account for rows that a writer, now gone, had answered and not logged."""
    append(connection, (), answered=rows, lost=rows, settled=settled)


def settled_in(segment: Path) -> int:
    """What a live segment's newest commit says of its writer's settled answers."""
    with closing(open_to_read(segment)) as connection:
        if not is_begun(connection):
            return 0
        found = connection.execute("select value from counters where name = 'settled'").fetchone()
    return 0 if found is None else int(found[0])


def read_predictions(
    log: Path,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    variants: Sequence[str] = ANSWERED_VARIANTS,
    requests: Sequence[str] | None = None,
    vectors: bool = True,
    segments: Container[str] | None = None,
) -> pa.Table:
    """Logged rows with event timestamps in [start, end), ordered by (event timestamp, request, position, variant).

    With `requests`, only the rows of these few. With `segments`, only those named are opened:
    `contracts.prediction_index` says which hold what.

    Returns the columns of `COLUMNS` and, unless `vectors` is false, one `feature.<name>` column a feature; segments
    with differing features are joined by name, absent ones null. A folder that does not exist reads as an empty log.
    """
    conditions = [(sign, as_utc(bound)) for sign, bound in ((">=", start), ("<", end)) if bound is not None]
    parts = [
        prefer_compacted(
            path,
            lambda live: _read_segment(live, variants, conditions, vectors, requests),
            lambda compacted: _read_compacted(compacted, variants, conditions, vectors, requests),
        )
        for path in segment_paths(log)
        if segments is None or path.stem in segments
    ]
    apart = list({id(part): part for part in parts}.values())  # of segments passed over, one for all alike
    table = pa.concat_tables(apart, promote_options="default") if apart else COLUMNS.empty_table()
    return table.sort_by([(name, "ascending") for name in ("event_timestamp", "request_id", "position", "variant")])


def logged_features(log: Path) -> dict[int, set[str]]:
    """Which features each version's rows were logged with: tells a null from a feature the version never had."""
    found: dict[int, set[str]] = {}
    for path in segment_paths(log):
        versions, features = prefer_compacted(path, _live_schema, _compacted_schema)
        for version in versions:
            found.setdefault(version, set()).update(features)
    return found


@dataclass(frozen=True, slots=True)
class LogBalance:
    """The log's account: every answered row is either logged or counted as lost."""

    answered: int
    logged: int
    lost: int

    @property
    def balanced(self) -> bool:
        """Whether answered = logged + lost."""
        return self.answered == self.logged + self.lost


def balance(log: Path) -> LogBalance:
    """Sum the counters and the caller-facing rows of every segment, live and compacted."""
    parts = [prefer_compacted(path, _live_balance, _compacted_balance) for path in segment_paths(log)]
    return LogBalance(
        answered=sum(each.answered for each in parts),
        logged=sum(each.logged for each in parts),
        lost=sum(each.lost for each in parts),
    )


def compact(segment: Path) -> Path:
    """Turn a closed segment into a Parquet file beside it, then remove the segment. Safe to repeat after a kill."""
    target = segment.with_suffix(".parquet")
    if not target.exists():
        account = _live_balance(segment)
        kept = {"answered": str(account.answered), "lost": str(account.lost), "logged": str(account.logged)}
        kept["settled"] = str(settled_in(segment))
        for leftover in target.parent.glob(f".{target.name}.*.part"):  # of a compaction that was killed
            leftover.unlink(missing_ok=True)
        with whole_file(target) as part:
            pq.write_table(_read_segment(segment).replace_schema_metadata(kept), part, compression="zstd")
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{segment}{suffix}").unlink(missing_ok=True)
    return target


def segment_paths(log: Path) -> list[Path]:
    """Every segment by the path it has while it is live, compacted or not."""
    return sorted({path.with_suffix(".sqlite") for suffix in ("sqlite", "parquet") for path in log.glob(f"*.{suffix}")})


def prefer_compacted(segment: Path, live: Callable[[Path], _Read], compacted: Callable[[Path], _Read]) -> _Read:
    """Read a segment once, wherever it is just now.

    Compaction writes the Parquet file in one step and removes the segment afterwards, so both may be there, and the
    segment may vanish in the middle of a read: what was read live counts only if there is no Parquet file by then.
    """
    target = segment.with_suffix(".parquet")
    if not target.exists():
        try:
            found = live(segment)
        except sqlite3.OperationalError:
            if not target.exists():
                raise
        else:
            if not target.exists():
                return found
    return compacted(target)


def _live_balance(segment: Path) -> LogBalance:
    marks = ", ".join("?" for _ in ANSWERED_VARIANTS)
    with closing(open_to_read(segment)) as connection:
        if not is_begun(connection):
            return LogBalance(0, 0, 0)
        connection.execute("begin")  # one look for both: a commit in between would be counted on one side only
        counters = dict(connection.execute("select name, value from counters"))
        count = f"select count(*) from predictions where variant in ({marks})"
        logged = connection.execute(count, ANSWERED_VARIANTS).fetchone()[0]
    return LogBalance(counters["answered"], logged, counters["lost"])


def _compacted_balance(path: Path) -> LogBalance:
    kept = pq.read_schema(path).metadata
    return LogBalance(int(kept[b"answered"]), int(kept[b"logged"]), int(kept[b"lost"]))


def _live_schema(segment: Path) -> tuple[list[int], list[str]]:
    with closing(open_to_read(segment)) as connection:
        if not is_begun(connection):
            return [], []
        versions = [row[0] for row in connection.execute("select distinct version from predictions")]
        return versions, [name for name, _ in stored_features(connection)]


def _compacted_schema(path: Path) -> tuple[list[int], list[str]]:
    facts = segment_facts(path)
    features = [name.removeprefix("feature.") for name in facts.schema.names if name.startswith("feature.")]
    return list(facts.versions), features


def _read_compacted(
    path: Path,
    variants: Sequence[str],
    conditions: Sequence[tuple[str, datetime]],
    vectors: bool,
    requests: Sequence[str] | None,
) -> pa.Table:
    facts = segment_facts(path)
    if not facts.may_hold(conditions):
        return _no_rows(facts.schema, vectors)
    keep = pc.field("variant").isin(list(variants))
    if requests is not None:
        keep &= pc.field("request_id").isin(list(requests))
    for sign, bound in conditions:
        compare = pc.greater_equal if sign == ">=" else pc.less
        keep &= compare(pc.field("event_timestamp"), pa.scalar(bound, _INSTANT))
    wanted = _wanted(facts.schema, vectors)
    return with_every_column(pq.read_table(path, columns=wanted, partitioning=None, filters=keep))


@functools.lru_cache(maxsize=1 << 8)
def _no_rows(schema: pa.Schema, vectors: bool) -> pa.Table:
    """What a compacted segment of these columns gives where none of its rows is asked for: the same table each time."""
    return with_every_column(schema.empty_table().select(_wanted(schema, vectors)))


def _wanted(schema: pa.Schema, vectors: bool) -> list[str]:
    return [name for name in schema.names if name in COLUMNS.names or (vectors and name.startswith("feature."))]


def _encode(row: PredictionRow) -> tuple[Any, ...]:
    return (
        row.request_id,
        row.position,
        row.variant,
        row.version,
        row.case_id,
        micros(row.event_timestamp),
        micros(row.answered_at),
        orjson.dumps(row.inputs),
        np.ascontiguousarray(row.numbers, dtype="<f4").tobytes(),
        orjson.dumps(list(row.texts)) if len(row.texts) else b"[]",
        orjson.dumps(row.view_times),
        float(row.score),
        int(row.decision),
        float(row.latency_ms),
        ",".join(row.degraded),
        orjson.dumps(dict(row.quantiles)),
    )


def _read_segment(
    path: Path,
    variants: Sequence[str] | None = None,
    conditions: Sequence[tuple[str, datetime]] = (),
    vectors: bool = True,
    requests: Sequence[str] | None = None,
) -> pa.Table:
    with closing(open_to_read(path)) as connection:
        if not is_begun(connection):
            return COLUMNS.empty_table()
        features = stored_features(connection) if vectors else []
        return decode_rows(select_rows(connection, variants, conditions, vectors, requests).fetchall(), features)
