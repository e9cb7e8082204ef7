"""The batch job: predict the cases that will soon be asked about, and keep the answers where requests read them.

    report = Predictor(task, locations, engine).run(at, known_at=clock.now)

Cases without a label yet, asked about from `at` on within the task's horizon -> their features as they are knowable at
`at`, through the same retrieval as in training -> the bundles of champion and challenger -> the predictions' feature
view. Running it again changes nothing that it has written already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Engine

from contracts.errors import SkewlessError
from contracts.locations import Locations
from contracts.spine import read_spine
from contracts.task import Task
from serving.batch_features import CaseFeatures, case_features
from serving.batch_scoring import Scoring, in_process, on_ray
from serving.batch_view import KNOWN, PredictionView
from serving.models import Live, Model, Models
from serving.plan import compile_plan, open_repository
from serving.precomputed import question_of
from serving.requests import BadRequest, RequestSchema
from serving.rollout_state import read_deployment

_FAR = datetime(9999, 1, 1, tzinfo=UTC)
_TIME = pa.timestamp("us", tz="UTC")


class NotABatchTask(SkewlessError, ValueError):
    """A task whose answers are computed when they are asked for."""


class NothingDeployed(SkewlessError, LookupError):
    """No version of the task serves, so there is nothing to predict with."""


class NothingToPredict(SkewlessError, LookupError):
    """The spine has no case at or after the instant."""


class PredictionFailed(SkewlessError, ArithmeticError):
    """A version answered what is no number."""


@dataclass(frozen=True, slots=True)
class VersionPredictions:
    """What the job did with one version."""

    version: int
    variant: str
    """champion | challenger"""
    rows: int
    written: int
    """Of them those that the online store now holds; it had newer ones of the rest."""
    scored_by: str
    """fallback | this process | ray"""


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one job did."""

    task: str
    at: datetime
    until: datetime
    """Cases asked about before it were looked at."""
    cases: int
    refused: int
    """Cases that no request could ask about: a key or field is missing or of the wrong kind."""
    view: str
    folder: str
    versions: tuple[VersionPredictions, ...]
    challenger_error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"at": self.at.isoformat(), "until": self.until.isoformat()}


class Predictor:
    """One task's batch job; keep it for several runs, and definitions and bundles are read once.

    Args:
        task: served in batch mode.
        locations: where bundles are, and predictions go.
        engine: the shared state; says which versions serve.

    Raises:
        NotABatchTask: its answers are computed when they are asked for.
    """

    def __init__(self, task: Task, locations: Locations, engine: Engine) -> None:
        mode, reason = task.serving_mode
        if mode != "batch":
            raise NotABatchTask(
                f"Task {task.name!r} is served online: {reason}.",
                hint='write `mode = "batch"` under [serving], or raise budget.p99_ms.',
            )
        self.task = task
        self._engine = engine
        self._store = open_repository(task.feature_repo)
        self._models = Models(task, lambda service: compile_plan(self._store, service))
        self._view = PredictionView(task, locations)

    def run(
        self,
        at: datetime,
        *,
        known_at: Callable[[], datetime],
        say: Callable[[str], None] = lambda _text: None,
        scoring: Scoring | None = None,
    ) -> BatchReport:
        """Predict the cases asked about in [at, at + horizon).

        Args:
            at: features are those knowable here; whole seconds, the rest is cut off.
            known_at: says, once all is computed, from when on the predictions can be known.
            say: told what is being done.
            scoring: how to run a graph; None lets the number of cases decide.

        Raises:
            NothingDeployed, NothingToPredict: nothing was written.
            BundleError, StaleDefinitions: the champion cannot be loaded; nothing was written.
        """
        task, at = self.task, at.replace(microsecond=0)
        live = self._live()
        until = at + task.batch.horizon
        spine = read_spine(task, start=at, end=until, known_at=at)
        if not spine.num_rows and not read_spine(task, start=until, end=_FAR, known_at=at).num_rows:
            raise NothingToPredict(
                f"Task {task.name!r}: the spine has no case asked about at or after {at:%F %H:%M} UTC.",
                hint="its tables must hold the cases to come, not only those with an outcome; land them, or move "
                "--as-of to where they are.",
            )
        coming = spine.filter(pc.is_null(spine[task.spine.label]))
        models = [("champion", live.champion)]
        models += [("challenger", live.challenger)] if live.challenger is not None else []
        schema = RequestSchema(task, live.champion.plan.inputs, "system")
        cases, columns = askable(schema, coming)
        say(f"{cases.num_rows:,} cases asked about until {until:%F %H:%M} UTC")
        done: list[VersionPredictions] = []
        if cases.num_rows:
            read: dict[str, CaseFeatures] = {}
            kept = []
            for variant, model in models:
                service = model.plan.service
                if service not in read:
                    read[service] = case_features(self._store, service, task, cases, at)
                rows, scored_by = self._predicted(model, read[service], schema, cases, columns, scoring)
                kept.append((variant, model, rows, scored_by))
            known = pa.array([max(known_at(), at)] * cases.num_rows, _TIME)
            for variant, model, rows, scored_by in kept:
                written = self._view.write(rows.append_column(KNOWN, known), at, model.version)
                done.append(VersionPredictions(model.version, variant, rows.num_rows, written, scored_by))
        return BatchReport(
            task=task.name,
            at=at,
            until=until,
            cases=cases.num_rows,
            refused=coming.num_rows - cases.num_rows,
            view=self._view.name,
            folder=str(self._view.folder),
            versions=tuple(done),
            challenger_error=live.error,
        )

    def _live(self) -> Live:
        with self._engine.connect() as connection:
            deployment = read_deployment(connection, self.task.name)
        if deployment is None:
            raise NothingDeployed(
                f"Task {self.task.name!r} has no version deployed.",
                hint=f"train one: `skewless retrain {self.task.name}`.",
            )
        return self._models.prepare(deployment)

    def _predicted(
        self,
        model: Model,
        features: CaseFeatures,
        schema: RequestSchema,
        cases: pa.Table,
        columns: dict[str, list[Any]],
        scoring: Scoring | None,
    ) -> tuple[pa.Table, str]:
        numbers, texts = features.matrices(model.bundle.metadata.features)
        if model.scorer is None:
            answers, scored_by = model.predict(numbers, texts), "fallback"
        else:
            shared = scoring is on_ray or (scoring is None and len(numbers) >= self.task.batch.ray_from_rows)
            score = scoring or (on_ray if shared else in_process)
            answers, scored_by = score(model.bundle.model_path, numbers, texts), "ray" if shared else "this process"
        if not np.isfinite(answers).all():
            raise PredictionFailed(f"Version {model.version} of task {self.task.name!r} answered what is no number.")
        count = len(numbers)
        rows = {
            self.task.spine.id: cases[self.task.spine.id].cast(pa.string()),
            "score": pa.array(answers[:, 0]),
            "quantiles": pa.array(list(answers[:, 1:]), pa.list_(pa.float32())),
            "numbers": pa.array([row.astype("<f4").tobytes() for row in numbers], pa.binary()),
            "texts": pa.array([orjson.dumps(list(row)).decode() for row in texts], pa.string()),
            "view_times": pa.array([orjson.dumps(each).decode() for each in features.view_times], pa.string()),
            "question": pa.array([question_of(schema.fields, columns, i) for i in range(count)], pa.string()),
            "bundle": pa.array([model.bundle.bundle_hash] * count, pa.string()),
        }
        return pa.table(rows), scored_by


def askable(schema: RequestSchema, spine: pa.Table) -> tuple[pa.Table, dict[str, list[Any]]]:
    """The spine rows that a request could ask about, and what it would say: a column of Python values a field."""
    names = [each.name for each in schema.fields]
    kept: list[int] = []
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for i, row in enumerate(spine.select(names).to_pylist()):
        try:
            values = schema.values({name: _as_json(value) for name, value in row.items()}, i)
        except BadRequest:
            continue
        kept.append(i)
        for name, value in values.items():
            columns[name].append(value)
    return spine.take(pa.array(kept, pa.int64())), columns


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return float(value) if isinstance(value, Decimal) else value
