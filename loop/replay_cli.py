"""`skewless replay`: its options, and its table."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import click

from contracts.clock import parse_instant
from loop.command import SPAN, as_json, task_argument, told
from loop.project import Project
from loop.terminal import Steps, print_facts, print_json, print_table, show

_MONTH = re.compile(r"\d{4}-\d{2}")


class _Instant(click.ParamType):
    """An instant, or a month: its beginning, or with `whole` its end."""

    name = "month|instant"

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            if not _MONTH.fullmatch(str(value)):
                return parse_instant(str(value))
            first = parse_instant(f"{value}-01")
            return (first + timedelta(days=32)).replace(day=1) if self._whole else first
        except ValueError as error:
            self.fail(f"{error}; write 2013-04 or 2013-04-01.", param, ctx)


@click.command()
@task_argument
@click.option(
    "--from",
    "start",
    type=_Instant(whole=False),
    required=True,
    help="A month or an instant (UTC): the first version is trained on what was known then.",
)
@click.option(
    "--to", "end", type=_Instant(whole=True), required=True, help="Through this month, or until this instant."
)
@click.option(
    "--policies",
    default="never,monthly,drift,decay",
    show_default=True,
    help="Of never, weekly, monthly, quarterly, drift, decay, task; separated by commas.",
)
@click.option("--served", help="The policy that is served through the online store as well; default: the first.")
@click.option("--every", type=SPAN, default="1d", show_default=True, help="How often monitoring is run.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=lambda: min(4, os.cpu_count() or 1),
    show_default="one a core, 4 at most",
    help="Processes at work.",
)
@as_json
@click.pass_obj
@told
def replay(
    project: Project,
    task: str | None,
    start: datetime,
    end: datetime,
    policies: str,
    served: str | None,
    every: timedelta,
    jobs: int,
    json_: bool,
) -> None:
    """Live months of history again under several retraining policies, and compare what each came to.

    Everything is the real thing on a virtual clock: answers, log, releases, monitoring, decisions, trainings. Nothing
    of the project's own is touched. One that was ended goes on where it was. Exit status 1 if a vector served through
    the online store is not what training sees.

    \b
    Examples:
      skewless replay late_arrival --from 2013-04 --to 2013-12
      skewless replay late_arrival --from 2013-04 --to 2013-06 --policies never,weekly --json
    """
    from loop.replay import replay as live_again
    from loop.replay_policies import UnknownPolicy, parse_policies

    chosen = parse_policies([name.strip() for name in policies.split(",") if name.strip()])
    if not chosen:
        raise click.BadParameter("names no policy", param_hint="--policies")
    if start >= end:
        raise click.BadParameter(f"{end:%F %H:%M} is not after {start:%F %H:%M}", param_hint="--to")
    if served is not None and served not in [policy.name for policy in chosen]:
        raise UnknownPolicy(f"--served names {served!r}, which is not replayed.", hint="name one of --policies.")
    shown = next((policy for policy in chosen if policy.name == served), chosen[0])
    steps = Steps()
    found = live_again(
        project,
        project.task(task),
        start=start,
        end=end,
        policies=chosen,
        served=shown,
        every=every,
        jobs=jobs,
        steps=steps,
    )
    steps.say(f"page: {found.page}")
    if json_:
        print_json(found.to_dict())
    else:
        print_replay(found.to_dict())
    if found.failures:
        sys.exit(1)


def print_replay(report: Mapping[str, Any]) -> None:
    """Policies side by side, each month of them, and whether each helped."""
    metric, currency = report["metric"], report["currency"]
    rows = [
        (
            each["policy"],
            each["metric"],
            each["cost"],
            f"{each['retrainings']} ({each['promotions']})",
            each["alerts"],
            _detected(each["detection"]),
            each["estimator"]["mean_error"],
            each["skew_mismatches"],
        )
        for each in report["policies"]
    ]
    columns = ("policy", metric, f"cost, {currency}", "retrained (promoted)", "alerts", "decay seen after")
    title = f"{report['task']}, {report['from'][:10]} to {report['to'][:10]}: {report['cases']:,} cases"
    print_table(title, (*columns, "estimate off by", "skew"), rows)
    names = [each["policy"] for each in report["policies"]]
    by_month = zip(*(each["months"] for each in report["policies"]), strict=True)
    rows = [
        (month[0]["month"], month[0]["cases"], *(_of_month(each) for each in month)) for month in map(list, by_month)
    ]
    print_table(f"By month: {metric}, {currency} a case, retrainings", ("month", "cases", *names), rows)
    told = [(each["policy"], each["verdict"]) for each in report["policies"] if "verdict" in each]
    if told:
        print_table("Was it worth it?", ("policy", ""), told)
    skew = report["skew"]
    facts: dict[str, Any] = {
        "served through the online store": f"{report['served']}: {skew['hours']:,} hours, {skew['answered']:,} answers",
        "skew": f"{skew['mismatches']:,} mismatches in {skew['values']:,} values of {skew['vectors']:,} vectors",
        "answers that differ from the log": skew["answers_differ"],
    }
    facts |= {f"note {at}": note for at, note in enumerate(report["notes"], 1)}
    facts |= {f"failed {at}": failure for at, failure in enumerate(report["failures"], 1)}
    print_facts("The replay", facts)


def _of_month(month: Mapping[str, Any]) -> str:
    return f"{show(month['metric'])}  {show(month['cost_per_case'])}  {month['retrainings']}"


def _detected(found: Mapping[str, Any]) -> str:
    if not found["episodes"]:
        return "no decay"
    seen = f"{found['detected']} of {found['episodes']}"
    return f"{found['mean_delay_days']:.1f} days ({seen})" if found["detected"] else f"never ({seen})"
