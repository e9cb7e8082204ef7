"""What a version leaves behind: its bundle, what its run says, and its card beside the bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from contracts.bundle import Bundle, BundleMetadata, write_bundle
from contracts.clock import Clock
from contracts.files import whole_file
from contracts.locations import Locations
from contracts.registry import Status
from contracts.task import Task
from training.frame import Frame
from training.making import Made
from training.model_card import model_card
from training.tracking import CARD, EVALUATION, Revision, Run


def make_bundle(
    task: Task,
    locations: Locations,
    clock: Clock,
    frame: Frame,
    made: Made,
    dataset_hash: str,
    made_with: Revision,
    run: Run,
) -> Bundle:
    """Write the bundle of a version, the model and all that was found of it, and return it verified."""
    split = made.split.summary()
    metadata = BundleMetadata(
        task=task.name,
        kind=task.kind,
        learner=made.learner,
        feature_service=task.feature_service,
        features=frame.specs,
        service_fingerprint=frame.service_fingerprint,
        threshold=made.evaluation.threshold,
        fallback=float(made.naive[0]),
        trained_at=clock.now().isoformat(),
        training_data={
            "dataset_hash": dataset_hash,
            "rows": frame.table.num_rows,
            "unlabelled": frame.unlabelled,
            "start": split["bounds"]["start"],
            "end": split["bounds"]["cutoff"],
            "cutoff": split["bounds"]["cutoff"],
            "split": split,
        },
        metrics={name: asdict(found) for name, found in made.evaluation.metrics.items()},
        gates=tuple(gate.to_dict() for gate in made.gates),
        seed=task.training.seed,
        params=made.fitted.params,
        task_as_trained=task.fingerprint_data(),
        provenance={
            "run_id": run.id,
            "code_revision": made_with.code,
            "lock_hash": made_with.lock_hash,
            "registry_hash": frame.registry_hash,
        },
        quantiles=task.quantiles,
        fallback_quantiles=tuple(made.naive[1:].tolist()),
    )
    return write_bundle(
        locations.bundles(task.name) / f"{sha256(made.fitted.model).hexdigest()[:16]}-{run.id[:8]}",
        model=made.fitted.model,
        metadata=metadata,
        reference=frame.reference(made.split.holdout, made.holdout_scores),
    )


def record(run: Run, made: Made, bundle: Bundle, status: Status) -> None:
    """Tell the run what came of it."""
    run.params({f"learner.{name}": value for name, value in made.fitted.params.items()})
    run.params({"learner": made.learner, "threshold": made.evaluation.threshold, **made.fitted.size})
    run.tags({"model_hash": bundle.model_hash, "status": status})
    run.tags({f"gate.{gate.name}": gate.verdict for gate in made.gates})
    run.estimates("holdout", made.evaluation.metrics)
    run.estimates("cost_per_case", made.evaluation.cost_per_case)
    run.metrics({"latency_ms.p99": made.evaluation.latency[0].p99, "parity": made.evaluation.parity})
    run.metrics({f"latency_ms.p99.rows_{each.rows}": each.p99 for each in made.evaluation.latency[1:]})
    run.metrics({f"rows.{name}": rows for name, rows in made.split.summary()["rows"].items()})
    run.report(made.evaluation.to_dict(), EVALUATION)
    run.report([gate.to_dict() for gate in made.gates], "gates.json")
    run.folder(bundle.path, "bundle")


def card_path(bundle: Path) -> Path:
    """Where a version's card is: beside its bundle, whose own files are hashed."""
    return bundle.with_name(f"{bundle.name}.html")


def write_card(bundle: Bundle, evaluation: Mapping[str, Any], *, version: int, status: Status) -> str:
    """Draw a version's card, keep it beside the bundle, and return it."""
    plain = json.loads(json.dumps(evaluation))
    page = model_card(bundle.metadata, plain, version=version, status=status, model_hash=bundle.model_hash)
    with whole_file(card_path(bundle.path)) as part:
        part.write_text(page, encoding="utf-8")
    return page


def tell_version(run: Run, made: Made, bundle: Bundle, status: Status, version: int) -> None:
    """Tell the run its version's number, and draw the card that names it."""
    run.text(write_card(bundle, made.evaluation.to_dict(), version=version, status=status), CARD)
    run.tags({"version": version})
