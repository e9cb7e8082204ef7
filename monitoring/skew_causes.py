"""Why a value differs, as far as the log, the views and the source can tell; and whether that is a mismatch at all.

What follows from a difference is decided here once:

- SETTLING: the value is that of the boundary before, and it was asked about while the new one was being materialized,
  which the task allows so much time for. Not judged.
- SOURCE GONE: the source no longer reaches back to what the view answered with. Nobody can recompute it. Not judged.
- ABSENT, STALE, EXPIRED (served past its TTL), UNEXPLAINED: a mismatch.

Grain: N = rows of a batch, W = rows of it that differ in some feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Protocol

import numpy as np
import pyarrow as pa

from monitoring.recompute import ViewFacts
from monitoring.scratch import scratch
from monitoring.skew_values import EQUAL, EXTRA, MISSING, Compared, compare_values

SETTLING, SOURCE_GONE = "settling", "source gone"
ABSENT, STALE, EXPIRED, UNEXPLAINED = "absent", "stale", "expired", "unexplained"
NOT_JUDGED = (SETTLING, SOURCE_GONE)
_MICROSECOND = timedelta(microseconds=1)


class Recompute(Protocol):
    """What the audit asks of the training path; `Recomputation` over Feast, or a table in a test."""

    views: dict[str, ViewFacts]
    sources: dict[str, tuple[str, ...]]

    def __call__(self, inputs: pa.ChunkedArray, at: pa.ChunkedArray) -> pa.Table:
        """Features for each logged input at its event timestamp, in order."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the definitions it computes by."""
        ...

    def earliest(self, view: str) -> int | None:
        """The first event of a view's source, microseconds since the epoch; None when it has none, or no source."""
        ...


class ViewTimes:
    """What each view answered some rows with; the log's JSON is read for these rows only.

    Args:
        logged: `view_times` of N logged rows.
        rows: the W of them that will be asked about, rising.
    """

    def __init__(self, logged: pa.ChunkedArray, rows: np.ndarray) -> None:
        self._rows = rows
        self._logged = logged.take(pa.array(rows))
        self._read: dict[str, np.ndarray] = {}

    def of(self, view: str, rows: np.ndarray) -> np.ndarray:
        """float64, for each row: microseconds since the epoch (exact to 2255), NaN where the view had no row."""
        if view not in self._read:
            path = "$." + '"' + view.replace('"', '\\"') + '"'
            query = "select try_cast(json_extract_string(times, ?) as bigint) as at from logged order by row"
            with scratch() as connection:
                connection.register("logged", pa.table({"row": np.arange(len(self._logged)), "times": self._logged}))
                table: pa.Table = connection.sql(query, params=[path]).to_arrow_table()
            self._read[view] = table["at"].cast(pa.float64()).to_numpy()
        return self._read[view][np.searchsorted(self._rows, rows)]


def differing_rows(compared: Mapping[str, Compared]) -> np.ndarray:
    """Rows in which some feature differs, rising."""
    return np.unique(np.concatenate([each.wrong for each in compared.values()]))


def explain(
    rows: pa.Table,
    compared: Mapping[str, Compared],
    recompute: Recompute,
    times: ViewTimes,
    *,
    settling: timedelta,
) -> dict[str, np.ndarray]:
    """A cause for each differing value: by feature, in the order of its `Compared.wrong`.

    Args:
        rows: N logged rows.
        compared: features that differ somewhere, over the same rows.
        recompute: the training path; asked once more for the boundary before, of the W rows.
        times: what the views answered with.
        settling: how long after a boundary its materialization may take.
    """
    asked = rows["event_timestamp"].cast(pa.int64()).to_numpy()
    union = differing_rows(compared)
    due = {name: _grids(recompute.sources.get(name, ()), recompute) for name in compared}
    grids = set[int]().union(*due.values())
    before = {grid: _before(rows.take(pa.array(union)), asked[union], grid, recompute) for grid in grids}
    found = {}
    for name, each in compared.items():
        wrong = each.wrong
        behind = recompute.sources.get(name, ())
        cause = _by_times(name, behind, asked[wrong], each.kinds[wrong], wrong, recompute, times)
        if due[name]:
            place = np.searchsorted(union, wrong)
            online = rows[f"feature.{name}"].take(pa.array(wrong))
            for grid in due[name]:
                old = compare_values(online, before[grid][name].take(pa.array(place))).kinds == EQUAL
                fresh = asked[wrong] % grid < settling // _MICROSECOND
                # What was past its TTL was in time at the boundary before: that is no excuse.
                cause[old & (cause == UNEXPLAINED)] = STALE
                cause[old & fresh & (cause != EXPIRED)] = SETTLING
        found[name] = cause
    return found


def _before(rows: pa.Table, asked: np.ndarray, grid: int, recompute: Recompute) -> pa.Table:
    """What was knowable the moment before each row's last boundary: what an unfinished materialization leaves."""
    at = pa.chunked_array([pa.array(asked // grid * grid - 1).cast(pa.timestamp("us", tz="UTC"))])
    return recompute(rows["inputs"], at)


def _grids(behind: Sequence[str], recompute: Recompute) -> set[int]:
    return {grid // _MICROSECOND for view in behind if (grid := recompute.views[view].grid) is not None}


def _by_times(
    name: str,
    behind: Sequence[str],
    asked: np.ndarray,
    kinds: np.ndarray,
    wrong: np.ndarray,
    recompute: Recompute,
    times: ViewTimes,
) -> np.ndarray:
    """What the time of each view's row says; the same wherever views with and without a grid meet."""
    cause = np.full(len(wrong), UNEXPLAINED, dtype=object)
    for view in behind:
        facts = recompute.views[view]
        answered = times.of(view, wrong)
        none = np.isnan(answered)
        cause[none & (kinds == MISSING) & (cause == UNEXPLAINED)] = ABSENT
        if facts.windows is not None and facts.grid is not None:
            grid = facts.grid // _MICROSECOND
            cause[~none & (answered < asked // grid * grid)] = STALE
        if facts.ttl:
            cause[~none & (kinds == EXTRA) & (asked - answered > facts.ttl // _MICROSECOND)] = EXPIRED
        earliest = recompute.earliest(view)
        if earliest is None:
            continue
        if facts.windows is not None:
            length = facts.windows.get(name, max(facts.windows.values())) // _MICROSECOND
            cause[~none & (answered - length < earliest)] = SOURCE_GONE
        else:
            cause[~none & (answered < earliest)] = SOURCE_GONE
    return cause
