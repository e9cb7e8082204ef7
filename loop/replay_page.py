"""A replay as one HTML page: policies side by side, by month, and whether each was worth it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from contracts.page import BLUE, GREEN, GREY, ORANGE, dot, html_page, table, tag
from contracts.plot import Plot
from contracts.task import LOWER_IS_BETTER, Task

_COLOURS = (GREY, BLUE, ORANGE, GREEN)
"""Of policies in order; beyond, they begin again."""


def replay_page(report: Mapping[str, Any], task: Task) -> str:
    """The page's text.

    Args:
        report: the replay's JSON object.
        task: names the floor and the prices.
    """
    policies, metric, currency = report["policies"], report["metric"], report["currency"]
    lower = "lower is better" if metric in LOWER_IS_BETTER else "higher is better"
    parts = [
        f"<h1><code>{escape(report['task'])}</code> under {len(policies)} retraining policies</h1>",
        f"<p>{escape(task.description)}</p>",
        f"<p>{report['from'][:10]} to {report['to'][:10]}, {report['cases']:,} cases; monitored every "
        f"{escape(report['watched_every'])}. Every policy answered the same cases from the same vectors and began "
        "with the same version.</p>",
        "<h2>What each came to</h2>",
        _summary(policies, metric, currency),
        "<h2>Was it worth it?</h2>",
        _verdicts(policies),
        "<h2>By month</h2>",
        "<p>Where policies came to the same, the line of the later one covers the others.</p>",
        f'<div class="plots">{"".join(_plots(policies, metric, currency, lower, task))}</div>',
        _months(policies, metric, currency),
        "<h2>Trainings</h2>",
        _trainings(policies),
        "<h2>Decay, and how soon it was seen</h2>",
        _detection(policies, task, metric),
        "<h2>Is it what training sees?</h2>",
        _skew(report),
    ]
    if report["notes"]:
        parts += ["<h2>Notes</h2>", "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in report["notes"]) + "</ul>"]
    return html_page(f"{report['task']}: retraining policies", parts)


def _summary(policies: Sequence[Mapping[str, Any]], metric: str, currency: str) -> str:
    heads = ("policy", "", metric, f"cost, {currency}", "a case", "retrainings", "promoted", "rejected", "alerts")
    rows = [
        (
            f"{dot(_colour(at))}&nbsp;<strong>{escape(each['policy'])}</strong>",
            escape(each["description"]),
            _number(each["metric"]),
            _number(each["cost"]),
            _number(each["cost_per_case"]),
            f"{each['retrainings']:,}",
            f"{each['promotions']:,}",
            f"{each['rejected']:,}",
            f"{each['alerts']:,}",
        )
        for at, each in enumerate(policies)
    ]
    return table(heads, rows, numbers=range(2, 9))


def _verdicts(policies: Sequence[Mapping[str, Any]]) -> str:
    words = {"It helped": "pass", "It did harm": "fail"}
    rows = []
    for each in policies:
        if "verdict" in each:
            said, _, _ = each["verdict"].partition(":")
            kind = words.get(said, "inconclusive")
            word = {"pass": "helped", "fail": "did harm"}.get(kind, "did not help")
            rows.append((escape(each["policy"]), tag(kind, word), escape(each["verdict"])))
    if not rows:
        return "<p>One policy alone is compared with nothing.</p>"
    rule = (
        "<p>In brackets 95 % intervals over whole days drawn: a policy whose interval holds 0 may owe it to chance.</p>"
    )
    return rule + table(("policy", "", ""), rows)


def _plots(policies: Sequence[Mapping[str, Any]], metric: str, currency: str, lower: str, task: Task) -> list[str]:
    floor = task.monitoring.performance_floor
    names = ", ".join(f"{escape(each['policy'])} {dot(_colour(at))}" for at, each in enumerate(policies))
    return [
        _lines(
            policies,
            lambda month: month["metric"],
            f"{metric} by month",
            f"{names}; {lower}; dashed: the floor of monitoring, {floor:g}.",
            level=floor,
        ),
        _lines(
            policies,
            lambda month: month["cost_per_case"],
            f"Cost by month, {currency} a case",
            f"{names}; what the answers of the month cost in the end.",
        ),
        _lines(
            policies,
            lambda month: month["retrainings"],
            "Retrainings by month",
            f"{names}; promoted or not.",
            counts=True,
        ),
        _lines(policies, lambda month: month["alerts"], "Alerts by month", f"{names}.", counts=True),
    ]


def _lines(
    policies: Sequence[Mapping[str, Any]],
    value: Callable[[Mapping[str, Any]], float | None],
    title: str,
    caption: str,
    *,
    level: float | None = None,
    counts: bool = False,
) -> str:
    found = [value(month) for each in policies for month in each["months"]]
    known = [each for each in [*found, level] if each is not None]
    low, high = (0.0 if counts else min(known), max(known)) if known else (0.0, 1.0)
    room = 0.05 * (high - low or 1)
    first = policies[0]["months"]
    step = max(1, len(first) // 6)
    ticks = [(at, month["month"][2:]) for at, month in enumerate(first) if at % step == 0]
    plot = Plot(
        (-0.3, max(len(first) - 0.7, 0.3)), (low - room, high + room), x_name="month", ticks=ticks, whole=counts
    )
    if level is not None:
        plot.straight((-0.3, level), (max(len(first) - 0.7, 0.3), level), ORANGE, dashed=True)
    for at, each in enumerate(policies):
        points = [(float(x), value(month)) for x, month in enumerate(each["months"])]
        plot.line([(x, y) for x, y in points if y is not None], _colour(at))
        for (x, y), month in zip(points, each["months"], strict=True):
            if y is not None:
                plot.dot(
                    x, y, _colour(at), f"{each['policy']}, {month['month']}: {_number(y)}, {month['cases']:,} cases"
                )
    return plot.figure(title, caption)


def _months(policies: Sequence[Mapping[str, Any]], metric: str, currency: str) -> str:
    tables = []
    for each in policies:
        rows = [
            (
                month["month"],
                f"{month['cases']:,}",
                _number(month["metric"]),
                _number(month["cost"]),
                _number(month["cost_per_case"]),
                str(month["retrainings"]),
                str(month["alerts"]),
            )
            for month in each["months"]
        ]
        heads = ("month", "cases", metric, f"cost, {currency}", "a case", "retrainings", "alerts")
        tables.append(f"<h3>{escape(each['policy'])}</h3>" + table(heads, rows, numbers=range(1, 7)))
    return f"<details><summary>In figures</summary>{''.join(tables)}</details>"


def _trainings(policies: Sequence[Mapping[str, Any]]) -> str:
    words = {"candidate": "pass", "rejected": "fail"}
    rows = [
        (
            escape(each["policy"]),
            escape(done["at"][:16].replace("T", " ")),
            escape(done["reason"]),
            str(done["version"] or ""),
            tag(words.get(done["status"], "inconclusive"), done["status"]),
        )
        for each in policies
        for done in each["retrained"]
    ]
    if not rows:
        return "<p>No policy asked for a training after the first.</p>"
    every = table(("policy", "at", "reason", "version", "gates"), rows)
    return f"<details><summary>{len(rows)} trainings</summary>{every}</details>"


def _detection(policies: Sequence[Mapping[str, Any]], task: Task, metric: str) -> str:
    rules = task.monitoring
    rows = []
    for each in policies:
        found, estimator = each["detection"], each["estimator"]
        delays = [f"{day:.1f}" for day in found["delay_days"] if day is not None]
        rows.append(
            (
                escape(each["policy"]),
                str(found["episodes"]),
                str(found["detected"]),
                ", ".join(delays),
                ""
                if estimator["mean_error"] is None
                else f"{_number(estimator['mean_error'])} ({estimator['chunks']})",
            )
        )
    told = (
        f"<p>Decay begins when {rules.consecutive} chunks in a row are beyond the floor ({escape(metric)} "
        f"{rules.performance_floor:g}), judged on all outcomes. Monitoring has to wait for them. The "
        "estimator's error is the mean distance of what was estimated without outcomes from what came.</p>"
    )
    heads = ("policy", "episodes of decay", "seen", "days until it was", "estimator off by (chunks)")
    return told + table(heads, rows, numbers=(1, 2))


def _skew(report: Mapping[str, Any]) -> str:
    skew = report["skew"]
    good = not (skew["mismatches"] or skew["answers_differ"])
    word = tag("pass", "no skew") if good else tag("fail", "skew")
    return (
        f"<p>{word} <code>{escape(report['served'])}</code> was served once more through the online store: "
        f"{skew['hours']:,} hours were materialized one after another and {skew['answered']:,} cases answered. "
        f"{skew['mismatches']:,} of {skew['values']:,} values of {skew['vectors']:,} vectors differ from their "
        f"recomputation through the training path, and {skew['answers_differ']:,} of {skew['answers']:,} answers from "
        "those the policy was judged by.</p>"
    )


def _colour(at: int) -> str:
    return _COLOURS[at % len(_COLOURS)]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.4g}"
