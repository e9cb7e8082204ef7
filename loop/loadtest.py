"""A load test of one task: the real endpoint, the task's expected traffic, questions that were really asked."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import orjson
from sqlalchemy import Engine

from contracts.errors import SkewlessError
from contracts.locations import Locations
from contracts.predictions import REHEARSAL, read_predictions
from contracts.spine import read_spine
from contracts.task import Task
from loop.load_driver import drive, poisson_schedule
from loop.load_report import summarized, write_page
from loop.traffic import request_rows
from serving.load_tests import LoadTest, record_load_test
from serving.rollout_state import Deployment

_NEWEST = 2000
_LONG_AGO = datetime(1, 1, 2, tzinfo=UTC)


class NothingToAsk(SkewlessError, LookupError):
    """Neither the log nor the spine holds a question of the task."""


class EndpointRefuses(SkewlessError, ConnectionError):
    """The endpoint does not answer the task's own questions."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A load test that was held."""

    test: LoadTest
    page: Path


def known_questions(task: Task, locations: Locations, now: datetime) -> list[dict[str, Any]]:
    """The newest questions that were asked and answered, each with its instant; of the spine where none was yet.

    They carry no case: a rehearsal's answers are to be joined with no outcome.

    Raises:
        NothingToAsk: there are none.
        SpineError: the spine cannot be read.
    """
    logged = read_predictions(locations.predictions(task.name), vectors=False)
    if logged.num_rows:
        newest = logged.slice(max(0, logged.num_rows - _NEWEST)).select(["inputs", "event_timestamp"]).to_pylist()
        stamp = task.spine.event_timestamp
        return [orjson.loads(row["inputs"]) | {stamp: row["event_timestamp"].isoformat()} for row in newest]
    spine = read_spine(task, start=_LONG_AGO, end=now, known_at=_LONG_AGO)
    if not spine.num_rows:
        raise NothingToAsk(
            f"Task {task.name!r}: no prediction was logged, and the spine has no case before {now:%F %H:%M}.",
            hint="land the spine's tables, or let an application ask first.",
        )
    rows = request_rows(task, spine.slice(max(0, spine.num_rows - _NEWEST)))
    return [{name: value for name, value in row.items() if name != task.spine.id} for row in rows]


def as_asked(task: Task, url: str, rows: Sequence[dict[str, Any]], token: str | None) -> list[dict[str, Any]]:
    """The rows as this endpoint wants them: with their instants where it replays, without where its clock says it.

    Raises:
        EndpointRefuses: it takes them neither way, or nobody listens.
    """
    bare = [{name: value for name, value in row.items() if name != task.spine.event_timestamp} for row in rows]
    told = ""
    for each in (bare, list(rows)):
        try:
            content = {"rows": each[-1:], "request_id": f"{REHEARSAL}{secrets.token_hex(8)}"}
            headers = {"authorization": f"Bearer {token}"} if token else {}
            found = httpx.post(_predict(url, task), json=content, headers=headers, timeout=30)
        except httpx.TransportError as error:
            raise EndpointRefuses(f"Nobody answers at {url}: {error}.", hint="`skewless serve`, then --url.") from error
        if found.status_code == 200:
            return each
        told = found.text[:300]
    raise EndpointRefuses(f"{url} does not answer task {task.name!r}: {told}", hint="is a version deployed and ready?")


def hold(
    engine: Engine,
    task: Task,
    locations: Locations,
    deployment: Deployment,
    url: str,
    rows: Sequence[dict[str, Any]],
    *,
    at: datetime,
    rate: float | None = None,
    requests: int | None = None,
    token: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Loaded:
    """Ask on a schedule, put the figures on record and write the page.

    Args:
        engine: the shared state.
        task: whose budget says how much traffic there is, and how quick an answer must be.
        locations: where the page goes.
        deployment: what serves meanwhile.
        url: base of the endpoint.
        rows: questions as this endpoint wants them, asked one a request, over and over.
        at: the instant on record.
        rate: requests a second; the task's own when not given.
        requests: how many; what the task's rollout asks for when not given.
        token: sent as a bearer token.
        progress: told (answered, all).
    """
    rate = rate or task.budget.requests_per_second
    count = requests or max(task.rollout.load_test_requests, 100)
    run = secrets.token_hex(4)
    bodies = [
        orjson.dumps({"rows": [row], "request_id": f"{REHEARSAL}{run}-{i}"})
        for i, row in enumerate(islice(cycle(rows), count))
    ]
    due_s = poisson_schedule(rate, count, task.training.seed)
    driven = drive(_predict(url, task), bodies, due_s, token=token, progress=progress)
    test = summarized(driven, rate)
    page = locations.load_tests(task.name) / f"{deployment.generation}-{run}.html"
    write_page(page, f"Load test of {task.name}, generation {deployment.generation}", driven, test, task.budget.p99_ms)
    record_load_test(engine, deployment, test, at)
    return Loaded(test, page)


def _predict(url: str, task: Task) -> str:
    return f"{url.rstrip('/')}/v1/tasks/{task.name}/predict"
