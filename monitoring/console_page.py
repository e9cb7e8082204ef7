"""The console's page: what is stored of every task, laid out by one template that escapes all it is given.

Drawn on the server whole: no script, no font, no network. A template holds no decision but what to show when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from contracts.page import STYLE
from contracts.registry import ModelVersion
from monitoring import console_plots, console_words
from monitoring.console_state import CHUNKS, Served, TaskState
from monitoring.console_words import NOTHING, date, number, percent

_TEMPLATES = Path(__file__).parent / "templates"
_ROWS = 24
"""Most rows of the first heat map."""


@dataclass(frozen=True, slots=True)
class Message:
    """What became of what a person did."""

    mark: str
    """good | warn | bad"""
    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """What a person had written, kept when it could not be taken."""

    alert: int
    text: str


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    for name in ("number", "percent", "instant", "day", "age", "every", "told", "pieces"):
        environment.filters[name] = getattr(console_words, name)
    return environment


_ENVIRONMENT = _environment()
_OWN_STYLE = (_TEMPLATES / "console.css").read_text(encoding="utf-8")


def console_page(
    project: str,
    states: Sequence[TaskState],
    *,
    base: str,
    token: str,
    runs: Callable[[ModelVersion], str] | None = None,
    message: Message | None = None,
    note: Note | None = None,
) -> str:
    """The page's text.

    Args:
        project: how the project is called.
        states: of its tasks, in the order to show.
        base: path the console is mounted at, without a final slash.
        token: that a form has to send back.
        runs: a version's training run in a tracking server; None where none is known.
        message: what became of what a person did.
        note: what they had written, where it could not be taken.
    """
    return _ENVIRONMENT.get_template("console.html").render(
        project=project,
        tasks=[_view(state) for state in states],
        waiting=[alert for state in states for alert in state.waiting],
        reviews=[review for state in states for review in state.reviews],
        seen=[alert for state in states for alert in state.alerts if alert["acknowledged_at"] is not None],
        base=base,
        token=token,
        runs=runs,
        message=message,
        note=note,
        style=Markup(STYLE + _OWN_STYLE),
    )


def _view(state: TaskState) -> dict[str, Any]:
    """What the template needs beside the state itself."""
    mark, verdict = _verdict(state)
    shown: dict[str, Any] = {"state": state, "mark": mark, "verdict": verdict}
    if state.served is None:
        return shown
    drifting = {name: cells for name, cells in state.drift.items() if any(cell.drifted for cell in cells)}
    first = dict(list(drifting.items())[:_ROWS])
    rest = {name: cells for name, cells in state.drift.items() if name not in first}
    report = state.report or {"chunks": (), "notes": ()}
    fresh = next((chunk for chunk in reversed(report["chunks"]) if chunk["freshness"]), None)
    return shown | {
        "champion": _champion(state),
        "tiles": _tiles(state),
        "ladder": _ladder(state),
        "performance": Markup(console_plots.performance(state)),
        "cost": Markup(console_plots.cost(state)),
        "together": Markup(console_plots.together(state)),
        "drifting": Markup(console_plots.heat_map(first, f"Drift of the {len(first)} features that drifted most")),
        "steady": Markup(console_plots.heat_map(rest, f"Drift of {len(rest)} more features")),
        "steady_count": len(rest),
        "drift_told": _drift_told(state, len(drifting)),
        "notes": [*_of_the_estimator(state), *report["notes"]],
        "freshness": fresh["freshness"] if fresh else (),
        "freshness_of": fresh["start"] if fresh else None,
    }


def _verdict(state: TaskState) -> tuple[str, str]:
    """A colour with a meaning, and the word that says it without the colour."""
    if state.served is None:
        return "", "not serving"
    if state.waiting:
        return "bad", "needs you"
    if state.skew and state.skew["mismatches"]:
        return "bad", "skew"
    if not state.served.champion:
        return "", "the baseline answers"
    if state.decision is None or not state.watched:
        return "", "not monitored yet"
    rule = state.decision["rule"]
    return _DECIDED.get(rule, ("warn", rule.replace("_", " ")))


_DECIDED = {
    "nothing": ("good", "healthy"),
    "schedule": ("", "retraining is due"),
    "decay": ("warn", "beyond the floor"),
    "decay_in_cooldown": ("warn", "beyond the floor"),
    "decay_over_budget": ("warn", "beyond the floor"),
    "decay_labels_immature": ("warn", "beyond the floor"),
    "drift_performance_holds": ("warn", "drifting"),
    "drift_performance_unknown": ("warn", "drifting"),
}
"""What the latest decision's rule is called for a person; another rule is called by its own name."""


def _champion(state: TaskState) -> str:
    assert state.served is not None
    return f"version {state.served.champion}" if state.served.champion else "the naive baseline"


def _tiles(state: TaskState) -> list[tuple[str, ...]]:
    """Name, figure, what stands below, mark."""
    served, task = state.served, state.task
    assert served is not None
    since = max((event.at for event in state.events if event.title.endswith("became champion")), default=None)
    champion = (
        "Champion",
        f"v{served.champion}" if served.champion else "baseline",
        f"since {date(since)}" if since and served.champion else "no version is champion"
        if not served.champion else "answers by default",
    )  # fmt: skip
    climbing = served.challenger is not None
    challenger = (
        "Challenger",
        f"v{served.challenger}" if climbing else "none",
        _reach(served) if climbing else "no version is climbing",
    )
    side = f"floor {task.monitoring.performance_floor:g}"
    performance: tuple[str, ...]
    if state.latest is None:
        performance = (task.success.metric, NOTHING, f"not known yet; {side}")
    else:
        source, value, version = state.latest
        if version != served.champion:
            source = f"{source}, of version {version}"
        performance = (task.success.metric, number(value), f"{source}; {side}",
                       *(["warn"] if state.beyond_floor(value) else []))  # fmt: skip
    drift: tuple[str, ...] = ("Drift", NOTHING, "not measured yet")
    if state.drift:
        share = _latest_share(state)
        drift = ("Drift", percent(share), f"of {len(state.drift)} features, latest chunk",
                 *(["warn"] if share >= task.monitoring.drift_share else []))  # fmt: skip
    skew: tuple[str, ...] = ("Skew", NOTHING, "never audited")
    if state.skew:
        bad = state.skew["mismatches"]
        skew = ("Skew", number(bad), f"of {number(state.skew['checked'])} values", *(["bad"] if bad else []))
    report = state.report
    watched = (
        "Monitored",
        number(report["rows"]) if report else NOTHING,
        f"predictions, {date(report['as_of'])}" if report else "never",
    )
    return [champion, challenger, performance, drift, skew, watched]


def _reach(served: Served) -> str:
    if served.stage == "canary":
        return f"canary, {percent(served.share)} of the keys"
    return "shadow: mirrored only" if served.stage == "shadow" else served.stage


def _latest_share(state: TaskState) -> float:
    newest = max((cells[-1].start for cells in state.drift.values()), default=None)
    there = [cell for cells in state.drift.values() for cell in cells if cell.start == newest]
    return sum(cell.drifted for cell in there) / len(there) if there else 0.0


def _ladder(state: TaskState) -> list[dict[str, str]]:
    served = state.served
    assert served is not None
    steps = [("shadow", "shadow", 0.0)]
    steps += [(f"canary {percent(share)}", "canary", share) for share in state.task.rollout.canary_steps]
    at = next(
        (
            place
            for place, (_, stage, share) in enumerate(steps)
            if stage == served.stage and abs(share - served.share) < 1e-9
        ),
        None,
    )
    marks = ["" if at is None or place > at else "now" if place == at else "done" for place in range(len(steps))]
    shown = [{"name": name, "mark": mark} for (name, _, _), mark in zip(steps, marks, strict=True)]
    if served.stage == "paused":
        shown.append({"name": "paused for a person", "mark": "now"})
    return [*shown, {"name": "champion", "mark": ""}]


def _drift_told(state: TaskState, drifting: int) -> str:
    chunks = len({cell.start for cells in state.drift.values() for cell in cells})
    limit = percent(state.task.monitoring.drift_share)
    reached = f"the latest {CHUNKS} chunks" if chunks == CHUNKS else f"{chunks} chunks" if chunks > 1 else "one chunk"
    return (
        f"{drifting} of {len(state.drift)} features drifted at least once in {reached}. Blue: within what is usual, "
        f"the stronger the nearer to its bound; orange: beyond it. A chunk counts as drifted from {limit} of the "
        "features on."
    )


def _of_the_estimator(state: TaskState) -> list[str]:
    if state.report is None:
        return []
    found = state.report["estimator"]
    if found["trusted"] is None:
        return ["No chunk's labels have settled yet, so the estimator is unproven: its estimates trigger nothing."]
    off = f"off by {number(found['mean_error'])} on average over {found['chunks']} settled chunks"
    if found["trusted"]:
        return [f"The estimator was {off}, within its tolerance of {found['tolerance']:g}: its estimates count."]
    return [f"The estimator was {off}, beyond its tolerance of {found['tolerance']:g}: its estimates trigger nothing."]
