"""The window of a replay: every case asked about in it with its vector, read once through the training path.

All policies are scored on these vectors, and every training of every policy reads its part of them: features are those
known at each case's own instant, so what a training at some cutoff would read is already here.

Grain: N = one case, labelled or not, in order of its instant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from asof.clockwork import to_micros
from contracts.bundle import FeatureSpec
from contracts.files import whole_file
from contracts.spine import read_spine
from contracts.task import Task
from loop.traffic import request_rows
from serving.online import Key, Row, ViewSpec
from serving.vectors import FeaturePlan, Vectors
from training.frame import Frame, Inputs
from training.retrieval import frame_of, read_features

if TYPE_CHECKING:
    from feast import FeatureStore

FAR = datetime(9999, 1, 1, tzinfo=UTC)
"""Every outcome is known by then."""
_FEATURE = "feature."
_INSTANT = pa.timestamp("us", tz="UTC")


def write_window(
    task: Task, store: FeatureStore, path: Path, *, start: datetime, end: datetime, say: Callable[[str], None]
) -> None:
    """Read the cases of [start - training.window, end) with their features, and keep them as one Parquet file."""
    spine = read_spine(task, start=start - task.training.window, end=end, known_at=FAR)
    say(f"{spine.num_rows:,} cases; joining features")
    features = read_features(task, spine, store).combine_chunks()
    for name, column in zip(features.column_names, features.columns, strict=True):
        spine = spine.append_column(_FEATURE + name, column)
    with whole_file(path) as part:
        pq.write_table(spine, part, compression="zstd", compression_level=1)


def read_window(task: Task, store: FeatureStore, path: Path) -> Window:
    """What `write_window` kept."""
    table = pq.read_table(path, partitioning=None)
    names = [name for name in table.column_names if name.startswith(_FEATURE)]
    features = table.select(names).rename_columns([name.removeprefix(_FEATURE) for name in names])
    spine = table.drop_columns(names)
    label = task.spine.label
    # A frame is of labelled rows; which of these are, `known` says. Nobody reads the label of one that is not.
    zero = pa.scalar(0, spine[label].type)
    filled = spine.set_column(spine.column_names.index(label), label, pc.fill_null(spine[label], zero))
    known = spine[label].is_valid().to_numpy()
    return Window(task, spine, frame_of(task, filled, features, store, unlabelled=0), known)


@dataclass(frozen=True)
class Window:
    """Cases and vectors; see the module."""

    task: Task
    spine: pa.Table
    """Every case, as `contracts.spine.read_spine` gives it when all outcomes are known."""
    frame: Frame
    """Every case; the label of one whose outcome never came is a zero that means nothing."""
    labelled: np.ndarray
    """bool [N]."""

    @cached_property
    def asked(self) -> np.ndarray:
        """int64 [N], ascending: microseconds since the epoch at which each case is asked about."""
        return self.frame.event_timestamps

    @cached_property
    def known_at(self) -> np.ndarray:
        """int64 [N]: when each outcome became known; after everything where it never did."""
        known = self.frame.table[self.task.spine.label_known_at].cast(pa.int64())
        return np.where(self.labelled, pc.fill_null(known, 0).to_numpy(), np.iinfo(np.int64).max)

    def rows(self, start: datetime, end: datetime) -> slice:
        """The cases asked about in [start, end)."""
        first, last = np.searchsorted(self.asked, [to_micros(start), to_micros(end)])
        return slice(int(first), int(last))

    def requests(self, rows: slice) -> list[dict[str, Any]]:
        """What an application would send for these cases."""
        return request_rows(self.task, self.frame.table.slice(rows.start, rows.stop - rows.start))

    def read_spine(
        self, task: Task, *, start: datetime, end: datetime, known_at: datetime, repeated: bool = False
    ) -> pa.Table:
        """As `contracts.spine.read_spine`, of an interval that lies in the window."""
        rows, spine = self.rows(start, end), task.spine
        table = self.spine.slice(rows.start, rows.stop - rows.start)
        told = pc.fill_null(pc.less_equal(table[spine.label_known_at], pa.scalar(known_at, _INSTANT)), False)
        for name in (spine.label, spine.label_known_at):
            column = table[name]
            masked = pc.if_else(told, column, pa.scalar(None, column.type))
            table = table.set_column(table.column_names.index(name), table.schema.field(name), masked)
        return table

    def outcomes(self) -> pa.Table:
        """Columns `case_id` and `label` (float64) of every case whose outcome came, whenever that was."""
        known = self.frame.table.filter(pa.array(self.labelled))
        spine = self.task.spine
        return pa.table({"case_id": known[spine.id].cast(pa.string()), "label": known[spine.label].cast(pa.float64())})

    def training_frame(self, cutoff: datetime) -> Frame:
        """What `training.retrieval.build_frame` gives at the cutoff."""
        asked = self.rows(cutoff - self.task.training.window, cutoff)
        chosen = np.zeros(len(self.asked), bool)
        chosen[asked] = self.known_at[asked] <= to_micros(cutoff)
        rows = int(chosen.sum())
        table = self.frame.table.filter(pa.array(chosen)).combine_chunks()
        return replace(self.frame, table=table, unlabelled=asked.stop - asked.start - rows)


class WindowPlan(FeaturePlan):
    """A feature service answered from a window: in the place of the online store, the vectors training would see.

    Args:
        compiled: the service.
        window: its cases.
    """

    def __init__(self, compiled: FeaturePlan, window: Window) -> None:
        super().__init__(
            service=compiled.service,
            fingerprint=compiled.fingerprint,
            features=compiled.features,
            inputs=compiled.inputs,
            views=(),
            transforms=(),
            reader=_Nothing(),
        )
        self._window = window
        self._inputs: dict[tuple[FeatureSpec, ...], Inputs] = {}
        self._rows = slice(0, 0)

    def place(self, rows: slice) -> None:
        """Say which cases are asked about next."""
        self._rows = rows

    def vectors(
        self, columns: Mapping[str, list[Any]], at: Sequence[datetime], features: Sequence[FeatureSpec] | None = None
    ) -> Vectors:
        """The vectors of the cases at `place`, which must be those that `at` says."""
        asked = self._window.asked[self._rows].tolist()
        if asked != [to_micros(instant) for instant in at]:
            raise ValueError(f"Asked about {len(at)} other cases than the {len(asked)} that were placed.")
        specs = self._window.frame.specs if features is None else tuple(features)
        if specs not in self._inputs:
            self._inputs[specs] = self._window.frame.inputs(specs)
        found = self._inputs[specs]
        return Vectors(found.numbers[self._rows], found.texts[self._rows], {}, [{} for _ in at])


class _Nothing:
    """The online store of a plan that reads none."""

    waits = False

    def read(self, asked: Sequence[tuple[ViewSpec, Sequence[Key]]]) -> list[list[Row | None]]:
        """Nothing is asked."""
        return [[] for _ in asked]


def months(start: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """[start, end) cut at the beginnings of UTC months."""
    found, at = [], start
    while at < end:
        following = min(
            (at.replace(day=1, hour=0, minute=0, second=0, microsecond=0) + timedelta(days=32)).replace(day=1), end
        )
        found.append((at, following))
        at = following
    return found
