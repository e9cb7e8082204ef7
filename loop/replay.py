"""`skewless replay`: months of history lived under several retraining policies, and what each came to.

    1. every case of the window with its vector, read once through the training path
    2. the version that all policies begin with
    3. each policy lived hour by hour on these vectors, by the real service, log, releases, monitoring and training
    4. the served policy once more, month by month, through materialization and the online store; compared and audited
    5. figures by month, and a page

Each of these is kept whole when it is done: a replay that was killed and is started again does what is left.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from contracts.duration import show_duration
from contracts.errors import SkewlessError
from contracts.files import sha256_text, whole_file
from contracts.task import Task
from loop import replay_work as work
from loop.features import apply, open_features
from loop.project import Project
from loop.replay_life import Life
from loop.replay_policies import Policy
from loop.replay_window import months
from loop.terminal import Steps

if TYPE_CHECKING:
    from loop.replay_window import Window


class ReplayUnderWay(SkewlessError, BlockingIOError):
    """Another process lives the same replay."""


class ReplayRefused(SkewlessError, ValueError):
    """A window that there is no history for."""


@dataclass
class Replay:
    """What a replay found: the parts of its JSON object, and where its page is."""

    parts: dict[str, Any]
    page: Path
    failures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The replay's JSON object: the same for the same data, task and window."""
        return {**self.parts, "failures": self.failures}


def replay(
    project: Project,
    task: Task,
    *,
    start: datetime,
    end: datetime,
    policies: Sequence[Policy],
    served: Policy,
    every: timedelta,
    jobs: int,
    steps: Steps,
) -> Replay:
    """Live [start, end) under each policy; see the module.

    Nothing of the project's own is touched: not its online store, log, releases, versions or alerts.

    Args:
        project: whose data.
        task: the policy of everything but retraining.
        start: the first version is trained on what was known here, and serving begins.
        end: exclusive.
        policies: at least one.
        served: which of them is served through the online path as well.
        every: how often monitoring is run.
        jobs: processes at work.
        steps: told what is being done.

    Raises:
        ReplayUnderWay: the same replay is being lived by another process.
        ReplayRefused: the spine has no cases there.
        SkewlessError: a step could not be tried; what is done is kept.
    """
    _land(project, task, steps)
    told = work.as_replayed(task)
    batch = task.serving_mode[0] == "batch"
    plan = work.Plan(told, _folder(project, told, start, end, every), start, end, every, batch)
    with _alone(plan.folder):
        _prepare(plan, steps)
        with steps.step(f"live {len(policies)} policies from {start:%F} to {end:%F}"):
            _live_all(plan, policies, served, jobs, steps)
        with steps.step("compare"):
            return _compared(plan, policies, served)


def _land(project: Project, task: Task, steps: Steps) -> None:
    """The tables and the registry, where a person has not seen to them yet."""
    from asof.repository import UnappliedRegistry

    if project.lands_itself(task) and not all(where.exists() for where in task.spine.tables.values()):
        with steps.step("ingest raw data"):
            project.ingest(task, steps.say)
    try:
        open_features(task)
    except UnappliedRegistry:
        with steps.step("apply feature definitions"):
            apply(task)


def _folder(project: Project, task: Task, start: datetime, end: datetime, every: timedelta) -> Path:
    """Where this replay keeps what is done: another place for other data, definitions, rules or code."""
    from asof.fingerprint import service_fingerprint, source_files
    from training.sources import file_hashes
    from training.tracking import revision

    store = open_features(task)
    sources = [*task.spine.tables.values(), *source_files(store, task.feature_service)]
    made_with = revision()
    inputs = {
        "task": task.fingerprint_data(),
        "window": [start.isoformat(), end.isoformat(), every.total_seconds()],
        "definitions": service_fingerprint(store, task.feature_service),
        "sources": file_hashes(sources, task.feature_repo),
        "code": [made_with.code, made_with.lock_hash],
    }
    name = f"{task.name}-{start:%Y%m%d}-{end:%Y%m%d}-{sha256_text(json.dumps(inputs, sort_keys=True))[:10]}"
    return project.locations.data / "replays" / name


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ReplayUnderWay(
                f"Another process lives this replay ({folder}).", hint="wait for it, or end it: it goes on from there."
            ) from error
        yield


def _prepare(plan: work.Plan, steps: Steps) -> None:
    if not plan.window.exists():
        from loop.replay_window import write_window

        with steps.step("read every case and its vector"):
            store = open_features(plan.task)
            write_window(plan.task, store, plan.window, start=plan.start, end=plan.end, say=steps.say)
    _check_window(plan)
    if not plan.first_done.exists():
        with steps.step(f"train on what was known at {plan.start:%F}"):
            work.train_first(plan, steps.say)


def _check_window(plan: work.Plan) -> None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    stamp = plan.task.spine.event_timestamp
    found = pc.min_max(pq.read_table(plan.window, columns=[stamp], partitioning=None)[stamp]).as_py()
    grace = max(timedelta(days=1), plan.task.monitoring.chunk)
    if (
        found["max"] is None
        or found["max"] < plan.end - grace
        or found["min"] > plan.start - plan.task.training.window + grace
    ):
        has = f"from {found['min']:%F %H:%M} to {found['max']:%F %H:%M}" if found["max"] else "nowhere near"
        plan.window.unlink()
        raise ReplayRefused(
            f"Task {plan.task.name!r}: a replay of {plan.start:%F} to {plan.end:%F} needs cases from "
            f"{plan.start - plan.task.training.window:%F} on (training.window of "
            f"{show_duration(plan.task.training.window)}); the spine has them {has}.",
            hint="move --from and --to to where the history is.",
        )


def _live_all(plan: work.Plan, policies: Sequence[Policy], served: Policy, jobs: int, steps: Steps) -> None:
    """Every policy and every month of the served one that is not done yet, `jobs` at a time."""
    first = sorted(policies, key=lambda policy: policy is not served)
    lives = [policy.name for policy in first if not plan.life(policy.name).exists()]
    spans = [span for span in months(plan.start, plan.end) if not plan.month(served.name, span[0]).exists()]
    if not lives and not spans:
        return
    if jobs == 1:
        work.enter_here(plan)
        for name in lives:
            steps.say(work.live(name))
        for span in spans:
            steps.say(work.serve(served.name, *span))
        return
    context = get_context("spawn")  # a fork of a process with threads, of DuckDB and ONNX, would hang now and then
    with ProcessPoolExecutor(min(jobs, len(lives) + len(spans)), context, work.enter, (plan,)) as pool:
        waiting: set[Future[str]] = {pool.submit(work.live, name) for name in lives}

        def serve() -> None:
            waiting.update(pool.submit(work.serve, served.name, *span) for span in spans)

        if served.name not in lives:
            serve()
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for each in done:
                    told = each.result()
                    steps.say(told)
                    if told == work.LIVED.format(served.name):
                        serve()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _compared(plan: work.Plan, policies: Sequence[Policy], served: Policy) -> Replay:
    from loop.replay_figures import against, figures, read_answers, verdict
    from loop.replay_page import replay_page
    from loop.replay_window import read_window

    task = plan.task
    window = read_window(task, open_features(task), plan.window)
    lives = {policy.name: Life(**orjson.loads(plan.life(policy.name).read_bytes())) for policy in policies}
    answers = {name: read_answers(task, window, plan.log(name)) for name in lives}
    skew = _skew(plan, served)
    reference = "never" if "never" in lives else policies[0].name
    found = []
    for policy in policies:
        life = lives[policy.name]
        mine: dict[str, Any] = {"policy": policy.name, "description": policy.description}
        mine |= figures(task, answers[policy.name], life, start=plan.start, end=plan.end)
        # The hours, keys and features are the same under every policy: so is what the audit says of them.
        mine["skew_mismatches"] = skew["mismatches"]
        mine["retrained"] = life.retrainings
        if policy.name != reference:
            mine["against"] = {"policy": reference} | against(task, answers[policy.name], answers[reference])
            mine["verdict"] = verdict(task, mine, reference)
        found.append(mine)
    parts = {
        "task": task.name,
        "metric": task.success.metric,
        "currency": task.success.cost.currency,
        "from": plan.start.isoformat(),
        "to": plan.end.isoformat(),
        "watched_every": show_duration(plan.every),
        "cases": _cases(window, plan),
        "served": served.name,
        "skew": skew,
        "policies": found,
        "notes": _notes(plan, lives),
    }
    done = Replay(parts, plan.folder / "replay.html")
    if skew["mismatches"]:
        done.failures.append(f"{skew['mismatches']} values differ between the online store and the training path")
    if skew["answers_differ"]:
        done.failures.append(f"{skew['answers_differ']} answers differ between the online path and {served.name}'s log")
    with whole_file(done.page) as part:
        part.write_text(replay_page(done.to_dict(), task), encoding="utf-8")
    with whole_file(plan.folder / "replay.json") as part:
        part.write_bytes(orjson.dumps(done.to_dict(), option=orjson.OPT_INDENT_2))
    return done


def _cases(window: Window, plan: work.Plan) -> int:
    rows = window.rows(plan.start, plan.end)
    return rows.stop - rows.start


def _skew(plan: work.Plan, served: Policy) -> dict[str, Any]:
    found = [orjson.loads(plan.month(served.name, first).read_bytes()) for first, _ in months(plan.start, plan.end)]
    counts = (
        "hours",
        "materialized",
        "answered",
        "vectors",
        "values",
        "mismatches",
        "not_judged",
        "answers",
        "answers_differ",
    )
    return {name: sum(each[name] for each in found) for name in counts} | {
        "examples": [example for each in found for example in each["examples"]][:5]
    }


def _notes(plan: work.Plan, lives: Mapping[str, Life]) -> list[str]:
    notes = ["How fast an answer was is not replayed: no release waited for it."]
    if plan.batch:
        notes.append(
            "A batch task: every case is answered when it is asked about, not from an earlier job's prediction."
        )
    for name, life in lives.items():
        failed = [each for each in life.retrainings if each["status"] == "failed"]
        if failed:
            notes.append(
                f"{name}: {len(failed)} trainings could not be made, first {failed[0]['at'][:16]}: {failed[0]['error']}"
            )
        if life.refused:
            notes.append(f"{name}: {life.refused} requests were refused.")
    return notes
