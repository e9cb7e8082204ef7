"""One monitoring run: the log of the serving version, cut into chunks, held against the bundle's reference.

A run reads of the whole log only which rows there are. The rows themselves are read of chunks that no run has measured
yet, or that have more rows than then; scores and decisions of chunks of which a label is new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
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
from contracts.prediction_index import PredictionIndex
from contracts.predictions import logged_features
from contracts.spine import SpineReader, labels_known, read_spine
from contracts.state import deployments
from contracts.task import LOWER_IS_BETTER, Task
from monitoring.chunks import Chunk, cut
from monitoring.log_frame import of_version
from monitoring.maturity import usual_wait
from monitoring.measuring import Audit, Watched, measure, realize
from monitoring.outcomes import LabelAccount, join_labels
from monitoring.report import ChunkReport, EstimatorTrust, MonitoringReport, State, Work, merged_skew
from monitoring.results import Kept, read_chunks, write_report
from monitoring.skew import audit_parts
from monitoring.skew_record import last_audit
from monitoring.skew_report import SkewReport
from monitoring.usual import Usual, estimated_metric

if TYPE_CHECKING:
    import feast

_FORMAT = 1
"""Part of every chunk's key: grows when figures are computed in another way."""
_MICROSECOND = timedelta(microseconds=1)


class UnknownServing(SkewlessError, LookupError):
    """It cannot be told which version's predictions belong to a bundle."""


class ForeignBundle(SkewlessError, ValueError):
    """A bundle of another task: its reference says nothing of this one's log."""


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
    usual: Usual | None = None,
    index: PredictionIndex | None = None,
    read: SpineReader = read_spine,
    progress: Callable[[str], None] | None = None,
) -> MonitoringReport:
    """Measure everything the log says of one version as of an instant, store it, and return it.

    Only predictions asked for before `as_of`, and labels known by then, are looked at. The report is the same whether
    runs before have measured some of it or not.

    Args:
        task: the policy.
        locations: where the prediction log is.
        engine: the shared state; results are written there.
        as_of: the run's "now".
        bundle: what the monitored version was packaged in; its reference says what is usual.
        version: the version's number; None finds it by the bundle in the deployments table, or takes the only
            version in the log.
        skew_share: share of entity keys whose vectors are recomputed; 0: no skew audit.
        store: a Feast store to recompute with; None opens the task's repository.
        usual: what an earlier run of the same bundle and policy learned from the reference; None learns it again.
        index: which rows the log has, kept from an earlier run; None looks for itself.
        read: reads the spine, for labels.
        progress: told what is being done.

    Raises:
        UnknownServing: no version was named, and neither the deployments nor the log say which one the bundle is.
        ForeignBundle: the bundle is another task's.
    """
    say = progress or (lambda _text: None)
    as_of = as_utc(as_of)
    if bundle.metadata.task != task.name:
        raise ForeignBundle(
            f"Bundle {bundle.path.name} is of task {bundle.metadata.task!r}, not {task.name!r}.",
            hint=f"`skewless rollout status {task.name}` shows which versions serve.",
        )
    log = locations.predictions(task.name)
    rows = (index or PredictionIndex(log)).until(as_of)
    if version is None:
        version = _version_of(task, engine, bundle, rows)
    asked = pc.sum(pc.equal(rows["version"], version)).as_py() or 0
    own = of_version(rows, version)
    say(f"{own.num_rows:,} predictions of {task.name}@{version}")
    notes: list[str] = []
    if asked > own.num_rows:
        notes.append(f"{asked - own.num_rows:,} of {asked:,} answers were the bundle's fallback: not watched")
    if not own.num_rows:
        notes.append(f"no predictions of version {version} before {as_of:%FT%TZ}: nothing to monitor")
    usual = usual or Usual.of(task, bundle)
    audit: Audit | None = None
    if skew_share:
        logged = {version: logged_features(log).get(version, set())} if own.num_rows else {}
        audit = partial(_audited, task, logged, skew_share, store, {version: bundle.metadata.service_fingerprint})
    key = _key(task, bundle, skew_share)
    chunks, account, changed = _chunks(
        task, bundle, log, own, as_of, usual, audit, read_chunks(engine, task.name, version, key), notes, read, say
    )
    measured, realized = changed
    report = MonitoringReport(
        task=task.name,
        version=version,
        bundle_hash=bundle.bundle_hash,
        run_id=bundle.metadata.provenance.get("run_id", ""),
        as_of=as_of,
        metric=task.success.metric,
        estimated_metric=estimated_metric(task.success.metric),
        rows=own.num_rows,
        chunks=chunks,
        estimator=trust(chunks, tolerance=task.monitoring.estimator_tolerance),
        labels=account,
        skew=merged_skew(chunks),
        audit_on_record=last_audit(engine, task.name),
        notes=(*notes, *_about(task, chunks, usual)),
        work=Work(len(measured), len(realized), len(chunks) - len(measured) - len(realized)),
    )
    write_report(
        engine,
        report,
        key=key,
        measured=measured,
        realized=realized,
        floor=task.monitoring.performance_floor,
        lower_is_better=task.success.metric in LOWER_IS_BETTER,
    )
    return report


def trust(chunks: Sequence[ChunkReport], *, tolerance: float) -> EstimatorTrust:
    """Score the estimator on judged chunks whose labels have settled."""
    pairs = [
        (chunk.estimated, chunk.counterpart.value)
        for chunk in chunks
        if chunk.state == "judged" and chunk.settled and chunk.estimated and chunk.counterpart
    ]
    known = [(guess, truth) for guess, truth in pairs if guess.value is not None and truth is not None]
    errors = [abs(guess.value - truth) for guess, truth in known if guess.value is not None]
    if not errors:
        return EstimatorTrust(None, None, 0, tolerance)
    mean = float(np.mean(errors))
    inside = [
        guess.low <= truth <= guess.high for guess, truth in known if guess.low is not None and guess.high is not None
    ]
    share = float(np.mean(inside)) if inside else None
    return EstimatorTrust(mean <= tolerance, mean, len(errors), tolerance, float(max(errors)), share)


def _key(task: Task, bundle: Bundle, skew_share: float) -> str:
    """Hash of everything that the figures of a chunk depend on besides its rows and their labels."""
    parts = {
        "format": _FORMAT,
        "bundle": bundle.bundle_hash,
        "monitoring": task.monitoring.model_dump(mode="json"),
        "success": task.success.model_dump(mode="json"),
        "fairness": task.fairness.model_dump(mode="json"),
        "kind": task.kind,
        "skew_share": skew_share,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _audited(
    task: Task,
    features: dict[int, set[str]],
    share: float,
    store: feast.FeatureStore | None,
    fingerprints: dict[int, str],
    rows: pa.Table,
    numbers: np.ndarray,
) -> Mapping[int, SkewReport]:
    return audit_parts(task, rows, numbers, features=features, share=share, store=store, fingerprints=fingerprints)


def _version_of(task: Task, engine: Engine, bundle: Bundle, index: pa.Table) -> int:
    columns = deployments.c
    query = select(columns.champion, columns.champion_bundle, columns.challenger, columns.challenger_bundle)
    with engine.connect() as connection:
        row = connection.execute(query.where(columns.task == task.name)).one_or_none()
    serving = [] if row is None else [(row[0], row[1]), (row[2], row[3])]
    matching = [number for number, path in serving if path and Path(path).resolve() == bundle.path.resolve()]
    if matching:
        return next((number for number in matching if number), 0)  # version 0 only borrows the bundle's fallback
    logged = sorted(set(index["version"].to_pylist()) - {0})
    if row is None and len(logged) == 1:
        return int(logged[0])
    seen = ", ".join(f"{task.name}@{number}" for number in logged) or "no version"
    raise UnknownServing(
        f"Bundle {bundle.path.name} is not what task {task.name!r} serves; the prediction log holds {seen}.",
        hint="monitor the bundle of the champion or the challenger, or name the version.",
    )


def _chunks(
    task: Task,
    bundle: Bundle,
    log: Path,
    own: pa.Table,
    as_of: datetime,
    usual: Usual,
    audit: Audit | None,
    kept: dict[int, Kept],
    notes: list[str],
    read: SpineReader,
    say: Callable[[str], None],
) -> tuple[tuple[ChunkReport, ...], LabelAccount | None, tuple[list[Kept], list[Kept]]]:
    """All chunks; the account of labels; those that were measured, and those of which only labels or state are new."""
    if not own.num_rows:
        return (), None, ([], [])
    chunks = cut(own["event_timestamp"].cast(pa.int64()).to_numpy(), task.monitoring, as_of=as_of)
    labels, wait = _labels(task, bundle, own, as_of, notes, read)
    outcomes = join_labels(own, labels, as_of=as_of, binary=task.kind == "binary")
    watched = Watched(task, bundle, log, own, outcomes, usual)
    seals = {chunk.number: outcomes.seal(chunk.rows) for chunk in chunks}
    fresh = [chunk for chunk in chunks if not _unchanged(chunk, kept.get(chunk.number))]
    new = {chunk.number for chunk in fresh}
    relabelled = [each for each in chunks if each.number not in new and kept[each.number].labels != seals[each.number]]
    say(f"{len(fresh)} chunks to measure, {len(relabelled)} with new labels, of {len(chunks)}")
    found, vanished = measure(watched, fresh, audit)
    if vanished:
        notes.append(f"the log has no column for {', '.join(sorted(vanished))}: counted as missing in every row")
    found |= realize(watched, relabelled, {number: each.report for number, each in kept.items()})

    reports, measured, realized = [], [], []
    for chunk in chunks:
        number, before = chunk.number, kept.get(chunk.number)
        report = found[number] if number in found else kept[number].report
        report = _as_of(report, chunk, task, wait, as_of)
        reports.append(report)
        each = Kept(report, chunk.content, seals[number])
        if number in new:
            measured.append(each)
        elif before is not None and report != before.report:
            realized.append(each)
    return tuple(reports), outcomes.account, (measured, realized)


def _unchanged(chunk: Chunk, kept: Kept | None) -> bool:
    """Whether what was measured of a chunk is all there is to measure."""
    return kept is not None and kept.content == chunk.content and (chunk.open or kept.report.state != "open")


def _as_of(report: ChunkReport, chunk: Chunk, task: Task, wait: timedelta | None, as_of: datetime) -> ChunkReport:
    """What depends on the instant it is looked at: whether the chunk is judged, and whether its labels have settled."""
    least = task.monitoring.min_rows
    state: State = "open" if chunk.open else "judged" if chunk.size >= least else "too small"
    settled = wait is not None and chunk.end + wait <= as_of and report.labelled >= least
    return replace(report, state=state, settled=settled)


def _labels(
    task: Task, bundle: Bundle, own: pa.Table, as_of: datetime, notes: list[str], read: SpineReader
) -> tuple[pa.Table, timedelta | None]:
    """Labels of the log's time, and how long labels usually take (None: no label was ever seen).

    The reference's labels have all arrived: only there is the usual wait seen whole, slow outcomes included.
    """
    stamps, past = own["event_timestamp"], bundle.reference()["event_timestamp"]
    # A precomputed answer was made of features from before its case was asked about.
    first, last = pc.min(stamps).as_py(), max(pc.max(stamps).as_py(), pc.max(own["answered_at"]).as_py())
    before = (pc.min(past).as_py(), pc.max(past).as_py()) if len(past) else (first, last)
    start, end = min(first, before[0]), max(last, before[1]) + _MICROSECOND
    known = labels_known(task, start=start, end=end, known_at=as_of, groups=task.fairness.slices, read=read)
    of_log = _asked_within(known, first, last)
    wait = usual_wait(_asked_within(known, *before)) if len(past) else None
    if wait is None:
        notes.append("no label of the reference's time is in the spine: the usual wait is taken from the log's own")
        wait = usual_wait(of_log)
    return of_log, wait


def _asked_within(labels: pa.Table, start: datetime, end: datetime) -> pa.Table:
    kind, stamp = pa.timestamp("us", tz="UTC"), labels["event_timestamp"]
    within = pc.and_(pc.greater_equal(stamp, pa.scalar(start, kind)), pc.less_equal(stamp, pa.scalar(end, kind)))
    return labels.filter(within)


def _about(task: Task, chunks: Collection[ChunkReport], usual: Usual) -> list[str]:
    """What could not be measured of these chunks, and why."""
    notes = []
    metric, guessed = task.success.metric, estimated_metric(task.success.metric)
    if chunks and guessed != metric:
        notes.append(f"{metric} cannot be estimated without labels; {guessed} is, and is not held against the floor")
    large = [chunk for chunk in chunks if chunk.rows >= task.monitoring.min_rows]
    if large and not usual.says_something:
        notes.append(f"the reference has {len(usual.frame)} rows, too few for three chunks: nothing says what is usual")
    elif large and not usual.teaches:
        notes.append("all labels of the reference agree: performance cannot be estimated")
    mute = sum(any(each.mute for each in chunk.together) for chunk in chunks)
    if mute:
        notes.append(
            f"the domain classifier can say nothing of {mute} chunks: usual chunks of this length differ so much from "
            "each other that it tells every one apart"
        )
    one_class = sum(chunk.realized is not None and chunk.realized.value is None for chunk in chunks)
    if one_class:
        notes.append(f"{one_class} chunks have labels of one class only: their {metric} does not exist")
    ripe = [chunk for chunk in large if chunk.state == "judged" and not chunk.settled]
    if ripe:
        least = min(chunk.maturity for chunk in ripe)
        notes.append(f"labels of {len(ripe)} judged chunks have not settled ({least:.0%} known at the least)")
    unknown = sorted({name for chunk in chunks if chunk.skew for name in chunk.skew.unknown})
    if unknown:
        notes.append(f"not audited, the feature service no longer has them: {', '.join(unknown)}")
    return notes
