"""One monitoring run: the log of the serving version, cut into chunks, held against the bundle's reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Engine, select

from contracts.bundle import Bundle
from contracts.clock import as_utc
from contracts.errors import SkewlessError
from contracts.locations import Locations
from contracts.predictions import logged_features, read_predictions
from contracts.spine import labels_known
from contracts.state import deployments
from contracts.task import LOWER_IS_BETTER, Task
from monitoring import log_frame
from monitoring.array_summaries import watched
from monitoring.chunks import chunk_bounds
from monitoring.log_frame import CHUNK, LabelAccount
from monitoring.maturity import usual_wait
from monitoring.measure import estimate, estimated_metric, measure_drift, realize
from monitoring.quality import freshness, quality
from monitoring.report import ChunkReport, EstimatorTrust, MonitoringReport
from monitoring.results import write_report
from monitoring.skew import audit_rows
from monitoring.skew_report import SkewReport

if TYPE_CHECKING:
    import feast


class UnknownServing(SkewlessError, LookupError):
    """It cannot be told which version's predictions belong to a bundle."""


def monitor(
    task: Task,
    locations: Locations,
    engine: Engine,
    *,
    as_of: datetime,
    bundle: Bundle,
    version: int | None = None,
    skew_share: float = 1.0,
    store: feast.FeatureStore | None = None,
    progress: Callable[[str], None] | None = None,
) -> MonitoringReport:
    """Measure everything the log says of one version as of an instant, store it, and return it.

    Only predictions asked for before `as_of`, and labels known by then, are looked at.

    Args:
        task: the policy.
        locations: where the prediction log is.
        engine: the shared state; results are written there.
        as_of: the run's "now".
        bundle: what the monitored version was packaged in; its reference says what is usual.
        version: the version's number; None finds it by the bundle in the deployments table, or takes the only
            version in the log.
        skew_share: share of entity keys whose vectors are recomputed.
        store: a Feast store to recompute with; None opens the task's repository.
        progress: told what is being done.

    Raises:
        UnknownServing: no version was named, and neither the deployments nor the log say which one the bundle is.
    """
    say = progress or (lambda _text: None)
    as_of = as_utc(as_of)
    log = read_predictions(locations.predictions(task.name), end=as_of)
    if version is None:
        version = _version_of(task, engine, bundle, log)
    asked = pc.sum(pc.equal(log["version"], version)).as_py() or 0
    log = log_frame.of_version(log, version)
    say(f"{log.num_rows:,} predictions of {task.name}@{version}")
    notes: list[str] = []
    if asked > log.num_rows:
        notes.append(f"{asked - log.num_rows:,} of {asked:,} answers were the bundle's fallback: not watched")
    chunks: tuple[ChunkReport, ...] = ()
    account: LabelAccount | None = None
    skew: SkewReport | None = None
    estimator = EstimatorTrust(None, None, 0, task.monitoring.estimator_tolerance)
    if log.num_rows:
        label, account, lag = _labels(task, bundle, log, as_of, notes)
        chunks = _chunks(task, bundle, log, label, lag, as_of, notes, say)
        estimator = trust(chunks, tolerance=task.monitoring.estimator_tolerance)
        say("recomputing logged vectors offline")
        logged = {version: logged_features(locations.predictions(task.name))[version]}
        compiled_from = {version: bundle.metadata.service_fingerprint}
        skew = audit_rows(task, log, features=logged, share=skew_share, store=store, fingerprints=compiled_from)
        if skew.unknown:
            notes.append(f"not audited, the feature service no longer has them: {', '.join(skew.unknown)}")
    else:
        notes.append(f"no predictions of version {version} before {as_of:%FT%TZ}: nothing to monitor")
    report = MonitoringReport(
        task=task.name,
        version=version,
        bundle_hash=bundle.bundle_hash,
        as_of=as_of,
        metric=task.success.metric,
        estimated_metric=estimated_metric(task.success.metric),
        rows=log.num_rows,
        chunks=chunks,
        estimator=estimator,
        labels=account,
        skew=skew,
        notes=tuple(notes),
    )
    write_report(
        engine,
        report,
        floor=task.monitoring.performance_floor,
        lower_is_better=task.success.metric in LOWER_IS_BETTER,
    )
    return report


def trust(chunks: Sequence[ChunkReport], *, tolerance: float) -> EstimatorTrust:
    """Score the estimator on judged chunks whose labels have settled."""
    pairs = [
        (chunk.estimated.value, chunk.counterpart.value)
        for chunk in chunks
        if chunk.state == "judged" and chunk.settled and chunk.estimated and chunk.counterpart
    ]
    errors = [abs(guess - truth) for guess, truth in pairs if guess is not None and truth is not None]
    if not errors:
        return EstimatorTrust(None, None, 0, tolerance)
    mean = float(np.mean(errors))
    return EstimatorTrust(mean <= tolerance, mean, len(errors), tolerance)


def _version_of(task: Task, engine: Engine, bundle: Bundle, log: pa.Table) -> int:
    columns = deployments.c
    query = select(columns.champion, columns.champion_bundle, columns.challenger, columns.challenger_bundle)
    with engine.connect() as connection:
        row = connection.execute(query.where(columns.task == task.name)).one_or_none()
    serving = [] if row is None else [(row[0], row[1]), (row[2], row[3])]
    matching = [number for number, path in serving if path and Path(path).resolve() == bundle.path.resolve()]
    if matching:
        return next((number for number in matching if number), 0)  # version 0 only borrows the bundle's fallback
    logged = sorted(set(log["version"].to_pylist()) - {0})
    if row is None and len(logged) == 1:
        return int(logged[0])
    seen = ", ".join(f"{task.name}@{number}" for number in logged) or "no version"
    raise UnknownServing(
        f"Bundle {bundle.path.name} is not what task {task.name!r} serves; the prediction log holds {seen}.",
        hint="monitor the bundle of the champion or the challenger, or name the version.",
    )


def _labels(
    task: Task, bundle: Bundle, log: pa.Table, as_of: datetime, notes: list[str]
) -> tuple[np.ndarray, LabelAccount, timedelta | None]:
    """Label of each logged row, the account, and how long labels usually take (None: no label was ever seen)."""
    stamps = log["event_timestamp"]
    # A precomputed answer was made of features from before its case was asked about.
    first, last = pc.min(stamps).as_py(), max(pc.max(stamps).as_py(), pc.max(log["answered_at"]).as_py())
    labels = labels_known(task, start=first, end=last + timedelta(microseconds=1), known_at=as_of)
    label, account = log_frame.join_labels(log, labels, as_of=as_of)
    # The reference's labels have all arrived: only there is the usual wait seen whole, slow outcomes included.
    past = bundle.reference()["event_timestamp"]
    settled = labels
    if len(past):
        start, end = pc.min(past).as_py(), pc.max(past).as_py()
        settled = labels_known(task, start=start, end=end + timedelta(microseconds=1), known_at=as_of)
    if not settled.num_rows:
        settled = labels
        notes.append("no label of the reference's time is in the spine: the usual wait is taken from the log's own")
    return label, account, usual_wait(settled)


def _chunks(
    task: Task,
    bundle: Bundle,
    log: pa.Table,
    label: np.ndarray,
    lag: timedelta | None,
    as_of: datetime,
    notes: list[str],
    say: Callable[[str], None],
) -> tuple[ChunkReport, ...]:
    rules, inputs = task.monitoring, bundle.metadata.features
    features = watched(inputs)
    frame, vanished = log_frame.to_frame(log, inputs, width=rules.chunk)
    if vanished:
        notes.append(f"the log has no column for {', '.join(vanished)}: counted as missing in every row")
    frame = log_frame.in_canonical_order(frame.assign(**{log_frame.LABEL: label}))
    reference = log_frame.reference_frame(bundle.reference(), inputs, width=rules.chunk)
    sizes = frame.groupby(CHUNK).size()
    enough = frame[frame[CHUNK].isin(sizes.index[sizes >= rules.min_rows])].reset_index(drop=True)

    say(f"drift and performance of {int((sizes >= rules.min_rows).sum())} of {len(sizes)} chunks")
    metric, guessed = task.success.metric, estimated_metric(task.success.metric)
    if guessed != metric:
        notes.append(f"{metric} cannot be estimated without labels; {guessed} is, and is not held against the floor")
    drift = measure_drift(reference, enough, features, min_rows=rules.min_rows)
    estimated = estimate(reference, enough, features, metric=guessed, min_rows=rules.min_rows)
    if len(enough) and not drift:
        notes.append(f"the reference has {len(reference)} rows, too few for three chunks: nothing says what is usual")
    elif len(enough) and not estimated:
        notes.append("all labels of the reference agree: performance cannot be estimated")
    realized = realize(reference, enough, metric=metric, min_rows=rules.min_rows)
    counterpart = realized if guessed == metric else realize(reference, enough, metric=guessed, min_rows=rules.min_rows)
    labelled = {k: int(n) for k, n in frame.groupby(CHUNK)[log_frame.LABEL].count().items()}
    checked, ages = quality(reference, frame, features), freshness(log, width=rules.chunk)

    chunks = []
    for number, rows in zip(sizes.index.tolist(), sizes.tolist(), strict=True):
        start, end = chunk_bounds(number, rules.chunk)
        features_drift, score_drift = drift.get(number, ((), None))
        chunks.append(
            ChunkReport(
                start=start,
                end=end,
                rows=rows,
                state="open" if end > as_of else "judged" if rows >= rules.min_rows else "too small",
                drift=features_drift,
                score_drift=score_drift,
                estimated=estimated.get(number),
                realized=realized.get(number),
                counterpart=counterpart.get(number),
                labelled=labelled[number],
                settled=lag is not None and end + lag <= as_of and labelled[number] >= rules.min_rows,
                quality=checked[number],
                freshness=ages.get(number, ()),
            )
        )
    one_class = sum(chunk.realized is not None and chunk.realized.value is None for chunk in chunks)
    if one_class:
        notes.append(f"{one_class} chunks have labels of one class only: their {metric} does not exist")
    return tuple(chunks)
