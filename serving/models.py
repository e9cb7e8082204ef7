"""What serves a task now: the deployment's row, its bundles loaded, their plans compiled; swapped as one reference."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from contracts.bundle import Bundle, load_bundle
from contracts.errors import SkewlessError
from contracts.scorer import Scorer
from contracts.task import Task
from serving.log_segments import Features
from serving.requests import RequestSchema
from serving.rollout_state import Deployment, read_deployment, read_generation
from serving.vectors import FeaturePlan

_log = logging.getLogger(__name__)
_LOOKS_TO_REST = 20  # after a failure: hashing a broken bundle ten times a second would help nobody


class StaleDefinitions(SkewlessError, ValueError):
    """The registry's feature definitions are not those a version was trained with."""


@dataclass(frozen=True, slots=True)
class Model:
    """One loaded version. Version 0 is the naive baseline: its bundle's fallback score, whatever the features."""

    version: int
    bundle: Bundle
    plan: FeaturePlan
    scorer: Scorer | None

    features: Features = field(init=False)
    """The schema its vectors are logged under."""

    def __post_init__(self) -> None:
        features = tuple((spec.name, spec.kind) for spec in self.bundle.metadata.features)
        object.__setattr__(self, "features", features)

    def predict(self, numbers: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Answers float32 [N, 1 + q] to N vectors: the score, then a regression's quantiles."""
        if self.scorer is None:
            return np.tile(self.fallback, (len(numbers), 1))
        return self.scorer.predict(numbers, texts)

    @property
    def fallback(self) -> np.ndarray:
        """What it answers when it cannot speak, float32 [1 + q]."""
        metadata = self.bundle.metadata
        return np.array([metadata.fallback, *metadata.fallback_quantiles], np.float32)


@dataclass(frozen=True, slots=True)
class Live:
    """A deployment ready to answer."""

    deployment: Deployment
    champion: Model
    challenger: Model | None
    error: str = ""
    """Why the challenger is missing, if it is."""


class Models:
    """Loads versions of one task and keeps those in use. One thread loads, all may read.

    Args:
        task: whose models they are.
        plan: compiles a feature service; called again when a version was trained on newer definitions.
    """

    def __init__(self, task: Task, plan: Callable[[str], FeaturePlan]) -> None:
        self.task = task
        self._compile = plan
        self._plans: dict[str, FeaturePlan] = {}
        self._loaded: dict[tuple[int, str], Model] = {}

    def plan(self, service: str) -> FeaturePlan:
        """The compiled plan of a service."""
        if service not in self._plans:
            self._plans[service] = self._compile(service)
        return self._plans[service]

    def prepare(self, deployment: Deployment) -> Live:
        """Load what a deployment names.

        A challenger that cannot be loaded is left out, with the reason: it must not keep the champion from answering.

        Raises:
            SkewlessError: the champion cannot be loaded.
        """
        champion = self._model(deployment.champion, deployment.champion_bundle)
        challenger, error = None, ""
        if deployment.challenger is not None and deployment.challenger_bundle:
            try:
                challenger = self._model(deployment.challenger, deployment.challenger_bundle)
            except Exception as broken:  # a bundle can be broken in more ways than this program can name
                error = f"version {deployment.challenger} cannot be loaded: {broken}"
                _log.error("task %s: %s", self.task.name, error)
        kept = [model for model in (champion, challenger) if model is not None]
        self._loaded = {(model.version, str(model.bundle.path)): model for model in kept}
        return Live(deployment, champion, challenger, error)

    def _model(self, version: int, path: str) -> Model:
        found = self._loaded.get((version, path))
        if found is not None:  # definitions applied since do not touch it: it keeps those it was compiled from
            return found
        bundle = load_bundle(Path(path))
        wanted = bundle.metadata
        plan = self.plan(wanted.feature_service)
        if plan.fingerprint != wanted.service_fingerprint:
            plan = self._plans[plan.service] = self._compile(plan.service)  # definitions may have been applied since
        if plan.fingerprint != wanted.service_fingerprint:
            raise StaleDefinitions(
                f"Version {version} of task {self.task.name!r} was trained on feature service {plan.service!r} with "
                f"fingerprint {wanted.service_fingerprint[:12]}; the registry's is {plan.fingerprint[:12]}.",
                hint="apply the definitions it was trained with, or train a version on these. Give a changed service a "
                "new name, and both versions can be served.",
            )
        plan.check(wanted.features)
        RequestSchema(self.task, plan.inputs, "system")  # a version may ask only for what the task's requests carry
        return Model(version, bundle, plan, Scorer(bundle.model_path) if version else None)


class Watcher:
    """Follows the deployments table and swaps what changed, in its own thread.

    Args:
        engine: the state database, opened for reading.
        models: per task name.
        swap: receives each newly prepared deployment.
        every: seconds between two looks.
    """

    def __init__(
        self, engine: Engine, models: Mapping[str, Models], swap: Callable[[str, Live], None], every: float = 0.1
    ) -> None:
        self._engine = engine
        self._kept: Connection | None = None
        self._models = models
        self._swap = swap
        self._every = every
        self._generations: dict[str, int] = {}
        self._resting: dict[str, int] = {}
        self.errors: dict[str, str] = {}
        """Task to why its newest deployment is not being served."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deployment-watcher", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and the database connections."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._kept is not None:
            self._kept.close()
        self._engine.dispose()

    def is_alive(self) -> bool:
        """Whether the table is being watched."""
        return self._thread.is_alive()

    def look(self) -> None:
        """Read the table once and swap what changed."""
        for name, models in self._models.items():
            if self._resting.get(name, 0) > 0:
                self._resting[name] -= 1
                continue
            try:
                if self._generation(name) == self._generations.get(name):
                    continue
                with self._engine.connect() as connection:
                    deployment = read_deployment(connection, name)
                if deployment is None:
                    continue
                self._swap(name, models.prepare(deployment))
                self._generations[name] = deployment.generation
                self.errors.pop(name, None)
            except Exception as error:  # the old version goes on answering, whatever is wrong with the new one
                if self.errors.get(name) != str(error):
                    _log.error("task %s: %s", name, error)
                self.errors[name] = str(error)
                self._resting[name] = _LOOKS_TO_REST

    def _generation(self, task: str) -> int | None:
        """Asked ten times a second, on a connection that is kept: a request would feel the making of one."""
        if self._kept is not None:
            with suppress(DBAPIError):
                return read_generation(self._kept, task)
            self._kept.close()  # the database was away meanwhile
            self._kept = None
        self._kept = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        return read_generation(self._kept, task)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self._every)
