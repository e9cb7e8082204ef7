"""One policy lived through, hour by hour, in a project of its own: answers, log, releases, watch, trainings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, select

from contracts.bundle import load_bundle
from contracts.errors import SkewlessError
from contracts.prediction_index import PredictionIndex
from contracts.state import alerts
from contracts.task import Task
from loop.climb import Climb
from loop.project import Project
from loop.releases import open_rollouts
from loop.replay_caller import HOUR, InProcess
from loop.replay_policies import Policy, watched
from loop.replay_window import Window, WindowPlan
from loop.retrain import retrain
from serving.rollout import Rollouts
from serving.vectors import FeaturePlan

if TYPE_CHECKING:
    from feast import FeatureStore

    from monitoring.report import MonitoringReport
    from monitoring.usual import Usual

_ACTOR = "replay"


class FirstVersionRejected(SkewlessError, RuntimeError):
    """The version all policies begin with did not pass its gates."""


@dataclass(frozen=True)
class Scene:
    """What every policy has in common."""

    task: Task
    """As it is replayed."""
    window: Window
    compiled: FeaturePlan
    store: FeatureStore
    start: datetime
    end: datetime
    every: timedelta
    """How often monitoring is run and a decision taken."""


@dataclass
class Life:
    """What happened under a policy; plain values."""

    retrainings: list[dict[str, Any]] = field(default_factory=list)
    """`at`, `reason`, `version`, `status` of each training after the first."""
    alerts: list[dict[str, Any]] = field(default_factory=list)
    """`at`, `kind`, `message` of each alert opened."""
    decays: list[str] = field(default_factory=list)
    """Instants at which monitoring said that performance is below its floor."""
    releases: list[dict[str, Any]] = field(default_factory=list)
    """`at`, `version`, `from_stage`, `to_stage`, `champion` of each move."""
    estimates: list[dict[str, Any]] = field(default_factory=list)
    """`chunk`, `version`, `estimated`, `realized` of each chunk whose labels settled while it was watched."""
    watched: int = 0
    """Runs of monitoring."""
    answered: int = 0
    refused: int = 0


def train_first(scene: Scene, folder: Path, say: Callable[[str], None]) -> None:
    """Train the version that every policy begins with, in a project of its own, and hand it to shadow.

    Raises:
        FirstVersionRejected: a gate did not pass.
    """
    shutil.rmtree(folder, ignore_errors=True)
    project = Project(folder)
    engine = project.open_state()
    frame = scene.window.training_frame(scene.start)
    result, entered = retrain(project, scene.task, engine, now=scene.start, say=say, frame=frame)
    engine.dispose()
    if entered is None:
        failed = ", ".join(gate.name for gate in result.gates if gate.verdict != "pass")
        raise FirstVersionRejected(
            f"Task {scene.task.name!r}: the version trained at {scene.start:%F} was rejected by its gates: {failed}.",
            hint="begin the replay at another instant, or see the gates of `skewless train --as-of`.",
        )


def live(scene: Scene, policy: Policy, first: Path, folder: Path, say: Callable[[str], None]) -> Life:
    """Live from `scene.start` to `scene.end` under a policy, beginning with what `train_first` left in `first`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(first, folder)
    project = Project(folder)
    engine = project.open_state()
    try:
        life = _Living(scene, policy, project, engine, say)
        life.on()
        return life.found
    finally:
        engine.dispose()


class _Living:
    def __init__(
        self, scene: Scene, policy: Policy, project: Project, engine: Engine, say: Callable[[str], None]
    ) -> None:
        self._scene, self._policy, self._project, self._engine, self._say = scene, policy, project, engine, say
        self._rollouts = open_rollouts(engine, scene.task, project.locations)
        plan = WindowPlan(scene.compiled, scene.window)
        self._caller = InProcess(
            scene.task,
            project.locations,
            plan,
            scene.window,
            lambda: _deployed(self._rollouts),
            project.open_state(),
            scene.start,
        )
        self._climb = Climb(self._rollouts, project.locations, scene.store, self._caller, say, scene.window.read_spine)
        self._trained = scene.start
        self._usual: tuple[str, Usual] | None = None
        self._index = PredictionIndex(project.locations.predictions(scene.task.name))
        self._settled: dict[tuple[int, str], dict[str, Any]] = {}
        self.found = Life()

    def on(self) -> None:
        scene, boundary, watch = self._scene, self._scene.start, self._scene.start + self._scene.every
        while boundary < scene.end:
            following = min(boundary + HOUR, scene.end)
            asked = self._caller.ask_hour(scene.window.rows(boundary, following))
            self._climb.after_hour(following, asked)
            if following >= watch or following == scene.end:
                self._attend(following)
                watch += scene.every
            if following.month != boundary.month:
                self._say(f"{boundary:%Y-%m} {self._policy.name}: {len(self.found.retrainings)} retrainings so far")
            boundary = following
        self._caller.close()
        self.found.estimates = [self._settled[place] for place in sorted(self._settled)]
        self.found.releases = [
            {
                "at": move.at.isoformat(),
                "version": move.version,
                "from_stage": move.from_stage,
                "to_stage": move.to_stage,
                "champion": move.champion,
            }
            for move in self._rollouts.history()
        ]
        self.found.answered = self._caller.account.answered_rows
        self.found.refused = sum(self._caller.account.refusals.values())

    def _attend(self, now: datetime) -> None:
        """What a person on duty does once in a while, then monitoring, the decision, and the training it asks for."""
        from monitoring.alerts import acknowledge
        from monitoring.decision import decide, record
        from monitoring.monitor import monitor

        task, deployment = self._scene.task, _deployed(self._rollouts)
        for number in self._unseen():
            acknowledge(self._engine, number, note="seen on the round", now=now)
        if deployment.stage == "paused":
            self._rollouts.rollback("nobody approves in a replay", _ACTOR, now)
            self._caller.wait_for(0)
        if not deployment.champion:
            return  # the naive baseline: there is no model to watch yet
        report = monitor(
            task,
            self._project.locations,
            self._engine,
            as_of=now,
            bundle=load_bundle(Path(deployment.champion_bundle)),
            version=deployment.champion,
            skew_share=0,  # the vectors came from the training path; each hour of the served policy is audited whole
            usual=self._usual_of(deployment.champion_bundle),
            index=self._index,
            read=self._scene.window.read_spine,
        )
        self._remember(report)
        trained = [datetime.fromisoformat(each["at"]) for each in self.found.retrainings]
        seen = decide(watched(task), report, last_training=self._trained, now=now, trained=trained)
        if seen.rule.startswith("decay"):
            self.found.decays.append(now.isoformat())
        wanted = self._policy.reason(task, report, last_training=self._trained, now=now, trained=trained)
        opened = record(self._engine, replace(seen, request=wanted[1].request if wanted else None), now)
        self._note_alerts(opened.alerts, now)
        if wanted is not None and now < self._scene.end and _deployed(self._rollouts).challenger is None:
            self._train(wanted[0], now)

    def _train(self, reason: str, now: datetime) -> None:
        self._trained = now
        self._say(f"{now:%F %H:%M} {self._policy.name}: training, {reason}")
        done: dict[str, Any] = {"at": now.isoformat(), "reason": reason, "version": None, "status": "failed"}
        try:
            frame = self._scene.window.training_frame(now)
            result, _ = retrain(self._project, self._scene.task, self._engine, now=now, say=lambda _: None, frame=frame)
            done |= {"version": result.version, "status": result.status}
        except SkewlessError as error:  # too little data, a blocked audit: on record, and the policy goes on
            done["error"] = error.fact
        self._say(f"{now:%F %H:%M} {self._policy.name}: version {done['version']} is {done['status']}")
        self.found.retrainings.append(done)
        self._caller.wait_for(0)

    def _remember(self, report: MonitoringReport) -> None:
        self.found.watched += 1
        for chunk in report.judged:
            if chunk.settled and chunk.estimated is not None and chunk.counterpart is not None:
                pair = {"estimated": chunk.estimated.value, "realized": chunk.counterpart.value}
                begins = chunk.start.isoformat()
                self._settled[report.version, begins] = {"chunk": begins, "version": report.version} | pair

    def _unseen(self) -> list[int]:
        columns = alerts.c
        open_ = (columns.task == self._scene.task.name) & columns.resolved_at.is_(None)
        query = select(columns.id).where(open_ & columns.acknowledged_at.is_(None)).order_by(columns.id)
        with self._engine.connect() as connection:
            return list(connection.execute(query).scalars())

    def _usual_of(self, bundle: str) -> Usual:
        """What is usual for the serving version, learned once."""
        from monitoring.usual import Usual

        if self._usual is None or self._usual[0] != bundle:
            self._usual = bundle, Usual.of(self._scene.task, load_bundle(Path(bundle)))
        return self._usual[1]

    def _note_alerts(self, numbers: tuple[int, ...], now: datetime) -> None:
        query = select(alerts.c.kind, alerts.c.message).where(alerts.c.id.in_(numbers)).order_by(alerts.c.id)
        with self._engine.connect() as connection:
            for kind, message in connection.execute(query):
                self.found.alerts.append({"at": now.isoformat(), "kind": kind, "message": message})


def _deployed(rollouts: Rollouts) -> Any:
    deployment = rollouts.current()
    assert deployment is not None, "a policy begins with a version in shadow"
    return deployment
