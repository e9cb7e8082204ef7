"""Serving's door to the feature view that holds a task's precomputed predictions.

    predictions = PredictionView(task, locations)     # registers the view where it is not registered yet
    predictions.write(rows, at)                       # Parquet first, then the online store
    predictions.plan()                                # how a request reads them

An ordinary Feast view with an ordinary Parquet source: a prediction is a feature of a case and of the version that made
it, true from the instant whose features it was made of, for as long as the task says. It lives in a Feast project of
its own beside the repository's (see docs/decisions/batch-predictions.md), in the repository's online store.
"""

from __future__ import annotations

import shutil
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.errors import FeatureViewNotFoundException
from feast.types import Array, Bytes, Float32, Int64, PrimitiveFeastType, String

from asof import online
from asof.clockwork import to_micros
from asof.engine import Answer
from asof.repository import open_beside
from asof.view import compile_view
from contracts.files import locked, whole_file
from contracts.locations import Locations
from contracts.task import Task
from serving.plan import compile_plan
from serving.precomputed import VERSION, view_name
from serving.vectors import FeaturePlan

EVENT, KNOWN = "event_timestamp", "created"
"""Columns of the Parquet files: the instant whose features a prediction was made of, and when it was there."""
FIELDS: dict[str, tuple[PrimitiveFeastType | Array, pa.DataType]] = {
    "score": (Float32, pa.float32()),
    "quantiles": (Array(Float32), pa.list_(pa.float32())),
    "numbers": (Bytes, pa.binary()),
    "texts": (String, pa.string()),
    "view_times": (String, pa.string()),
    "question": (String, pa.string()),
    "bundle": (String, pa.string()),
}
"""What is kept of a prediction: the answer, the vector it was made of (float32 bytes, JSON texts, JSON of view to event
time), and which question and bundle it belongs to."""
_PROJECT = "predictions"


class PredictionView:
    """One task's predictions as a feature view. Opening it registers it, and again where its TTL has changed."""

    def __init__(self, task: Task, locations: Locations) -> None:
        self.name = view_name(task)
        self.folder = locations.batch(task.name) / "predictions"
        self._case = task.spine.id
        self._ttl = task.batch.good_for
        self._timeout = task.degradation.read_timeout.total_seconds()
        self.store = _open(task, locations)
        with locked(locations.lock(f"batch-{task.name}")):  # one process at a time writes the registry file
            self._register(task)

    def plan(self) -> FeaturePlan:
        """A case's prediction by a version, as requests read it."""
        return compile_plan(self.store, self.name, timeout=self._timeout)

    def write(self, rows: pa.Table, at: datetime, version: int) -> int:
        """Keep predictions made of the features at `at`; returns how many the online store had nothing newer for.

        The Parquet file is written first, whole; a job killed after it left the online store as it was, and writing
        again changes nothing that is there already.

        Args:
            rows: the case id (text), `KNOWN` and the columns of `FIELDS`.
            at: whole seconds.
            version: of the model.
        """
        count = rows.num_rows
        rows = rows.append_column(VERSION, pa.array(np.full(count, version, np.int64)))
        rows = rows.append_column(EVENT, pa.array([at] * count, pa.timestamp("us", tz="UTC")))
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self.folder / f"{at:%Y%m%dT%H%M%SZ}-v{version}.parquet") as part:
            pq.write_table(rows, part, compression="zstd")
        feature_view = self.store.get_feature_view(self.name)
        view = compile_view(feature_view, self.store.config, list(FIELDS))
        event = np.full(count, to_micros(at), np.int64)
        answer = Answer(view, rows.select(list(FIELDS)), event, np.ones(count, bool))
        keys = rows.select([self._case, VERSION])
        return online.write(answer, keys, feature_view, self.store.config, self.store._get_provider().online_store)

    def _register(self, task: Task) -> None:
        try:
            known = self.store.registry.get_feature_view(self.name, self.store.project)
            if known.ttl == self._ttl and {self._case, VERSION} == {each.name for each in known.entity_columns}:
                return
        except (FeatureViewNotFoundException, FileNotFoundError):
            pass
        case = Entity(name=f"{task.name}_case", join_keys=[self._case], value_type=ValueType.STRING)
        version = Entity(name=f"{task.name}_version", join_keys=[VERSION], value_type=ValueType.INT64)
        view = FeatureView(
            name=self.name,
            entities=[case, version],
            ttl=self._ttl,
            source=FileSource(path=str(self.folder), timestamp_field=EVENT, created_timestamp_column=KNOWN),
            schema=[
                Field(name=self._case, dtype=String),
                Field(name=VERSION, dtype=Int64),
                *(Field(name=name, dtype=dtype) for name, (dtype, _) in FIELDS.items()),
            ],
            description=f"Predictions of task {task.name!r}, by case and version.",
        )
        self.store.apply([case, version, view, FeatureService(name=self.name, features=[view])])


def forget(task: Task, locations: Locations) -> None:
    """Remove a task's predictions, online and offline, and the view's registration. Harmless where there are none."""
    folder = locations.batch(task.name)
    if (folder / "registry.db").exists():
        _open(task, locations).teardown()
    shutil.rmtree(folder, ignore_errors=True)


def _open(task: Task, locations: Locations) -> FeatureStore:
    folder = locations.batch(task.name)
    folder.mkdir(parents=True, exist_ok=True)
    return open_beside(task.feature_repo, project=_PROJECT, registry=folder / "registry.db")
