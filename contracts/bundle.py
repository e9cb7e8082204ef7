"""The bundle: all that serving and monitoring need of a version, in one folder whose every file is hashed.

A bundle is data: loading one verifies hashes and parses JSON, ONNX and Parquet; nothing in it is ever unpickled.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from contracts.errors import SkewlessError
from contracts.files import sha256_file, sha256_text, whole_folder
from contracts.places import place_of

MODEL, METADATA, REFERENCE, MANIFEST = "model.onnx", "metadata.json", "reference.parquet", "MANIFEST.json"

SCORE, LABEL, EVENT_TIMESTAMP = "score", "label", "event_timestamp"
"""Columns of a reference frame beside the features themselves."""


class BundleError(SkewlessError, ValueError):
    """A bundle that is missing, altered or of another format."""


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """One model input, in the order the model wants it."""

    name: str
    kind: Literal["number", "text"]
    """Numbers enter the graph as float32 (null is NaN), texts as strings (null is the empty string)."""
    type: str = field(default="", compare=False)
    """Arrow type in which the feature definitions give it; empty in bundles that do not say."""

    @property
    def place(self) -> tuple[str, int] | None:
        """Of an array feature's value, such as `delays[-2]`: the feature, and the place from its end (1 is last)."""
        return place_of(self.name)


@dataclass(frozen=True, slots=True)
class BundleMetadata:
    """What a version is, where it came from, and how it did. Plain JSON values throughout."""

    task: str
    kind: str
    learner: str
    feature_service: str
    features: tuple[FeatureSpec, ...]
    service_fingerprint: str
    """Hash of the definitions of every view behind the feature service."""
    threshold: float | None
    """Scores at or above it mean "act"; chosen on the validation rows at the least business cost. None: a regression,
    which answers a value and decides nothing."""
    fallback: float
    """The score answered when the model cannot speak: the training rows' base rate, a regression's their median."""
    trained_at: str
    training_data: dict[str, Any]
    """dataset_hash, rows, start, end, cutoff and the split's bounds."""
    metrics: dict[str, dict[str, float]]
    """Holdout metrics: name to {value, low, high}."""
    gates: tuple[dict[str, Any], ...]
    seed: int
    params: dict[str, Any]
    task_as_trained: dict[str, Any]
    provenance: dict[str, str] = field(default_factory=dict)
    """run_id, code_revision, lock_hash, registry_hash."""
    quantiles: tuple[float, ...] = ()
    """Levels a regression answers beside its value, rising."""
    fallback_quantiles: tuple[float, ...] = ()
    """What it answers at these levels when the model cannot speak: the training rows' own quantiles."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path
    metadata: BundleMetadata
    model_hash: str
    bundle_hash: str

    @property
    def model_path(self) -> Path:
        """The ONNX graph.

        Inputs `numbers` float32 [N, n] and, if there are text features, `texts` string [N, t], each in the order of
        `metadata.features`; outputs `score` float32 [N] and, if `metadata.quantiles` has any, `quantiles` float32
        [N, q], rising in every row.
        """
        return self.path / MODEL

    def reference(self) -> pa.Table:
        """Holdout rows for monitoring: every feature, `score`, `label`, `event_timestamp`; never seen by a fit."""
        return pq.read_table(self.path / REFERENCE)


def write_bundle(path: Path, *, model: bytes, metadata: BundleMetadata, reference: pa.Table) -> Bundle:
    """Write a bundle folder in one step and return it verified. An existing folder at `path` is replaced."""
    with whole_folder(path) as part:
        (part / MODEL).write_bytes(model)
        (part / METADATA).write_text(json.dumps(asdict(metadata), indent=1, sort_keys=True, default=str))
        pq.write_table(reference, part / REFERENCE)
        hashes = {name: sha256_file(part / name) for name in (MODEL, METADATA, REFERENCE)}
        (part / MANIFEST).write_text(json.dumps({"format": 1, "files": hashes}, indent=1, sort_keys=True))
    return load_bundle(path)


def load_bundle(path: Path) -> Bundle:
    """Read a bundle and verify every file against its manifest.

    Raises:
        BundleError: a file is missing or its hash differs, or the manifest is of another format.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise BundleError(
            f"No bundle at {path}: {MANIFEST} is missing.", hint="train a version: `skewless train TASK`."
        )
    try:
        listed = json.loads(manifest.read_text())
        files = dict(listed["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"Bundle {path} has an unreadable manifest: {error}.", hint="restore it, or train again."
        ) from error
    if listed.get("format") != 1:
        raise BundleError(f"Bundle {path} has format {listed.get('format')!r}; this program reads format 1.")
    for name in (MODEL, METADATA, REFERENCE):
        if name not in files or not (path / name).is_file():
            raise BundleError(f"Bundle {path} lacks {name}.", hint="restore the folder, or train again.")
        found = sha256_file(path / name)
        if found != files[name]:
            raise BundleError(
                f"Bundle {path} was altered: {name} has hash {found[:12]}, the manifest says {files[name][:12]}.",
                hint="restore the folder from its run's artifacts, or roll back.",
            )
    try:
        raw = json.loads((path / METADATA).read_text())
        raw["features"] = tuple(FeatureSpec(**spec) for spec in raw["features"])
        for name in ("gates", "quantiles", "fallback_quantiles"):
            raw[name] = tuple(raw.get(name, ()))
        metadata = BundleMetadata(**raw)
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"Bundle {path} has metadata this program cannot read: {error}.", hint="it was written by another version."
        ) from error
    return Bundle(path, metadata, files[MODEL], sha256_text(json.dumps(files, sort_keys=True)))
