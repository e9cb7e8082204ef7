"""`skewless run`: the whole way once, from raw data to a served, watched and retrained model, in virtual time.

The task's first `training.window` of history trains a version; the days after it are lived through hour by hour:
features are materialized, requests are asked over HTTP, the version climbs from shadow to champion; then the log is
watched, a decision is taken, and a second version is trained on the latest window and handed to shadow.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from contracts.clock import VirtualClock
from contracts.predictions import balance
from contracts.task import Task
from loop.climb import Climb
from loop.features import Materializer, apply, open_features, start_over
from loop.live import Live
from loop.period import Period, plan_period
from loop.predict import Jobs, forget_predictions
from loop.project import Project
from loop.releases import open_rollouts
from loop.retrain import retrain
from loop.terminal import Steps
from loop.traffic import Account, Caller
from loop.watch import watch
from loop.workspace import workspace

_LONG_AGO = datetime(1, 1, 2, tzinfo=UTC)


@dataclass
class RunSummary:
    """What a run did: the parts of its JSON object, and what went wrong."""

    parts: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The run's JSON object."""
        return {**self.parts, "failures": self.failures}

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note a failure when something that must hold does not."""
        if not holds:
            self.failures.append(otherwise)


def run(project: Project, task: Task, *, days: int | None, steps: Steps) -> RunSummary:
    """Do it all once; see the module's text.

    Args:
        project: what is run, and where.
        task: the policy.
        days: of serving; None is as many as its release is expected to take and two more.
        steps: told what is being done.

    Raises:
        SkewlessError: a step could not be tried; what earlier steps made is kept, and running again starts over.
    """
    summary = RunSummary()
    with workspace(project.locations, task.name, steps.say):
        summary.parts["ingest"] = {"landed": {}, "quarantined": {}}
        if project.lands_itself(task):
            with steps.step("ingest raw data"):
                summary.parts["ingest"] = project.ingest(task, steps.say).to_dict()
        with steps.step("apply feature definitions"):
            start_over(task)
            apply(task)
            forget_predictions(task, project.locations)
        period = plan_period(task, days)
        steps.say(f"{(period.end - period.cutoff).days} days of serving: {period.told}")
        engine = project.open_state()
        with steps.step(f"train on what was known at {period.cutoff:%F %H:%M} UTC"):
            first, entered = retrain(project, task, engine, now=period.cutoff, say=steps.say)
        summary.parts |= first.to_dict()
        if entered is None:
            failed = [gate["name"] for gate in summary.parts["gates"] if gate["verdict"] != "pass"]
            summary.failures.append(f"version {first.version} was rejected by its gates: {', '.join(failed)}")
            return summary
        account = Account()
        _serve(project, task, engine, period, account, summary, steps)
        _close_the_books(project, task, account, summary)
    summary.parts["seconds"] = steps.seconds
    return summary


def _serve(
    project: Project,
    task: Task,
    engine: Engine,
    period: Period,
    account: Account,
    summary: RunSummary,
    steps: Steps,
) -> None:
    from serving.start import start

    rollouts = open_rollouts(engine, task, project.locations)
    store = open_features(task)
    with steps.step("start serving"):
        handle = start(
            project.root, project.locations.data, port=_free_port(), clock="request", tasks=[task.name], guarded=False
        )
    with handle:
        steps.say(f"{handle.url}")
        caller = Caller(handle.url, task, account)
        climb = Climb(rollouts, project.locations, store, caller, steps.say)
        clock = VirtualClock(period.cutoff)
        jobs = Jobs(task, project.locations, engine)
        live = Live(task, clock, caller, Materializer(store, _LONG_AGO), climb, jobs)
        with steps.step(f"serve {period.cutoff:%F} to {period.end:%F}, hour by hour"):
            live.until(period.end, steps)
        summary.parts["features"] = {"rows_materialized": live.written, "views": len(store.list_all_feature_views())}
        deployment = rollouts.current()
        champion = deployment.champion if deployment else 0
        summary.expect(champion > 0, "no version became champion: see the rollout's history")
        if champion:
            with steps.step("monitor"):
                report, decision = watch(project, task, engine, now=period.end, say=steps.say)
                summary.parts |= {"monitoring": report.to_dict(), "decision": decision.to_dict()}
            with steps.step("retrain on the latest window"):
                second, entered = retrain(project, task, engine, now=period.end, say=steps.say)
                summary.parts["retraining"] = second.to_dict()["training"] | {"gates": second.to_dict()["gates"]}
            if entered is not None:
                caller.wait_for(entered.deployment.generation)
                with steps.step(f"mirror version {second.version} in shadow until {period.last:%F %H:%M}"):
                    live.until(period.last, steps)
        caller.close()
    if jobs.rows:
        summary.parts["batch"] = {"predictions": jobs.rows}
    summary.parts["rollout"] = {
        "moves": [event.to_dict() for event in rollouts.history()],
        "aliases": climb.aliases(),
        "drill_passed": climb.drill_passed,
    }


def _close_the_books(project: Project, task: Task, account: Account, summary: RunSummary) -> None:
    """After serving has stopped: everything answered is logged, and everything logged is what training would see."""
    from monitoring.skew import audit

    kept = balance(project.locations.predictions(task.name))
    skew = audit(task, project.locations)
    summary.parts["serving"] = account.to_dict()
    summary.parts["log"] = {"answered": kept.answered, "logged": kept.logged, "lost": kept.lost}
    summary.parts["skew"] = {"checked": skew.checked, "mismatches": skew.mismatches, "rows": skew.rows}
    summary.expect(kept.balanced, f"the log does not add up: {kept}")
    summary.expect(kept.lost == 0, f"{kept.lost} predictions were answered but not logged")
    summary.expect(
        kept.answered == account.answered_rows,
        f"callers saw {account.answered_rows} answers, the log says {kept.answered}",
    )
    summary.expect(skew.mismatches == 0, f"{skew.mismatches} logged values differ from what training would see")
    summary.expect(account.failed == 0, f"{account.failed} requests failed")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
