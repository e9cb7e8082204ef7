"""Commands that rehearse on the running endpoint: a load test, and a rollback drill."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

import click

from contracts.clock import SystemClock
from contracts.errors import SkewlessError
from loop.command import INSTANT, as_json, task_argument, told
from loop.project import Project
from loop.terminal import Steps, print_facts, print_json, print_table

url_option = click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Where it is served.")
token_option = click.option("--token", envvar="SKEWLESS_TOKEN", help="Bearer token; better in SKEWLESS_TOKEN.")
at_option = click.option(
    "--at", type=INSTANT, help="The instant to write down; default: now. For data from another time."
)
_DRILL_ROWS = 5


class NotDeployedYet(SkewlessError, LookupError):
    """A rehearsal of a task that nothing serves."""


@click.command()
@task_argument
@url_option
@token_option
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Requests a second; default: the task's budget.")
@click.option("--requests", type=click.IntRange(100), help="How many; default: rollout.load_test_requests.")
@at_option
@as_json
@click.pass_obj
@told
def loadtest(
    project: Project,
    task: str | None,
    url: str,
    token: str | None,
    rate: float | None,
    requests: int | None,
    at: datetime | None,
    json_: bool,
) -> None:
    """Ask the running endpoint real questions at the traffic the task expects; the figures are evidence of a release.

    Requests go out on a schedule that does not wait for answers, and latency counts from the instant each was due.
    Exit status: 0 the p99 budget was kept, 1 it was not, or requests failed.
    """
    from loop.loadtest import as_asked, hold, known_questions
    from serving.rollout import Rollouts

    steps, chosen, now = Steps(), project.task(task), at or SystemClock().now()
    engine = project.open_state()
    deployment = Rollouts(engine, chosen).current()
    if deployment is None:
        raise NotDeployedYet(f"Task {chosen.name!r} was never deployed.", hint=f"`skewless retrain {chosen.name}`.")
    with steps.step(f"load test of {chosen.name}"), steps.gauge("requests answered") as progress:
        rows = as_asked(chosen, url, known_questions(chosen, project.locations, now), token)
        loaded = hold(
            engine,
            chosen,
            project.locations,
            deployment,
            url,
            rows,
            at=now,
            rate=rate,
            requests=requests,
            token=token,
            progress=progress,
        )
    test, budget = loaded.test, chosen.budget.p99_ms
    kept = test.quantiles["p99"][0] <= budget and not test.failed and not test.refused
    report = test.to_dict() | {"budget_p99_ms": budget, "kept": kept, "page": str(loaded.page)}
    if json_:
        print_json({"load_test": report})
    else:
        _print(report)
    if not kept:
        sys.exit(1)


def _print(report: dict[str, Any]) -> None:
    rows = [(name, value, f"{low:.2f} to {high:.2f}") for name, (value, low, high) in report["quantiles"].items()]
    print_table("Latency from the instant due, ms", ("", "value", "95 % interval"), rows)
    names = ("requests", "rate", "seconds", "failed", "refused", "canary_requests", "canary_p99_ms", "late_p99_ms")
    print_facts("Load test", {name: report[name] for name in (*names, "budget_p99_ms", "kept", "page")})


@click.command()
@task_argument
@url_option
@token_option
@at_option
@as_json
@click.pass_obj
@told
def drill(project: Project, task: str | None, url: str, token: str | None, at: datetime | None, json_: bool) -> None:
    """Rehearse a rollback on the running endpoint: the challenger is dropped, watched from outside, and enters again.

    It begins again in shadow, so hold the drill early. Exit status: 0 it passed, 1 it did not.
    """
    from loop.loadtest import as_asked, known_questions
    from loop.releases import open_rollouts
    from loop.traffic import Caller
    from serving.drill import last_drill, rollback_drill

    chosen, now = project.task(task), at or SystemClock().now()
    engine = project.open_state()
    rollouts = open_rollouts(engine, chosen, project.locations)
    rows = as_asked(chosen, url, known_questions(chosen, project.locations, now), token)[-_DRILL_ROWS:]
    caller = Caller(url, chosen, token=token)
    passed = rollback_drill(rollouts, caller.wait_for, lambda: caller.ask(rows), now)
    caller.close()
    found = last_drill(engine, chosen.name)
    if json_:
        print_json({"drill": {"passed": passed, **found}})
    else:
        print_facts("Rollback drill", {"passed": passed, **found})
    if not passed:
        sys.exit(1)
