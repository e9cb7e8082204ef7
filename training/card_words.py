"""What a model card says in sentences, each made from figures and from nothing else. Sentences are HTML."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from contracts.bundle import BundleMetadata
from contracts.task import LOWER_IS_BETTER
from training.metrics import BINS, NEVER

MEANING = {
    "roc_auc": "of two cases drawn at random, one with the outcome and one without, how often the first has the higher "
    "score; 0.5 is guessing, 1 is perfect",
    "average_precision": "the mean share of right alarms as ever more cases are flagged; guessing reaches the base "
    "rate",
    "log_loss": "how surprised the probabilities are by what happened; sure and wrong costs most",
    "brier": "mean squared distance of the probability from what happened",
    "ece": f"expected calibration error: how far predicted from observed rates are, on average over {BINS} bins of "
    "about equally many cases",
    "mae": "mean size of the error, in the outcome's unit",
    "rmse": "root of the mean squared error: large errors weigh more",
    "bias": "mean error: above 0 it predicts too high",
    "pinball": "mean loss of the quantiles: the distance, weighed by the level on each side",
    "coverage": "share of outcomes at or below the quantile of that level; the level itself, when all is well",
    "interval": "share of outcomes between the two quantiles; the difference of their levels, when all is well",
}
"""Of each figure by the first part of its name."""
_ABSENT = {
    "champion": "No version is champion yet; the naive baseline serves in its place.",
    "last_month": "No version was champion 30 days before, or its bundle is gone.",
}
_WHO = {"champion": "the present champion", "last_month": "the champion of 30 days before"}


def number(value: float) -> str:
    """As short as tells the value."""
    if value == 0 or 0.001 <= abs(value) < 1:
        return f"{value:.4f}"
    return f"{value:,.3f}" if 1 <= abs(value) < 100 else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2e}"


def spread(found: Mapping[str, float]) -> str:
    """A value and its interval."""
    return f"{number(found['value'])} [{number(found['low'])}, {number(found['high'])}]"


def in_short(metadata: BundleMetadata, evaluation: Mapping[str, Any]) -> list[str]:
    """What a reader in a hurry needs."""
    told = _binary(evaluation) if metadata.kind == "binary" else _values(metadata, evaluation)
    told += [
        _money(metadata, evaluation),
        against(evaluation, "champion", metadata.task_as_trained["success"]["metric"]),
    ]
    stopped = [gate for gate in metadata.gates if gate["verdict"] != "pass"]
    if stopped:
        names = ", ".join(f"<code>{escape(gate['name'])}</code> ({gate['verdict']})" for gate in stopped)
        missing = f"{len(stopped)} of {len(metadata.gates)} gates did not pass: {names}"
        return [*told, f"<strong>It reaches nobody</strong>: {missing}."]
    return [*told, f"All {len(metadata.gates)} gates passed; from here shadow and canary traffic decide."]


def _binary(evaluation: Mapping[str, Any]) -> list[str]:
    auc, ece = evaluation["metrics"]["roc_auc"]["value"], evaluation["metrics"]["ece"]["value"]
    rate = evaluation["positives"] / evaluation["rows"]
    return [
        f"{rate:.1%} of the holdout's cases had the outcome. Of two cases, one with it and one without, it gives the "
        f"first the higher probability <strong>{auc:.0%}</strong> of the time; guessing does so half of the time.",
        f"Its probabilities are off by <strong>{100 * ece:.1f}</strong> percentage points on average.",
    ]


def _values(metadata: BundleMetadata, evaluation: Mapping[str, Any]) -> list[str]:
    mae, naive = evaluation["metrics"]["mae"]["value"], evaluation["baseline"]["mae"]["value"]
    label = escape(metadata.task_as_trained["spine"]["label"])
    told = [
        f"It is off by <strong>{number(mae)}</strong> on average, in the unit of <code>{label}</code>; always "
        f"answering the middle of the past would be off by {number(naive)}."
    ]
    for each in evaluation["intervals"]:
        told.append(
            f"Its {each['nominal']:.0%} interval holds <strong>{each['found']['value']:.1%}</strong> of the outcomes "
            f"and is {number(each['width'])} wide on average."
        )
    return told


_WITHOUT = {"never": "never acting", "always": "always acting", "naive": "always answering the middle of the past"}


def _money(metadata: BundleMetadata, evaluation: Mapping[str, Any]) -> str:
    costs, currency = evaluation["cost_per_case"], escape(metadata.task_as_trained["success"]["cost"]["currency"])
    over, threshold = costs["over_trivial"], evaluation["threshold"]
    name = min((name for name in _WITHOUT if name in costs), key=lambda name: float(costs[name]["value"]))
    difference = f"{number(abs(over['value']))} {currency} a case"
    if over["high"] < 0:
        told = f"it saves {difference}"
    elif over["low"] > 0:
        told = f"it costs {difference} more"
    else:
        told = f"the difference, {difference}, is no more than chance"
    acts = "" if threshold is None else f" It acts from a probability of {threshold:.3f} on."
    if threshold is not None and threshold >= NEVER:
        acts = " It never acts: at these prices that was cheapest."
    return (
        f"A case costs <strong>{number(costs['model']['value'])} {currency}</strong> with it and "
        f"{number(costs[name]['value'])} with {_WITHOUT[name]}, the cheapest way without a model: {told}.{acts}"
    )


def against(evaluation: Mapping[str, Any], name: str, metric: str) -> str:
    """This version beside another one, in a sentence."""
    other = evaluation[name]
    if other is None:
        return _ABSENT[name]
    made = f"{_WHO[name]} (trained {other['trained_at'][:10]}, model <code>{other['model_hash'][:12]}</code>)"
    found = other["difference"]
    if found is None:
        return f"It could not be held against {made}. {escape(other['note'])}"
    if name == "last_month" and evaluation["champion"] and other["model_hash"] == evaluation["champion"]["model_hash"]:
        return "The champion of 30 days before is the present one."
    verdict = "no different beyond chance"
    if found["low"] > 0 or found["high"] < 0:
        verdict = f"{'better' if found['low'] > 0 else 'worse'}, beyond chance"
    return (
        f"Beside {made}, on the same cases, it is <strong>{verdict}</strong>: {escape(metric)} better by "
        f"{spread(found)}. {escape(other['note'])}"
    ).strip()


def _how_intervals_came(evaluation: Mapping[str, Any], primary: str) -> str:
    if evaluation["days"]:
        return (
            f"Intervals are of a bootstrap that draws the {evaluation['days']} days whole, since cases of one day are "
            "seldom independent; those of weeks and small groups draw cases. With cases drawn one by one, "
            f"{primary} is {spread(evaluation['by_case'])}."
        )
    return (
        "Intervals are of a bootstrap that draws cases one by one, as if they were independent; cases of one day often "
        "are not, and there are too few days to draw."
    )


def limits(metadata: BundleMetadata, evaluation: Mapping[str, Any]) -> list[str]:
    """What the figures do not say."""
    task, bounds = metadata.task_as_trained, metadata.training_data["split"]["bounds"]
    primary = task["success"]["metric"]
    told = [
        f"All figures are of one stretch of time, {bounds['holdout'][:10]} to {bounds['cutoff'][:10]}; they say "
        "nothing of other seasons, and decay as the world changes.",
        _how_intervals_came(evaluation, escape(primary)),
    ]
    if metadata.kind == "binary":
        costs = evaluation["costs"]
        lost = evaluation["cost_per_case"]["model"]["value"] - costs["hindsight_cost"]
        told.append(
            "The threshold was chosen on the validation rows. In hindsight the holdout's cheapest "
            f"would have been {_threshold(costs['hindsight_threshold'])}, by {number(max(lost, 0.0))} a case."
        )
    small = [
        f"{escape(column['column'])} {escape(group['value'] or 'null')}"
        for column in evaluation["slices"]
        for group in column["groups"]
        if not group["metric"]
    ]
    if small:
        told.append(
            f"Too small to judge, so nothing is known of how it serves them: {', '.join(small[:12])}"
            f"{f' and {len(small) - 12} more' if len(small) > 12 else ''}."
        )
    unlike = "lowest" if primary not in LOWER_IS_BETTER else "highest"
    told += [
        f"A gap between groups compares {escape(primary)} within each; a group whose cases are harder to tell apart "
        f"has the {unlike} without being treated otherwise.",
        f"When the model cannot speak, {number(metadata.fallback)} is answered, and the answer says so.",
        "Latency is of the packaged model alone, on the machine that trained it: no features, no network, no log.",
    ]
    return told


def _threshold(value: float) -> str:
    return "never to act" if value >= NEVER else f"{value:.3f}"
