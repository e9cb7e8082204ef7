"""The model card's plots, each from what an evaluation says as plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from contracts.page import BLUE, GREEN, GREY, ORANGE, dot
from contracts.plot import Plot
from training.metrics import NEVER

_OTHERS = {"baseline": ("naive baseline", GREY), "champion": ("champion", ORANGE), "last_month": ("last month", GREEN)}
_MOST_GROUPS = 24


def rankings(evaluation: Mapping[str, Any]) -> list[str]:
    """ROC and precision-recall curves."""
    found = evaluation["ranking"]
    base = evaluation["positives"] / evaluation["rows"]
    roc = Plot((0, 1), (0, 1), x_name="false alarms among the negatives")
    roc.straight((0, 0), (1, 1), GREY, dashed=True)
    roc.line(found["roc"], BLUE)
    pr = Plot((0, 1), (0, 1), x_name="found among the positives (recall)")
    pr.straight((0, base), (1, base), GREY, dashed=True)
    pr.line(found["precision_recall"], BLUE)
    return [
        roc.figure("ROC", "Positives found (upwards) for the false alarms they cost; dashed: guessing."),
        pr.figure(
            "Precision and recall",
            f"Share of alarms that are right (upwards) by share of positives found; dashed: the base rate {base:.1%}.",
        ),
    ]


def reliability(evaluation: Mapping[str, Any]) -> str:
    """Predicted against observed rates."""
    bins = evaluation["reliability"]
    most = max([0.1, *(each["high"] for each in bins), *(each["predicted"] for each in bins)])
    plot = Plot((0, most), (0, most), x_name="probability predicted")
    plot.straight((0, 0), (most, most), GREY, dashed=True)
    plot.line([(each["predicted"], each["observed"]) for each in bins], BLUE)
    for each in bins:
        plot.straight((each["predicted"], each["low"]), (each["predicted"], each["high"]), BLUE)
        title = f"predicted {each['predicted']:.3f}, observed {each['observed']:.3f} in {each['rows']:,} cases"
        plot.dot(each["predicted"], each["observed"], BLUE, title)
    return plot.figure(
        "Reliability",
        f"What happened (upwards) where so much was predicted, {len(bins)} bins of about equally many cases with 95 % "
        "intervals; dashed: perfect.",
    )


def costs(evaluation: Mapping[str, Any], currency: str) -> str:
    """Cost a case over thresholds, and the threshold in use."""
    points = [each for each in evaluation["costs"]["points"] if each["threshold"] < NEVER]
    threshold = evaluation["threshold"]
    right = max([1e-6, *(each["threshold"] for each in points)])
    most = max(max(each["validation"], each["holdout"]) for each in points)
    plot = Plot((0, right), (0, most * 1.05), x_name="threshold: the model acts from this probability on")
    plot.line([(each["threshold"], each["validation"]) for each in points], GREY)
    plot.line([(each["threshold"], each["holdout"]) for each in points], BLUE)
    if threshold <= right:
        plot.straight((threshold, 0), (threshold, most * 1.05), ORANGE, dashed=True)
        cost = evaluation["cost_per_case"]["model"]["value"]
        plot.dot(threshold, cost, ORANGE, f"in use: {threshold:.4f}, {cost:.4f} {currency} a case")
    return plot.figure(
        "Cost by threshold",
        f"{currency} a case on the holdout {dot(BLUE)} and on the validation rows {dot(GREY)} that the threshold in "
        f"use {dot(ORANGE)} was chosen on.",
    )


def periods(evaluation: Mapping[str, Any], metric: str) -> str:
    """The primary metric by stretch of the holdout."""
    found = evaluation["periods"]
    names = [name for name in _OTHERS if any(name in each["others"] for each in found)]
    values = [value for each in found if each["metric"] for value in each["metric"].values()]
    values += [value for each in found for value in each["others"].values()]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.05 * (high - low or 1)
    step = max(1, len(found) // 6)
    ticks = [(at, each["start"][5:10]) for at, each in enumerate(found) if at % step == 0]
    plot = Plot((-0.5, len(found) - 0.5), (low - room, high + room), x_name="begins", ticks=ticks)
    for name in names:
        plot.line(
            [(at, each["others"][name]) for at, each in enumerate(found) if name in each["others"]], _OTHERS[name][1]
        )
    judged = [(at, each["metric"]) for at, each in enumerate(found) if each["metric"]]
    plot.line([(at, metric["value"]) for at, metric in judged], BLUE)
    for at, each in judged:
        plot.straight((at, each["low"]), (at, each["high"]), BLUE, width=2)
        plot.dot(
            at, each["value"], BLUE, f"{found[at]['start'][:10]}: {each['value']:.4f}, {found[at]['rows']:,} cases"
        )
    legend = ", ".join(f"{_OTHERS[name][0]} {dot(_OTHERS[name][1])}" for name in names)
    length = "week" if found and found[0]["days"] == 7 else "day"
    return plot.figure(
        f"{metric} by {length} of the holdout", f"This version {dot(BLUE)} with 95 % intervals, {legend}."
    )


def slices(evaluation: Mapping[str, Any], metric: str) -> list[str]:
    """The primary metric by group, a plot a column."""
    whole = evaluation["metrics"][metric]["value"]
    figures = []
    for column in evaluation["slices"]:
        judged = [group for group in column["groups"] if group["metric"]]
        if not judged:
            continue
        judged = sorted(judged, key=lambda group: group["metric"]["value"])
        left_out = len(judged) - _MOST_GROUPS
        if left_out > 0:
            judged = judged[: _MOST_GROUPS // 2] + judged[-_MOST_GROUPS // 2 :]
        ends = [whole, *(group["metric"][end] for group in judged for end in ("low", "high"))]
        names = [f"{_short(group['value'])} ({group['rows']:,})" for group in judged]
        room = 0.03 * (max(ends) - min(ends))
        plot = Plot((min(ends) - room, max(ends) + room), rows=names, x_name=metric)
        plot.straight((whole, -0.5), (whole, len(judged) - 0.5), GREY, dashed=True)
        for at, group in enumerate(judged):
            found = group["metric"]
            plot.straight((found["low"], at), (found["high"], at), BLUE, width=2)
            plot.dot(
                found["value"],
                at,
                BLUE,
                f"{group['value']}: {found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]",
            )
        more = f" {left_out} in the middle are left out." if left_out > 0 else ""
        figures.append(
            plot.figure(f"By {column['column']}", f"With cases and 95 % intervals; dashed: all cases.{more}")
        )
    return figures


def latency(evaluation: Mapping[str, Any], limit: float) -> str:
    """Time of a call by its rows."""
    found = evaluation["latency"]
    ends = [each[end] for each in found for end in ("p50", "p99")] + [limit]
    low, high = min(ends) * 0.8, max(ends) * 1.2
    ticks = [(10.0**power, f"{10.0**power:g}") for power in range(-4, 6) if low <= 10.0**power <= high]
    names = [f"{each['rows']:,} row{'s' if each['rows'] > 1 else ''}" for each in found]
    plot = Plot((low, high), rows=names, x_name="milliseconds, each step ten times the last", ticks=ticks, log=True)
    plot.straight((limit, -0.5), (limit, 0.5), ORANGE, dashed=True)
    for at, each in enumerate(found):
        plot.straight((each["p50"], at), (each["p99"], at), BLUE, width=2)
        for end in ("p50", "p99"):
            plot.dot(each[end], at, BLUE, f"{end} {each[end]:.3f} ms over {each['calls']} calls")
    return plot.figure(
        "Time of a call",
        "Median and 99th percentile of the packaged model alone; dashed: its share of the budget for one row, "
        f"{limit:g} ms.",
    )


def predictions(evaluation: Mapping[str, Any]) -> str:
    """A regression's predicted values and what came of them."""
    bins, shown = evaluation["predicted"], evaluation["shown"]
    across = [each["predicted"] for each in bins]
    ends = [each[end] for each in bins for end in ("low", "high", "observed")]
    x, y = (min(across), max(across)), (min(ends), max(ends))
    plot = Plot(x, y, x_name="predicted")
    for value, outcome in shown:
        if x[0] <= value <= x[1] and y[0] <= outcome <= y[1]:
            plot.dot(value, outcome, GREY, f"predicted {value:.4g}, was {outcome:.4g}", radius=1.5)
    plot.straight((max(x[0], y[0]),) * 2, (min(x[1], y[1]),) * 2, ORANGE, dashed=True)
    for each in bins:
        plot.straight((each["predicted"], each["low"]), (each["predicted"], each["high"]), BLUE)
        title = f"predicted {each['predicted']:.4g}, was {each['observed']:.4g} on average over {each['rows']:,} cases"
        plot.dot(each["predicted"], each["observed"], BLUE, title, radius=3)
    return plot.figure(
        "Predicted and actual",
        f"Mean outcome {dot(BLUE)} where so much was predicted, {len(bins)} bins of equally many cases; bars: the "
        f"middle 80 % of outcomes; {dot(GREY)} single cases; dashed: perfect on average.",
    )


def coverage(intervals: Sequence[Mapping[str, Any]], quantiles: Sequence[tuple[float, Mapping[str, float]]]) -> str:
    """What share of outcomes each interval and quantile holds, beside what it should."""
    rows = [(f"{each['low']:g} to {each['high']:g}", each["nominal"], each["found"]) for each in intervals]
    rows += [(f"at most {level:g}", level, found) for level, found in quantiles]
    plot = Plot((0, 1), rows=[name for name, _, _ in rows], x_name="share of outcomes")
    for at, (name, nominal, found) in enumerate(rows):
        plot.straight((found["low"], at), (found["high"], at), BLUE, width=2)
        plot.dot(nominal, at, ORANGE, f"{name}: should hold {nominal:.1%}")
        plot.dot(found["value"], at, BLUE, f"{name}: holds {found['value']:.1%}")
    return plot.figure(
        "Coverage",
        f"Outcomes within each interval and below each quantile {dot(BLUE)}, and what it says {dot(ORANGE)}.",
    )


def _short(value: str) -> str:
    text = value or "null"
    return text if len(text) <= 18 else text[:17] + "…"
