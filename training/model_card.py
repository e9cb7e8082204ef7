"""A version's card: one HTML page a manager can read, from what its bundle and its evaluation say.

    page = model_card(bundle.metadata, evaluation, version=3, status="candidate", model_hash=bundle.model_hash)

The page is a view: it can be drawn again at any time from the same records, and nothing reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from contracts.bundle import BundleMetadata
from contracts.page import html_page, table, tag
from contracts.task import LOWER_IS_BETTER
from training import card_plots
from training.card_words import MEANING, against, in_short, limits, number, spread

Facts = Mapping[str, Any]
"""Plain JSON values."""


def model_card(metadata: BundleMetadata, evaluation: Facts, *, version: int, status: str, model_hash: str) -> str:
    """The page's text.

    Args:
        metadata: of the version's bundle.
        evaluation: `Evaluation.to_dict()`, as kept with the run.
        version: its number in the registry.
        status: candidate or rejected.
        model_hash: of its graph.
    """
    task = metadata.task_as_trained
    parts = [
        _head(metadata, version, status),
        "<h2>In short</h2>",
        _list(in_short(metadata, evaluation)),
        "<h2>What it predicts, and for whom</h2>",
        _purpose(metadata),
        "<h2>What it was trained on</h2>",
        _data(metadata),
        "<h2>How good it is</h2>",
        _figures(metadata, evaluation),
        "<h2>Where it fails</h2>",
        _slices(task, evaluation),
        "<h2>Gates</h2>",
        _gates(metadata.gates),
        "<h2>Limits</h2>",
        _list(limits(metadata, evaluation)),
        "<h2>How to make it again</h2>",
        _reproduce(metadata, version, model_hash),
    ]
    return html_page(f"{metadata.task}, version {version}", parts)


def _head(metadata: BundleMetadata, version: int, status: str) -> str:
    passed = status == "candidate"
    word = tag("pass", "candidate: passed every gate") if passed else tag("fail", "rejected: reaches nobody")
    return (
        f"<h1><code>{escape(metadata.task)}</code>, version {version}</h1>"
        f"<p>{escape(str(metadata.task_as_trained.get('description', '')))}</p>"
        f"<p>Trained on what was known on {_day(metadata.training_data['cutoff'])}. {word}</p>"
    )


def _purpose(metadata: BundleMetadata) -> str:
    task = metadata.task_as_trained
    spine, budget, cost = task["spine"], task["budget"], task["success"]["cost"]
    names = ", ".join(f"<code>{escape(name)}</code>" for name in spine["keys"])
    fields = ", ".join(f"<code>{escape(name)}</code>" for name in spine["request_fields"])
    if metadata.kind == "binary":
        answer = f"the probability that <code>{escape(spine['label'])}</code> will be 1"
        prices = f"a false alarm {cost['false_alarm']:,g}, a miss {cost['missed']:,g} {cost['currency']}"
    else:
        levels = ", ".join(f"{level:.0%}" for level in metadata.quantiles)
        answer = f"the value of <code>{escape(spine['label'])}</code>"
        answer += f", and the values it will be below with probability {levels}" if levels else ""
        prices = f"a unit too high {cost['too_high']:,g}, a unit too low {cost['too_low']:,g} {cost['currency']}"
    asked = f" and what the application sends ({fields})" if fields else ""
    rows = [
        ("answers", answer),
        ("about", f"one case, named by {names}{asked}, as of <code>{escape(spine['event_timestamp'])}</code>"),
        ("prices of being wrong", escape(prices)),
        (
            "must answer",
            f"99 of 100 requests within {budget['p99_ms']:g} ms, {budget['requests_per_second']:g} a second",
        ),
    ]
    return table(("", ""), rows)


def _data(metadata: BundleMetadata) -> str:
    data = metadata.training_data
    split = data["split"]
    bounds, uses = (
        split["bounds"],
        {
            "train": ("validation", "start", "fitted on"),
            "validation": ("holdout", "validation", "stopped, calibrated and its threshold chosen on"),
            "holdout": ("cutoff", "holdout", "judged on; no fit has seen it"),
        },
    )
    parts = [
        (name, f"{_day(bounds[start])} to {_day(bounds[end])}", f"{split['rows'][name]:,}", what)
        for name, (end, start, what) in uses.items()
    ]
    names = ", ".join(f"<code>{escape(spec.name)}</code>" for spec in metadata.features)
    facts = [
        ("data set", f"<code class=hash>{data['dataset_hash']}</code>, {data['rows']:,} cases with an outcome"),
        ("without an outcome yet", f"{data['unlabelled']:,} cases, left out"),
        ("outcome known too late for its part", f"{sum(split['embargoed'].values()):,} cases, left out"),
        ("learner", f"{escape(metadata.learner)}, seed {metadata.seed}"),
        ("feature service", f"<code>{escape(metadata.feature_service)}</code>"),
    ]
    return (
        table(("part", "days (UTC)", "cases", ""), parts, numbers=(2,))
        + table(("", ""), facts)
        + f"<details><summary>{len(metadata.features)} model inputs</summary><p>{names}</p></details>"
    )


def _figures(metadata: BundleMetadata, evaluation: Facts) -> str:
    task = metadata.task_as_trained
    primary, currency = task["success"]["metric"], task["success"]["cost"]["currency"]
    others = [(name, evaluation[name]) for name in ("champion", "last_month") if evaluation[name]]
    heads = ["figure", "this version", *(_RIVALS[name] for name, _ in others), "naive baseline"]
    rows = []
    for name, found in evaluation["metrics"].items():
        shown = f"<strong>{escape(name)}</strong>" if name == primary else escape(name)
        theirs = [number(other["metrics"][name]["value"]) if name in other["metrics"] else "" for _, other in others]
        better = "lower" if name in LOWER_IS_BETTER or name == "ece" else "higher" if name in _RISING else ""
        rows.append((shown, spread(found), *theirs, number(evaluation["baseline"][name]["value"]), better))
    cost = evaluation["cost_per_case"]
    without = min(cost[name]["value"] for name in ("never", "always", "naive") if name in cost)
    rows.append((f"{escape(currency)} a case", spread(cost["model"]), *["" for _ in others], number(without), "lower"))
    words = [
        against(evaluation, "champion", primary),
        against(evaluation, "last_month", primary),
    ]
    meaning = [f"<strong>{escape(name)}</strong>: {escape(MEANING[key])}" for name in evaluation["metrics"]
               for key in [name.partition(".")[0]] if key in MEANING]  # fmt: skip
    limit = task["gates"]["latency_share"] * task["budget"]["p99_ms"]
    plots = [
        *(_binary_plots(evaluation, currency) if metadata.kind == "binary" else _value_plots(metadata, evaluation)),
        card_plots.periods(evaluation, primary),
        card_plots.latency(evaluation, limit),
    ]
    return (
        f"<p>On {evaluation['rows']:,} cases that no fit has seen; in brackets 95 % intervals.</p>"
        + table((*heads, "better is"), rows, numbers=range(1, 3 + len(others)))
        + _list([word for word in words if word])
        + f"<details><summary>What the figures mean</summary>{_list(meaning)}</details>"
        + f'<div class="plots">{"".join(plots)}</div>'
    )


_RISING = ("roc_auc", "average_precision")
_RIVALS = {"champion": "champion", "last_month": "last month's champion"}


def _binary_plots(evaluation: Facts, currency: str) -> list[str]:
    return [
        *card_plots.rankings(evaluation),
        card_plots.reliability(evaluation),
        card_plots.costs(evaluation, currency),
    ]


def _value_plots(metadata: BundleMetadata, evaluation: Facts) -> list[str]:
    below = [(level, evaluation["metrics"][f"coverage.{level:g}"]) for level in metadata.quantiles]
    plots = [card_plots.predictions(evaluation)]
    return [*plots, card_plots.coverage(evaluation["intervals"], below)] if below else plots


def _slices(task: Facts, evaluation: Facts) -> str:
    primary, columns = task["success"]["metric"], evaluation["slices"]
    if not columns:
        return "<p>The task names no groups (<code>fairness.slices</code>), so none were compared.</p>"
    lower = primary in LOWER_IS_BETTER
    told = []
    for column in columns:
        judged = sorted(
            (group for group in column["groups"] if group["metric"]), key=lambda group: group["metric"]["value"]
        )
        name = escape(column["column"])
        if len(judged) < 2:
            told.append(f"<strong>{name}</strong>: fewer than two groups are large enough to be compared.")
            continue
        worst, best = (judged[-1], judged[0]) if lower else (judged[0], judged[-1])
        told.append(
            f"<strong>{name}</strong>: worst for {_group(worst)}, best for {_group(best)}, "
            f"{number(abs(best['metric']['value'] - worst['metric']['value']))} apart; "
            f"{task['fairness']['max_gap']:g} is allowed."
        )
    tables = [_groups(column, primary) for column in columns]
    plots = "".join(card_plots.slices(evaluation, primary))
    every = f"<details><summary>Every group</summary>{''.join(tables)}</details>"
    return f'{_list(told)}<div class="plots">{plots}</div>{every}'


def _group(group: Facts) -> str:
    return f"{escape(group['value'] or 'null')} ({spread(group['metric'])}, {group['rows']:,} cases)"


def _groups(column: Facts, primary: str) -> str:
    names = [name for name in _FIGURES if any(name in group["figures"] for group in column["groups"])]
    heads = ("group", "cases", primary, *(_FIGURES[name] for name in names), "")
    rows = [
        (
            escape(group["value"] or "null"),
            f"{group['rows']:,}",
            spread(group["metric"]) if group["metric"] else "",
            *(number(group["figures"][name]) if name in group["figures"] else "" for name in names),
            f"{tag('inconclusive', 'inconclusive')} {escape(group['note'])}" if group["note"] else "",
        )
        for group in column["groups"]
    ]
    if column["differences"]:
        apart = [number(column["differences"][name]) if name in column["differences"] else "" for name in names]
        rows.append(("largest difference", "", number(column["differences"][primary]), *apart, "among the judged"))
    return f"<h3>{escape(column['column'])}</h3>" + table(heads, rows, numbers=range(1, 3 + len(names)))


_FIGURES = {
    "label": "mean outcome",
    "answer": "mean answer",
    "acted_on": "acted on",
    "false_alarms": "false alarms",
    "missed": "missed",
}


def _gates(gates: Iterable[Facts]) -> str:
    rows = [
        (
            tag(gate["verdict"], gate["verdict"]),
            f"<code>{escape(gate['name'])}</code>",
            escape(gate["threshold"]),
            escape(gate["evidence"]),
            escape(gate["action"]),
        )
        for gate in gates
    ]
    rule = (
        "<p>Only a pass on every gate makes a candidate; inconclusive is not a pass, and nothing overrides a gate.</p>"
    )
    return rule + table(("", "gate", "needs", "found", "what to do"), rows)


def _reproduce(metadata: BundleMetadata, version: int, model_hash: str) -> str:
    command = f"skewless reproduce {metadata.task}@{version}"
    known = {
        "run_id": "MLflow run",
        "code_revision": "code",
        "lock_hash": "lock file",
        "registry_hash": "feature registry",
    }
    facts = [("model", f"<code class=hash>{escape(model_hash)}</code>")]
    facts += [
        (what, f"<code class=hash>{escape(metadata.provenance[name])}</code>") for name, what in known.items()
        if name in metadata.provenance
    ]  # fmt: skip
    return (
        f"<p><code>{escape(command)}</code> rebuilds frame and model from the sources, and holds data set, model and "
        f"figures against these.</p>{table(('', ''), facts)}"
    )


def _list(items: Sequence[str]) -> str:
    """Items are HTML."""
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else ""


def _day(instant: str) -> str:
    return escape(instant[:16].replace("T", " ").removesuffix(" 00:00"))
