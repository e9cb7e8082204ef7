"""Where challenger and champion differ: both versions' scores of the same vectors, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from contracts.bundle import BundleError, load_bundle
from contracts.predictions import read_predictions
from contracts.task import Task
from serving.rollout_state import Deployment
from serving.sequential import least_stability

_NEWEST_PAIRS = 50_000  # differences are explained on the newest pairs: reading every input of a long shadow is no news
_LEAST_PAIRS_A_VALUE = 5
_WORST_VALUES = 5
_LARGEST = 5


@dataclass(frozen=True, slots=True)
class Comparison:
    """Challenger against champion on identical requests and vectors."""

    pairs: int
    psi: float
    """Population stability index of the scores, over the deciles of the champion's holdout."""
    champion_acted: int
    challenger_acted: int
    flips: int
    """Pairs whose decisions differ."""
    mean_difference: float
    """Mean absolute difference of scores."""
    max_difference: float
    worst: tuple[dict[str, Any], ...]
    """Values of keys and of other short fields whose scores differ most: {key, value, pairs, mean_difference}."""
    psi_low: float = 0.0
    """The least index that these pairs leave possible, however often one looks."""
    largest: tuple[dict[str, Any], ...] = ()
    """The pairs that differ most: {request_id, position, champion, challenger, inputs, features}."""


def score_bins(reference: np.ndarray) -> np.ndarray:
    """Inner edges of the bins that scores are counted in: the reference's deciles, and one bin on either side of it."""
    deciles = np.quantile(reference, np.linspace(0.1, 0.9, 9))
    return np.unique([reference.min(), *deciles, np.nextafter(reference.max(), np.inf)])


def count_scores(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Scores by bin of `score_bins`."""
    return np.bincount(np.searchsorted(edges, scores, side="right"), minlength=len(edges) + 1)


def population_stability(expected: np.ndarray, found: np.ndarray) -> float:
    """Population stability index of one count by bin against another; 0 is no difference.

    Half a row is added to every bin, so that an empty one counts as rare and not as impossible.

    >>> population_stability(np.array([10, 20]), np.array([10, 20]))
    0.0
    """
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (expected, found))
    return float(np.sum((q - p) * np.log(q / p)))


def compare(log: Path, task: Task, deployment: Deployment, champion: pa.Table, shadow: pa.Table) -> Comparison | None:
    """Compare the two versions on the rows both of them scored; None when there are none.

    Args:
        log: the prediction log, for the vectors of the pairs that differ most.
        task: whose keys and request fields tell one part of the traffic from another.
        deployment: whose champion's holdout says where the bins of the scores lie.
        champion: logged rows of the champion.
        shadow: logged rows of the challenger for the same requests, which it did not answer.
    """
    identity = ["request_id", "position"]
    pairs = shadow.select([*identity, "event_timestamp", "inputs", "score", "decision"]).join(
        champion.select([*identity, "score", "decision"]), identity, join_type="inner", right_suffix="_champion"
    )
    if not pairs.num_rows:
        return None
    held, climbing = pairs["score_champion"].to_numpy(), pairs["score"].to_numpy()
    edges = score_bins(_holdout_scores(Path(deployment.champion_bundle), held))
    expected, found = count_scores(held, edges), count_scores(climbing, edges)
    difference = np.abs(climbing - held)
    acted_champion, acted = pairs["decision_champion"].to_numpy(), pairs["decision"].to_numpy()
    newest = np.argsort(pairs["event_timestamp"].to_numpy(), kind="stable")[-_NEWEST_PAIRS:]
    inputs = [orjson.loads(text) for text in pairs["inputs"].take(pa.array(newest)).to_pylist()]
    largest = newest[np.argsort(-difference[newest], kind="stable")[:_LARGEST]]
    return Comparison(
        pairs=pairs.num_rows,
        psi=population_stability(expected, found),
        champion_acted=int(acted_champion.sum()),
        challenger_acted=int(acted.sum()),
        flips=int((acted != acted_champion).sum()),
        mean_difference=float(difference.mean()),
        max_difference=float(difference.max()),
        worst=_worst_values(inputs, difference[newest], task),
        psi_low=float(least_stability(expected, found)),
        largest=_with_vectors(log, pairs.take(pa.array(largest))),
    )


def _holdout_scores(bundle: Path, otherwise: np.ndarray) -> np.ndarray:
    """Scores of the bundle's holdout, known before the stage began; the given ones where it cannot be read."""
    try:
        scores = load_bundle(bundle).reference()["score"].to_numpy()
    except BundleError:
        return otherwise
    return scores if len(scores) else otherwise


def _worst_values(inputs: list[dict[str, Any]], difference: np.ndarray, task: Task) -> tuple[dict[str, Any], ...]:
    """Parts of the traffic with the largest mean difference, each seen in several pairs: one pair is an anecdote.

    A part is a value of a key, or of a request field that is a text or a truth value.
    """
    found: dict[tuple[str, Any], list[float]] = {}
    for asked, each in zip(inputs, difference, strict=True):
        for key in task.spine.keys:
            found.setdefault((key, asked.get(key)), []).append(float(each))
        for name in task.spine.request_fields:
            if isinstance(asked.get(name), str | bool):
                found.setdefault((name, asked[name]), []).append(float(each))
    means = [
        {"key": key, "value": value, "pairs": len(seen), "mean_difference": float(np.mean(seen))}
        for (key, value), seen in found.items()
        if len(seen) >= _LEAST_PAIRS_A_VALUE
    ]
    return tuple(sorted(means, key=lambda each: (-each["mean_difference"], str(each["value"])))[:_WORST_VALUES])


def _with_vectors(log: Path, pairs: pa.Table) -> tuple[dict[str, Any], ...]:
    """The given pairs with what both versions saw: inputs as received, and the features of the challenger's row."""
    rows = pairs.to_pylist()
    vectors = {
        (row["request_id"], row["position"]): {
            name.removeprefix("feature."): value for name, value in row.items() if name.startswith("feature.")
        }
        for row in read_predictions(log, variants=("shadow",), requests=[row["request_id"] for row in rows]).to_pylist()
    }
    return tuple(
        {
            "request_id": row["request_id"],
            "position": row["position"],
            "champion": row["score_champion"],
            "challenger": row["score"],
            "inputs": orjson.loads(row["inputs"]),
            "features": vectors.get((row["request_id"], row["position"]), {}),
        }
        for row in rows
    )
