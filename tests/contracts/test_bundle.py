"""A bundle is verified whenever it is read, and says what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from contracts.bundle import (
    MANIFEST,
    METADATA,
    MODEL,
    REFERENCE,
    Bundle,
    BundleError,
    BundleMetadata,
    FeatureSpec,
    load_bundle,
    write_bundle,
)

METADATA_OF_CHURN = BundleMetadata(
    task="churn",
    kind="binary",
    learner="lightgbm",
    feature_service="churn_v1",
    features=(FeatureSpec("visits", "number"), FeatureSpec("city", "text")),
    service_fingerprint="f00",
    threshold=0.4,
    fallback=0.2,
    trained_at="2024-01-01T00:00:00+00:00",
    training_data={"rows": 10},
    metrics={"roc_auc": {"value": 0.8, "low": 0.7, "high": 0.9}},
    gates=({"name": "floor", "verdict": "pass"},),
    seed=7,
    params={"leaves": 31},
    task_as_trained={"name": "churn"},
    provenance={"run_id": "r"},
)
FRAME = pa.table({"visits": pa.array([1.0, None], pa.float32()), "score": [0.1, 0.9]})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", model=b"graph", metadata=METADATA_OF_CHURN, reference=FRAME)


def rewritten(bundle: Bundle, change: Callable[[dict], object]) -> Path:
    """The bundle with a manifest that fits its files after `change` of the metadata."""
    from contracts.files import sha256_file

    metadata = json.loads((bundle.path / METADATA).read_text())
    change(metadata)
    (bundle.path / METADATA).write_text(json.dumps(metadata))
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    manifest["files"][METADATA] = sha256_file(bundle.path / METADATA)
    (bundle.path / MANIFEST).write_text(json.dumps(manifest))
    return bundle.path


def test_what_was_written_is_read_back(bundle: Bundle) -> None:
    found = load_bundle(bundle.path)
    assert found == bundle
    assert found.metadata == METADATA_OF_CHURN
    assert found.model_path.read_bytes() == b"graph"
    assert found.reference().equals(FRAME)


def test_the_same_content_has_the_same_hashes_wherever_it_lies(bundle: Bundle, tmp_path: Path) -> None:
    again = write_bundle(tmp_path / "other", model=b"graph", metadata=METADATA_OF_CHURN, reference=FRAME)
    assert (again.model_hash, again.bundle_hash) == (bundle.model_hash, bundle.bundle_hash)
    changed = replace(METADATA_OF_CHURN, threshold=0.5)
    other = write_bundle(tmp_path / "other", model=b"graph", metadata=changed, reference=FRAME)
    assert other.model_hash == bundle.model_hash
    assert other.bundle_hash != bundle.bundle_hash


@pytest.mark.parametrize("name", [MODEL, METADATA, REFERENCE])
def test_an_altered_file_is_named(bundle: Bundle, name: str) -> None:
    path = bundle.path / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BundleError, match=f"was altered: {name} has hash"):
        load_bundle(bundle.path)


@pytest.mark.parametrize("name", [MODEL, METADATA, REFERENCE])
def test_a_missing_file_is_named(bundle: Bundle, name: str) -> None:
    (bundle.path / name).unlink()
    with pytest.raises(BundleError, match=f"lacks {name}"):
        load_bundle(bundle.path)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"No bundle at .*nowhere: MANIFEST\.json is missing"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"files": 3}', '"x"'])
def test_an_unreadable_manifest(bundle: Bundle, text: str) -> None:
    (bundle.path / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="unreadable manifest"):
        load_bundle(bundle.path)


def test_a_manifest_of_another_format_or_without_a_file(bundle: Bundle) -> None:
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    (bundle.path / MANIFEST).write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(BundleError, match="has format 2"):
        load_bundle(bundle.path)
    del manifest["files"][MODEL]
    (bundle.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"lacks model\.onnx"):
        load_bundle(bundle.path)


def test_metadata_of_another_version_of_this_program(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="metadata this program cannot read"):
        load_bundle(rewritten(bundle, lambda metadata: metadata.update(colour="blue")))
    with pytest.raises(BundleError, match="metadata this program cannot read"):
        load_bundle(rewritten(bundle, lambda metadata: metadata.pop("features")))


def test_writing_again_replaces_the_bundle(bundle: Bundle) -> None:
    (bundle.path / "stray").touch()
    again = write_bundle(bundle.path, model=b"other", metadata=METADATA_OF_CHURN, reference=FRAME)
    assert again.model_hash != bundle.model_hash
    assert not (bundle.path / "stray").exists()
