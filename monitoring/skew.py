"""The skew audit: each logged vector against its recomputation through the training path, value by value.

Legend: N = logged rows, F = features, a value = one (row, feature).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from contracts.locations import Locations
from contracts.prediction_batches import count_rows, prediction_batches
from contracts.predictions import ANSWERED_VARIANTS, logged_features
from contracts.task import Task
from monitoring.recompute import Recomputation, open_recomputation
from monitoring.scratch import scratch
from monitoring.skew_causes import NOT_JUDGED, Recompute, ViewTimes, differing_rows, explain
from monitoring.skew_places import by_place
from monitoring.skew_report import EXAMPLES, FeatureSkew, SkewExample, SkewReport
from monitoring.skew_values import DIFFERENT, EXTRA, MISSING, Compared, compare_values

if TYPE_CHECKING:
    import feast

_PREFIX = "feature."
_PART = "__part__"
_BATCH = 200_000
"""Rows read and recomputed at a time: on-demand views hold a batch as Python objects, up to 2 KB a row."""
_MICROSECOND = timedelta(microseconds=1)


def audit(
    task: Task,
    locations: Locations,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    share: float = 1.0,
    store: feast.FeatureStore | None = None,
    variants: Sequence[str] = ANSWERED_VARIANTS,
    fingerprints: Mapping[int, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    batch: int = _BATCH,
) -> SkewReport:
    """Recompute the vectors logged in [start, end) as training would, and compare. Memory is a batch's.

    Args:
        task: names the Feast repository and the feature service.
        locations: where the prediction log is.
        start: event timestamp from which rows are looked at; None: the log's beginning.
        end: event timestamp before which they are; None: the log's end.
        share: share of entity keys to look at, in (0, 1]; a key is looked at with all its rows or with none.
        store: a store to recompute with; None opens the task's repository.
        variants: whose rows.
        fingerprints: of the definitions that a version was compiled from; a version not named is taken to be compiled
            from today's.
        progress: told how many rows of the log have gone by, and how many it has.
        batch: rows compared at a time.
    """
    _check_share(share)
    where = locations.predictions(task.name)
    features = logged_features(where)
    total = count_rows(where)
    found: _Audit | None = None
    for each in prediction_batches(where, start=start, end=end, variants=variants, rows=batch):
        if found is None:
            found = _Audit(_open(task, store), features, task.monitoring.settling, fingerprints or {})
        found.add(each.rows if share == 1 else sample_keys(each.rows, task.spine.keys, share), task.spine.keys)
        if progress is not None:
            progress(each.passed, total)
    return found.report(share) if found is not None else SkewReport(0, (), share=share)


def audit_parts(
    task: Task,
    log: pa.Table,
    parts: np.ndarray,
    *,
    features: Mapping[int, Collection[str]],
    share: float = 1.0,
    store: feast.FeatureStore | None = None,
    fingerprints: Mapping[int, str] | None = None,
    batch: int = _BATCH,
) -> dict[int, SkewReport]:
    """As `audit`, of rows that were read already, a report for each of the parts they belong to.

    Vectors of all parts are recomputed together, a batch at a time.

    Args:
        task: names the Feast repository and the feature service.
        log: rows.
        parts: int [N], the part of each row.
        features: those that each version logs.
        share: share of entity keys to look at.
        store: a store to recompute with; None opens the task's repository.
        fingerprints: as for `audit`.
        batch: rows recomputed at a time.
    """
    _check_share(share)
    if not log.num_rows:
        return {}
    numbered = log.append_column(_PART, pa.array(parts, pa.int64()))
    numbered = numbered if share == 1 else sample_keys(numbered, task.spine.keys, share)
    given = _open(task, store)
    audits = {
        part: _Audit(given, features, task.monitoring.settling, fingerprints or {})
        for part in np.unique(parts).tolist()
    }
    for at in range(0, numbered.num_rows, batch):
        rows = numbered.slice(at, batch)
        whose = rows[_PART].to_numpy()
        rows = rows.drop_columns([_PART])
        fresh = by_place(given, (name.removeprefix(_PREFIX) for name in rows.column_names))(
            rows["inputs"], rows["event_timestamp"]
        )
        for part in np.unique(whose).tolist():
            mine = pa.array(whose == part)
            audits[part].add(rows.filter(mine), task.spine.keys, fresh.filter(mine))
    return {part: each.report(share) for part, each in audits.items()}


def compare(
    log: pa.Table,
    recompute: Recompute,
    *,
    features: Mapping[int, Collection[str]],
    keys: Sequence[str] = (),
    settling: timedelta = timedelta(0),
    fingerprints: Mapping[int, str] | None = None,
    share: float = 1.0,
    batch: int = _BATCH,
) -> SkewReport:
    """Compare every feature that a version logs with what `recompute` says, batch by batch."""
    found = _Audit(recompute, features, settling, fingerprints or {})
    for at in range(0, log.num_rows, batch):
        found.add(log.slice(at, batch), keys)
    return found.report(share)


def sample_keys(log: pa.Table, keys: Sequence[str], share: float) -> pa.Table:
    """Rows of about `share` of all key combinations; the same combinations in every run."""
    paths = {f"p{i}": "$." + '"' + key.replace('"', '\\"') + '"' for i, key in enumerate(keys)}
    values = ", ".join(f"coalesce(json_extract_string(inputs, ${name}), '')" for name in paths)
    rows = pa.table({"row": np.arange(log.num_rows), "inputs": log["inputs"]})
    with scratch() as connection:
        connection.register("logged", rows)
        bucket = f"md5_number_lower(concat_ws(chr(31), {values})) % 1000000"
        query = f"select row from logged where {bucket} < $bound order by row"
        bound = {**paths, "bound": round(share * 1_000_000)}
        kept: pa.Table = connection.sql(query, params=bound).to_arrow_table()
    return log.take(kept["row"])


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}.")


def _open(task: Task, store: feast.FeatureStore | None) -> Recomputation:
    if store is None:
        return open_recomputation(task.feature_repo, task.feature_service)
    return Recomputation(store, task.feature_service)


class _Audit:
    """What was found so far, batch after batch.

    In a table of several versions a column is null where a version never had the feature: only `features` tells that
    from a feature that stopped coming.
    """

    def __init__(
        self,
        recompute: Recompute,
        features: Mapping[int, Collection[str]],
        settling: timedelta,
        fingerprints: Mapping[int, str],
    ) -> None:
        self._given = recompute
        self._recompute = recompute
        self._features = features
        self._settling = settling
        today = recompute.fingerprint if fingerprints else ""
        self._foreign = pa.array([v for v, found in fingerprints.items() if found != today], pa.int32())
        self._found: dict[str, FeatureSkew] = {}
        self._unknown: set[str] = set()
        self._set_aside: Counter[str] = Counter()
        self._rows = 0
        self._extent: tuple[datetime, datetime] | None = None

    def report(self, share: float) -> SkewReport:
        first, last = self._extent or (None, None)
        unknown = tuple(sorted(self._unknown))
        return SkewReport(self._rows, tuple(self._found.values()), unknown, self._set_aside, share, first, last)

    def add(self, log: pa.Table, keys: Sequence[str], fresh: pa.Table | None = None) -> None:
        """Compare some rows; `fresh` is their recomputation where it is at hand already."""
        comparable = self._comparable(log)
        log, fresh = log.filter(comparable), None if fresh is None else fresh.filter(comparable)
        if not log.num_rows:
            return
        self._rows += log.num_rows
        extent = pc.min_max(log["event_timestamp"]).as_py()
        known = self._extent or (extent["min"], extent["max"])
        self._extent = min(known[0], extent["min"]), max(known[1], extent["max"])
        self._recompute = by_place(self._given, (name.removeprefix(_PREFIX) for name in log.column_names))
        if fresh is None:
            fresh = self._recompute(log["inputs"], log["event_timestamp"])
        for version in sorted(log["version"].unique().to_pylist()):
            mine = pc.equal(log["version"], version)
            whole = pc.all(mine).as_py()
            rows, offline = (log, fresh) if whole else (log.filter(mine), fresh.filter(mine))
            logged = self._features.get(version)
            self._compare(rows, offline, _present(rows) if logged is None else logged, keys)

    def _comparable(self, log: pa.Table) -> pa.Array:
        degraded = pc.not_equal(pc.fill_null(log["degraded"], ""), "")
        foreign = pc.and_not(pc.is_in(log["version"], value_set=self._foreign), degraded)
        for reason, rows in (("degraded", degraded), ("other definitions", foreign)):
            if count := pc.sum(rows).as_py():
                self._set_aside[reason] += count
        return pc.invert(pc.or_(degraded, foreign))

    def _compare(self, rows: pa.Table, offline: pa.Table, logged: Collection[str], keys: Sequence[str]) -> None:
        differing: dict[str, Compared] = {}
        for column in rows.column_names:
            name = column.removeprefix(_PREFIX)
            if name == column or name not in logged:
                continue
            if name not in offline.column_names:
                self._unknown.add(name)
                continue
            compared = compare_values(rows[column], offline[name])
            self._found.setdefault(name, FeatureSkew(name)).checked += rows.num_rows
            if compared.kinds.any():
                differing[name] = compared
        if differing:
            times = ViewTimes(rows["view_times"], differing_rows(differing))
            causes = explain(rows, differing, self._recompute, times, settling=self._settling)
            for name, compared in differing.items():
                self._count(name, rows, compared, causes[name], times, keys)

    def _count(
        self, name: str, rows: pa.Table, compared: Compared, cause: np.ndarray, times: ViewTimes, keys: Sequence[str]
    ) -> None:
        skew = self._found[name]
        spared = np.isin(cause, NOT_JUDGED)
        skew.not_judged.update(cause[spared].tolist())
        skew.checked -= int(spared.sum())
        wrong, cause = compared.wrong[~spared], cause[~spared]
        kinds = np.bincount(compared.kinds[wrong], minlength=4)
        skew.different += int(kinds[DIFFERENT])
        skew.missing += int(kinds[MISSING])
        skew.extra += int(kinds[EXTRA])
        skew.largest = max(skew.largest, compared.largest(wrong))
        skew.causes.update(cause.tolist())
        views = self._recompute.sources.get(name, ())
        order = rows.select(["event_timestamp", "request_id", "position"]).take(pa.array(wrong))
        by = [(column, "ascending") for column in order.column_names]
        first = pc.select_k_unstable(order, k=EXAMPLES, sort_keys=by).to_pylist() if len(wrong) else []
        skew.keep([_example(rows, int(wrong[i]), compared, str(cause[i]), views, times, keys) for i in first])


def _present(rows: pa.Table) -> set[str]:
    """Features with a value somewhere: what is known of a version that began to answer while the log was being read."""
    columns = [name for name in rows.column_names if name.startswith(_PREFIX)]
    return {name.removeprefix(_PREFIX) for name in columns if rows[name].null_count < rows.num_rows}


def _example(
    rows: pa.Table,
    row: int,
    compared: Compared,
    cause: str,
    views: Sequence[str],
    times: ViewTimes,
    keys: Sequence[str],
) -> SkewExample:
    online, offline = compared.pair(row)
    inputs: dict[str, Any] = orjson.loads(rows["inputs"][row].as_py())
    return SkewExample(
        request_id=rows["request_id"][row].as_py(),
        position=rows["position"][row].as_py(),
        case_id=rows["case_id"][row].as_py(),
        version=rows["version"][row].as_py(),
        event_timestamp=rows["event_timestamp"][row].as_py(),
        answered_at=rows["answered_at"][row].as_py(),
        keys={key: inputs.get(key) for key in keys},
        online=online,
        offline=offline,
        cause=cause,
        view_times={view: _instant(times.of(view, np.array([row]))[0]) for view in views},
    )


def _instant(micros: float) -> datetime | None:
    return None if np.isnan(micros) else datetime(1970, 1, 1, tzinfo=UTC) + int(micros) * _MICROSECOND
