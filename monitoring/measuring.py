"""Measuring chunks: the log's rows that belong to them, and everything that is computed of those rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from contracts.bundle import Bundle
from contracts.predictions import read_predictions
from contracts.spine import GROUP
from contracts.task import Task
from monitoring.chunks import Chunk
from monitoring.log_frame import CHUNK, LABEL, SCORE, in_canonical_order, to_frame
from monitoring.losses import mean_cost
from monitoring.outcomes import Outcomes
from monitoring.quality import freshness, quality
from monitoring.report import ChunkReport, Slice
from monitoring.skew_report import SkewReport
from monitoring.usual import Usual, estimated_metric

ROWS = 200_000
"""Rows measured at a time: what a run needs of memory."""
_IDENTITY = ("request_id", "position", "variant")
Audit = Callable[[pa.Table, np.ndarray], Mapping[int, SkewReport]]


@dataclass(frozen=True, slots=True)
class Watched:
    """Rows of one version, and where to read them."""

    task: Task
    bundle: Bundle
    log: Path
    index: pa.Table
    """The version's own rows, as `contracts.prediction_index` has them."""
    outcomes: Outcomes
    """What came of them, row by row."""
    usual: Usual


def measure(watched: Watched, chunks: Sequence[Chunk], audit: Audit | None) -> tuple[dict[int, ChunkReport], set[str]]:
    """Reports of chunks, without state and settledness, and the features that the log has no column for.

    Args:
        watched: the rows.
        chunks: of `watched.index`.
        audit: recomputes rows and compares them, by chunk; None: no skew audit.
    """
    reports: dict[int, ChunkReport] = {}
    vanished: set[str] = set()
    inputs, usual, least = watched.bundle.metadata.features, watched.usual, watched.task.monitoring.min_rows
    for group in _groups(chunks):
        rows, positions, numbers = _read(watched, group, vectors=True)
        frame, missing = to_frame(rows, inputs, chunks=numbers)
        vanished.update(missing)
        frame = in_canonical_order(_with_outcomes(frame, watched.outcomes, positions))
        large = {chunk.number for chunk in group if chunk.size >= least}
        complete = {chunk.number for chunk in group if not chunk.open}
        enough = _only(frame, large)
        drift, estimated = usual.drift(enough), usual.estimate(enough)
        together = usual.together(_only(frame, large & complete))
        checked, ages = quality(usual.frame, frame, usual.features, usual.repeats), freshness(rows, numbers)
        skew = audit(rows, numbers) if audit is not None else {}
        for chunk in group:
            features_drift, score_drift = drift.get(chunk.number, ((), None))
            reports[chunk.number] = ChunkReport(
                number=chunk.number,
                start=chunk.start,
                end=chunk.end,
                rows=chunk.size,
                state="open",
                drift=features_drift,
                score_drift=score_drift,
                together=together.get(chunk.number, ()),
                estimated=estimated.get(chunk.number),
                quality=checked[chunk.number],
                freshness=ages.get(chunk.number, ()),
                skew=skew.get(chunk.number),
            )
        reports |= _realized(watched, frame, [reports[chunk.number] for chunk in group])
    return reports, vanished


def realize(watched: Watched, chunks: Sequence[Chunk], kept: Mapping[int, ChunkReport]) -> dict[int, ChunkReport]:
    """Kept reports with what the labels say now: realized performance, cost, slices."""
    reports: dict[int, ChunkReport] = {}
    for group in _groups(chunks):
        rows, positions, numbers = _read(watched, group, vectors=False)
        frame, _ = to_frame(rows, (), chunks=numbers)
        frame = in_canonical_order(_with_outcomes(frame, watched.outcomes, positions))
        reports |= _realized(watched, frame, [kept[chunk.number] for chunk in group])
    return reports


def _realized(watched: Watched, frame: pd.DataFrame, reports: Sequence[ChunkReport]) -> dict[int, ChunkReport]:
    task, usual = watched.task, watched.usual
    labelled = frame.groupby(CHUNK)[LABEL].count()
    metric, guessed = task.success.metric, estimated_metric(task.success.metric)
    enough = _only(frame, {each.number for each in reports if each.rows >= task.monitoring.min_rows})
    enough = enough[enough[LABEL].notna()].reset_index(drop=True)
    realized = usual.realize(enough, metric)
    counterpart = realized if guessed == metric else usual.realize(enough, guessed)
    costs = {
        number: mean_cost(enough[enough[CHUNK] == number], task.success.cost, task.kind)
        for number in enough[CHUNK].unique().tolist()
    }
    slices = _slices(watched, enough)
    return {
        each.number: replace(
            each,
            realized=realized.get(each.number),
            counterpart=counterpart.get(each.number),
            cost=costs.get(each.number),
            slices=tuple(slices.get(each.number, ())),
            labelled=int(labelled[each.number]),
        )
        for each in reports
    }


def _slices(watched: Watched, labelled: pd.DataFrame) -> dict[int, list[Slice]]:
    """Every group of every slice column, by chunk."""
    task, found = watched.task, dict[int, list[Slice]]()
    for column in watched.outcomes.groups:
        name = f"{GROUP}{column}"
        told = labelled[labelled[name].notna()]
        if told.empty:
            continue
        groups, least = list(told.groupby([CHUNK, name], sort=True)), task.fairness.min_rows
        judged = [rows.assign(**{CHUNK: i}) for i, (_, rows) in enumerate(groups) if len(rows) >= least]
        figures = watched.usual.realize(pd.concat(judged), task.success.metric) if judged else {}
        for i, (key, rows) in enumerate(groups):
            number, value = key
            means = float(rows[SCORE].mean()), float(rows[LABEL].mean())
            found.setdefault(int(str(number)), []).append(Slice(column, str(value), len(rows), figures.get(i), *means))
    return found


def _groups(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    """Chunks that lie side by side, in portions of at most `ROWS` rows (or of one chunk)."""
    portion: list[Chunk] = []
    for chunk in chunks:
        rows = chunk.rows.stop - portion[0].rows.start if portion else 0
        if portion and (chunk.rows.start != portion[-1].rows.stop or rows > ROWS):
            yield portion
            portion = []
        portion.append(chunk)
    if portion:
        yield portion


def _read(watched: Watched, group: Sequence[Chunk], *, vectors: bool) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """The rows of neighbouring chunks, their positions in the index, and their chunks' numbers."""
    positions = np.arange(group[0].rows.start, group[-1].rows.stop)
    index = watched.index.slice(len(positions) and positions[0], len(positions))
    segments = set(index["segment"].unique().to_pylist())
    rows = read_predictions(
        watched.log,
        start=min(chunk.start for chunk in group),
        end=max(chunk.end for chunk in group),
        vectors=vectors,
        segments=segments,
    )
    own = pc.and_(pc.equal(rows["version"], index["version"][0]), pc.equal(pc.fill_null(rows["degraded"], ""), ""))
    rows = rows.filter(own)
    if rows.num_rows != len(positions):  # more were logged meanwhile, or instants are shared with a neighbour
        rows = rows.filter(pc.is_in(_identity(rows), value_set=_identity(index)))
    return rows, positions, np.repeat([chunk.number for chunk in group], [chunk.size for chunk in group])


def _identity(rows: pa.Table) -> pa.Array:
    parts = [rows[name].cast(pa.string()) for name in _IDENTITY]
    joined = pc.binary_join_element_wise(*parts, "\x1f")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _with_outcomes(frame: pd.DataFrame, outcomes: Outcomes, positions: np.ndarray) -> pd.DataFrame:
    groups = {f"{GROUP}{name}": values[positions] for name, values in outcomes.groups.items()}
    return frame.assign(**{LABEL: outcomes.label[positions], **groups})


def _only(frame: pd.DataFrame, numbers: Collection[int]) -> pd.DataFrame:
    return frame[frame[CHUNK].isin(numbers)].reset_index(drop=True)
