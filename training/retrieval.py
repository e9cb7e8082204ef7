"""Training's door to Feast: spine rows in, the frame of what was knowable at each out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore

from asof.fingerprint import service_fingerprint, source_files
from asof.offline_store import open_session
from asof.repository import load_config, open_store
from asof.session import Session
from contracts.spine import read_spine
from contracts.task import Task
from training.definitions import find_service, read_definitions
from training.frame import PREFIX, Frame, FrameError, Origin
from training.sources import file_hashes

_INSTANT = "event_timestamp"
"""What Feast calls the entity rows' instant."""


def build_frame(task: Task, *, cutoff: datetime, progress: Callable[[str], None]) -> Frame:
    """Cases asked about in [cutoff - window, cutoff) whose label was known at the cutoff, with their features.

    Args:
        task: names the repository, the service and the spine.
        cutoff: the instant training stands at; nothing later is read.
        progress: told what is being done.

    Raises:
        SpineError: the spine cannot be read.
        FrameError: no row has a label, a label was known before its case was asked about, the service is unknown, or
            what came back does not fit the spine.
    """
    start = cutoff - task.training.window
    spine = read_spine(task, start=start, end=cutoff, known_at=cutoff)
    labelled = spine.filter(spine[task.spine.label].is_valid())
    unlabelled = spine.num_rows - labelled.num_rows
    if not labelled.num_rows:
        raise FrameError(
            f"Task {task.name!r}: none of {spine.num_rows} spine rows in [{start}, {cutoff}) has a label yet.",
            hint="move the cutoff to where the events are, or ingest more.",
        )
    _refuse_foreknown(task, labelled)
    progress(f"{labelled.num_rows:,} labelled cases, {unlabelled:,} without a label yet; joining features")
    store = open_store(task.feature_repo)
    return frame_of(task, labelled, read_features(task, labelled, store), store, unlabelled=unlabelled)


def read_features(task: Task, spine: pa.Table, store: FeatureStore) -> pa.Table:
    """Features of spine rows, labelled or not, as they were knowable at each row's instant; a column each, row for row.

    Raises:
        FrameError: the service is unknown, has a feature twice, or what came back does not fit the spine.
    """
    service = find_service(store, task.feature_service, task.feature_repo)
    names = [feature.name for projection in service.feature_view_projections for feature in projection.features]
    _refuse_repeated(names, task)
    answered = store.get_historical_features(entity_df=_entity_rows(task, spine), features=service).to_arrow()
    _check_rows(task, spine, answered)
    return answered.select(names)


def frame_of(task: Task, labelled: pa.Table, features: pa.Table, store: FeatureStore, *, unlabelled: int) -> Frame:
    """The frame of labelled spine rows and their features from `read_features`.

    Raises:
        FrameError: a label or a feature is of the wrong type.
    """
    service = find_service(store, task.feature_service, task.feature_repo)
    types = {name: str(features.schema.field(name).type) for name in features.column_names}
    origin = Origin(read_definitions(store, service), types)
    frame = Frame.of(
        labelled,
        features,
        task.spine,
        kind=task.kind,
        array_places=task.training.array_places,
        unlabelled=unlabelled,
        service_fingerprint=service_fingerprint(store, task.feature_service),
        registry_hash=hashlib.sha256(store.registry.proto().SerializeToString(deterministic=True)).hexdigest(),
        sources=file_hashes(
            [*task.spine.tables.values(), *source_files(store, task.feature_service)], task.feature_repo
        ),
    )
    return replace(frame, origin=origin)


def read_earlier(task: Task, frame: Frame, rows: np.ndarray, earlier: timedelta) -> Frame:
    """These rows of a frame with every feature as it was `earlier` before the question; their labels stay."""
    asked = frame.table.select([name for name in frame.table.column_names if not name.startswith(PREFIX)])
    asked = asked.take(pa.array(rows))
    stamp = task.spine.event_timestamp
    moved = pc.subtract(asked[stamp], pa.scalar(earlier, pa.duration("us")))
    store = open_store(task.feature_repo)
    service = find_service(store, task.feature_service, task.feature_repo)
    before = asked.set_column(asked.column_names.index(stamp), stamp, moved)
    answered = store.get_historical_features(entity_df=_entity_rows(task, before), features=service).to_arrow()
    _check_rows(task, before, answered)
    features = answered.select(frame.feature_names)
    return Frame.of(asked, features, task.spine, kind=frame.kind, array_places=task.training.array_places)


def open_sources(task: Task) -> Session:
    """A DuckDB session that reads the sources of the task's repository; the caller closes it."""
    return open_session(load_config(task.feature_repo))


def _refuse_foreknown(task: Task, labelled: pa.Table) -> None:
    """An outcome that could be read before the question was asked is nothing to predict, and no embargo fits it."""
    asked, known = labelled[task.spine.event_timestamp], labelled[task.spine.label_known_at]
    early = labelled.filter(pc.less(known, asked))
    if early.num_rows:
        first = early.slice(0, 1).to_pylist()[0]
        raise FrameError(
            f"Task {task.name!r}: {early.num_rows:,} of {labelled.num_rows:,} labels were known before their case was "
            f"asked about, such as {first[task.spine.id]!r}: asked {first[task.spine.event_timestamp]:%F %T}, "
            f"{task.spine.label_known_at} {first[task.spine.label_known_at]:%F %T}.",
            hint="check spine.event_timestamp and spine.label_known_at in the spine query.",
        )


def _refuse_repeated(names: list[str], task: Task) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise FrameError(
            f"Feature service {task.feature_service!r} has feature {repeated[0]!r} more than once.",
            hint="give the features of different views different names.",
        )


def _entity_rows(task: Task, spine: pa.Table) -> pa.Table:
    wanted = dict.fromkeys([*task.spine.keys, *task.spine.request_fields])
    columns = {name: spine[name] for name in wanted if name != _INSTANT}
    return pa.table({**columns, _INSTANT: spine[task.spine.event_timestamp]})


def _check_rows(task: Task, asked: pa.Table, answered: pa.Table) -> None:
    """A store that drops or reorders rows would pair features with other rows' labels."""
    if answered.num_rows == asked.num_rows and answered[_INSTANT].cast(pa.timestamp("us", tz="UTC")).equals(
        asked[task.spine.event_timestamp]
    ):
        return
    raise FrameError(
        f"Asked for features of {asked.num_rows} rows, got {answered.num_rows}, or the same in another order.",
        hint=f"the offline store of {task.feature_repo} must keep the rows of its entity table.",
    )
