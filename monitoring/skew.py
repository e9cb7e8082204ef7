"""The skew audit: each logged vector against its recomputation through the training path, value by value.

Legend: N = logged rows, F = features, a value = one (row, feature).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.locations import Locations
from contracts.predictions import ANSWERED_VARIANTS, logged_features, read_predictions
from contracts.task import Task
from monitoring.recompute import Recomputation, ViewFacts, open_recomputation
from monitoring.skew_report import FeatureSkew, SkewExample, SkewReport

if TYPE_CHECKING:
    import feast

_PREFIX = "feature."
_BATCH = 100_000
"""Rows recomputed at a time: on-demand views hold a batch as Python objects, about 5 KB a row of 80 features."""
_EXAMPLES = 5
_MICROSECOND = timedelta(microseconds=1)


class Recompute(Protocol):
    """What the audit asks of the training path; `Recomputation` over Feast, or a table in a test."""

    views: dict[str, ViewFacts]
    sources: dict[str, tuple[str, ...]]

    def __call__(self, inputs: pa.ChunkedArray, at: pa.ChunkedArray) -> pa.Table:
        """Features for each logged input at its event timestamp, in order."""
        ...


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
    where = locations.predictions(task.name)
    log = read_predictions(where, start=start, end=end, variants=variants)
    return audit_rows(task, log, features=logged_features(where), share=share, store=store, progress=progress)


def audit_rows(
    task: Task,
    log: pa.Table,
    *,
    features: Mapping[int, Collection[str]],
    share: float = 1.0,
    store: feast.FeatureStore | None = None,
    progress: Callable[[str], None] | None = None,
) -> SkewReport:
    """As `audit`, of rows that were read already; `features` are those that each version logs."""
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
    return compare(log, recompute, features=features, progress=progress)


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
    log: pa.Table,
    recompute: Recompute,
    *,
    features: Mapping[int, Collection[str]],
    progress: Callable[[str], None] | None = None,
    batch: int = _BATCH,
) -> SkewReport:
    """Compare every feature that a version logs with its recomputation, version by version, batch by batch.

    In a table of several versions a column is null where a version never had the feature: only `features` tells that
    from a feature that stopped coming.
    """
    declared = pc.not_equal(pc.fill_null(log["degraded"], ""), "")
    left_out = pc.sum(declared).as_py() or 0
    log = log.filter(pc.invert(declared))
    found: dict[str, FeatureSkew] = {}
    unknown: set[str] = set()
    names = [name.removeprefix(_PREFIX) for name in log.column_names if name.startswith(_PREFIX)]
    done = 0
    for version in sorted(log["version"].unique().to_pylist()):
        rows = log.filter(pc.equal(log["version"], version))
        logged = [name for name in names if name in features[version]]
        for at in range(0, rows.num_rows, batch):
            part = rows.slice(at, batch)
            fresh = recompute(part["inputs"], part["event_timestamp"])
            times = _ViewTimes(part["view_times"], recompute.views)
            for name in logged:
                if name not in fresh.column_names:
                    unknown.add(name)
                    continue
                skew = found.setdefault(name, FeatureSkew(name))
                _compare_column(skew, part, fresh[name], recompute.sources.get(name, ()), times)
            done += part.num_rows
            if progress is not None:
                progress(f"skew audit: {done:,} of {log.num_rows:,} rows")
    ordered = tuple(found[name] for name in names if name in found)
    return SkewReport(log.num_rows, left_out, ordered, tuple(sorted(unknown)))


def _compare_column(
    skew: FeatureSkew,
    rows: pa.Table,
    offline: pa.ChunkedArray,
    sources: Sequence[str],
    logged: _ViewTimes,
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
    times = {view: logged.of(view) for view in sources}
    causes = _causes(rows["event_timestamp"].take(pa.array(wrong)), wrong, times, logged.views, missing)
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


class _ViewTimes:
    """Each view's answer times; the log's JSON is read only when a difference asks for it."""

    def __init__(self, logged: pa.ChunkedArray, views: Mapping[str, ViewFacts]) -> None:
        self.views = views
        self._logged = logged
        self._read: dict[str, pa.ChunkedArray] = {}

    def of(self, view: str) -> pa.ChunkedArray:
        """Microseconds since the epoch, null where the view had no row."""
        if view not in self._read:
            path = "$." + '"' + view.replace('"', '\\"') + '"'
            query = "select try_cast(json_extract_string(times, ?) as bigint) as at from logged order by row"
            with duckdb.connect() as connection:
                connection.register("logged", pa.table({"row": np.arange(len(self._logged)), "times": self._logged}))
                table: pa.Table = connection.sql(query, params=[path]).to_arrow_table()
            self._read[view] = table["at"]
        return self._read[view]


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
