"""The skew audit: each logged vector against its recomputation through the training path, value by value.

Legend: N = logged rows, F = features, a value = one (row, feature).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.locations import Locations
from contracts.predictions import ANSWERED_VARIANTS, read_predictions
from contracts.task import Task
from monitoring.recompute import Recomputation, ViewFacts, open_recomputation

if TYPE_CHECKING:
    import feast

_PREFIX = "feature."
_BATCH = 250_000
"""Rows recomputed at a time: bounds memory, and a batch is large enough to amortise the query."""
_EXAMPLES = 5
_MICROSECOND = timedelta(microseconds=1)


class Recompute(Protocol):
    """What the audit asks of the training path; `Recomputation` over Feast, or a table in a test."""

    views: dict[str, ViewFacts]
    sources: dict[str, tuple[str, ...]]

    def __call__(self, inputs: pa.ChunkedArray, at: pa.ChunkedArray) -> pa.Table:
        """Features for each logged input at its event timestamp, in order."""
        ...


@dataclass(frozen=True, slots=True)
class SkewExample:
    """One value that differs."""

    request_id: str
    position: int
    case_id: str | None
    version: int
    event_timestamp: datetime
    online: float | str | None
    offline: float | str | None
    cause: str
    view_times: dict[str, datetime | None]
    """What each view behind the feature answered with online: the time of its row."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        times = {view: None if at is None else at.isoformat() for view, at in self.view_times.items()}
        return {
            "request_id": self.request_id,
            "position": self.position,
            "case_id": self.case_id,
            "version": self.version,
            "event_timestamp": self.event_timestamp.isoformat(),
            "online": self.online,
            "offline": self.offline,
            "cause": self.cause,
            "view_times": times,
        }


@dataclass(slots=True)
class FeatureSkew:
    """What the audit found of one feature."""

    name: str
    checked: int = 0
    different: int = 0
    """Both have a value, and the values differ."""
    missing: int = 0
    """Null online, a value offline."""
    extra: int = 0
    """A value online, null offline."""
    largest: float = 0.0
    """Largest difference between two numbers."""
    causes: Counter[str] = field(default_factory=Counter)
    """`stale`: the view answered with an older boundary than was due. `absent`: the online store had no row of the
    view. `unexplained`: neither."""
    examples: list[SkewExample] = field(default_factory=list)

    @property
    def mismatches(self) -> int:
        """Values that differ in any way."""
        return self.different + self.missing + self.extra

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "name": self.name,
            "checked": self.checked,
            "mismatches": self.mismatches,
            "different": self.different,
            "missing": self.missing,
            "extra": self.extra,
            "largest": self.largest,
            "causes": dict(self.causes),
            "examples": [example.to_dict() for example in self.examples],
        }


@dataclass(frozen=True, slots=True)
class SkewReport:
    """What the audit found in all."""

    rows: int
    """Logged rows compared."""
    declared: int
    """Rows left out because they were answered with declared stand-ins (degraded); they never claimed to be equal."""
    features: tuple[FeatureSkew, ...]
    unknown: tuple[str, ...]
    """Logged features that the feature service no longer computes: nothing to compare with."""

    @property
    def checked(self) -> int:
        """Values compared."""
        return sum(feature.checked for feature in self.features)

    @property
    def mismatches(self) -> int:
        """Values that differ; a healthy system has none."""
        return sum(feature.mismatches for feature in self.features)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "rows": self.rows,
            "checked": self.checked,
            "mismatches": self.mismatches,
            "declared": self.declared,
            "unknown": list(self.unknown),
            "features": [feature.to_dict() for feature in self.features],
        }


def audit(
    task: Task,
    locations: Locations,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    share: float = 1.0,
    store: feast.FeatureStore | None = None,
    variants: Sequence[str] = ANSWERED_VARIANTS,
    progress: Callable[[str], None] | None = None,
) -> SkewReport:
    """Recompute the vectors logged in [start, end) as training would, and compare.

    Args:
        task: names the Feast repository and the feature service.
        locations: where the prediction log is.
        start: event timestamp from which rows are looked at; None: the log's beginning.
        end: event timestamp before which they are; None: the log's end.
        share: share of entity keys to look at, in (0, 1]; a key is looked at with all its rows or with none.
        store: a store to recompute with; None opens the task's repository.
        variants: whose rows.
        progress: told what is being done.
    """
    log = read_predictions(locations.predictions(task.name), start=start, end=end, variants=variants)
    return audit_rows(task, log, share=share, store=store, progress=progress)


def audit_rows(
    task: Task,
    log: pa.Table,
    *,
    share: float = 1.0,
    store: feast.FeatureStore | None = None,
    progress: Callable[[str], None] | None = None,
) -> SkewReport:
    """As `audit`, of rows that were read already."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}.")
    if not log.num_rows:
        return SkewReport(0, 0, (), ())
    if store is None:
        recompute = open_recomputation(task.feature_repo, task.feature_service)
    else:
        recompute = Recomputation(store, task.feature_service)
    if share < 1:
        log = sample_keys(log, task.spine.keys, share)
    return compare(log, recompute, progress=progress)


def sample_keys(log: pa.Table, keys: Sequence[str], share: float) -> pa.Table:
    """Rows of about `share` of all key combinations; the same combinations in every run."""
    paths = {f"p{i}": "$." + '"' + key.replace('"', '\\"') + '"' for i, key in enumerate(keys)}
    values = ", ".join(f"coalesce(json_extract_string(inputs, ${name}), '')" for name in paths)
    rows = pa.table({"row": np.arange(log.num_rows), "inputs": log["inputs"]})
    with duckdb.connect() as connection:
        connection.register("logged", rows)
        bucket = f"md5_number_lower(concat_ws(chr(31), {values})) % 1000000"
        query = f"select row from logged where {bucket} < $bound order by row"
        bound = {**paths, "bound": round(share * 1_000_000)}
        kept: pa.Table = connection.sql(query, params=bound).to_arrow_table()
    return log.take(kept["row"])


def compare(
    log: pa.Table, recompute: Recompute, *, progress: Callable[[str], None] | None = None, batch: int = _BATCH
) -> SkewReport:
    """Compare every feature column of `log` with its recomputation, version by version, batch by batch."""
    declared = pc.not_equal(pc.fill_null(log["degraded"], ""), "")
    left_out = pc.sum(declared).as_py() or 0
    log = log.filter(pc.invert(declared))
    found: dict[str, FeatureSkew] = {}
    unknown: set[str] = set()
    names = [name.removeprefix(_PREFIX) for name in log.column_names if name.startswith(_PREFIX)]
    versions = sorted(log["version"].unique().to_pylist())
    done = 0
    for version in versions:
        rows = log.filter(pc.equal(log["version"], version))
        logged = names if len(versions) == 1 else _logged_by(rows, names)
        for at in range(0, rows.num_rows, batch):
            part = rows.slice(at, batch)
            fresh = recompute(part["inputs"], part["event_timestamp"])
            times = _view_times(part["view_times"], recompute.views)
            for name in logged:
                if name not in fresh.column_names:
                    unknown.add(name)
                    continue
                behind = {view: times[view] for view in recompute.sources.get(name, ()) if view in times}
                skew = found.setdefault(name, FeatureSkew(name))
                _compare_column(skew, part, fresh[name], behind, recompute.views)
            done += part.num_rows
            if progress is not None:
                progress(f"skew audit: {done:,} of {log.num_rows:,} rows")
    ordered = tuple(found[name] for name in names if name in found)
    return SkewReport(log.num_rows, left_out, ordered, tuple(sorted(unknown)))


def _logged_by(rows: pa.Table, names: Sequence[str]) -> list[str]:
    """Features that this version's rows have: reading segments with other features fills theirs with nulls."""
    return [name for name in names if rows[_PREFIX + name].null_count < rows.num_rows]


def _compare_column(
    skew: FeatureSkew,
    rows: pa.Table,
    offline: pa.ChunkedArray,
    times: Mapping[str, pa.ChunkedArray],
    views: Mapping[str, ViewFacts],
) -> None:
    online = rows[_PREFIX + skew.name]
    if pa.types.is_string(online.type):
        online_values, online_null = _texts(online)
        offline_values, offline_null = _texts(offline)
        unequal = online_values != offline_values
    else:
        online_values, online_null = _numbers(online)
        offline_values, offline_null = _numbers(offline)
        unequal = _ulps(online_values, offline_values) > (0 if pa.types.is_integer(offline.type) else 1)
    different = unequal & ~online_null & ~offline_null
    missing, extra = online_null & ~offline_null, offline_null & ~online_null
    skew.checked += rows.num_rows
    if not (different | missing | extra).any():
        return
    skew.different += int(different.sum())
    skew.missing += int(missing.sum())
    skew.extra += int(extra.sum())
    if online_values.dtype.kind == "f" and different.any():
        distance = np.abs(online_values[different].astype(np.float64) - offline_values[different].astype(np.float64))
        skew.largest = max(skew.largest, float(distance.max()))
    wrong = np.flatnonzero(different | missing | extra)
    causes = _causes(rows["event_timestamp"].take(pa.array(wrong)), wrong, times, views, missing)
    skew.causes.update(causes.tolist())
    for row, cause in zip(wrong[: _EXAMPLES - len(skew.examples)], causes, strict=False):
        at = int(row)
        skew.examples.append(
            SkewExample(
                request_id=rows["request_id"][at].as_py(),
                position=rows["position"][at].as_py(),
                case_id=rows["case_id"][at].as_py(),
                version=rows["version"][at].as_py(),
                event_timestamp=rows["event_timestamp"][at].as_py(),
                online=None if online_null[at] else online_values[at : at + 1].tolist()[0],
                offline=None if offline_null[at] else offline_values[at : at + 1].tolist()[0],
                cause=str(cause),
                view_times={view: _instant(column[at].as_py()) for view, column in times.items()},
            )
        )


def _causes(
    at: pa.ChunkedArray,
    wrong: np.ndarray,
    times: Mapping[str, pa.ChunkedArray],
    views: Mapping[str, ViewFacts],
    missing: np.ndarray,
) -> np.ndarray:
    cause = np.full(len(wrong), "unexplained", dtype=object)
    asked = at.cast(pa.int64()).to_numpy()
    for view, column in times.items():
        answered = column.take(pa.array(wrong))
        none = answered.is_null().to_numpy()
        cause[none & missing[wrong] & (cause == "unexplained")] = "absent"
        grid = views[view].grid
        if grid is not None:
            step = grid // _MICROSECOND
            cause[~none & (answered.fill_null(0).to_numpy() < asked // step * step)] = "stale"
    return cause


def _view_times(logged: pa.ChunkedArray, views: Mapping[str, ViewFacts]) -> dict[str, pa.ChunkedArray]:
    """Each view's answer time in microseconds since the epoch, null where it had no row."""
    if not views:
        return {}
    names = list(views)
    fields = ", ".join(f"try_cast(json_extract_string(times, ${f'p{i}'}) as bigint) as v{i}" for i in range(len(names)))
    paths = {f"p{i}": "$." + '"' + name.replace('"', '\\"') + '"' for i, name in enumerate(names)}
    with duckdb.connect() as connection:
        connection.register("logged", pa.table({"row": np.arange(len(logged)), "times": logged}))
        table: pa.Table = connection.sql(f"select {fields} from logged order by row", params=paths).to_arrow_table()
    return {name: table[f"v{i}"] for i, name in enumerate(names)}


def _numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """float32 values as the model gets them, and which are null; NaN is null."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    wide = column.cast(pa.float64(), safe=False).cast(pa.float32(), safe=False)
    values = wide.to_numpy()
    return values, np.isnan(values)


def _texts(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Texts, null as the empty string, as the model gets them; and which are null."""
    values = column.cast(pa.string()).fill_null("").to_numpy().astype(object)
    return values, values == ""


def _ulps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many float32 values apart two arrays are."""
    return np.abs(_ordered(a) - _ordered(b))


def _ordered(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _instant(micros: int | None) -> datetime | None:
    return None if micros is None else datetime(1970, 1, 1, tzinfo=UTC) + micros * _MICROSECOND
