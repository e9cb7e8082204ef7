"""A regression is watched by the same run: its error realized, and estimated from the features alone."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from contracts.bundle import FeatureSpec
from contracts.operations_policy import Monitoring
from monitoring.log_frame import CHUNK, LABEL, QUANTILES, SCORE
from monitoring.usual import Usual, estimated_metric

RULES = Monitoring(performance_floor=10, min_rows=100)
FEATURES = (FeatureSpec("load", "number"), FeatureSpec("site", "text"), FeatureSpec("empty", "number"))


def rows(chunks: list[float], *, seed: int, size: int = 600) -> pd.DataFrame:
    """A chunk a share of rows from site "far", where errors are four times as large as at "near"."""
    random = np.random.default_rng(seed)
    chunk = np.repeat(np.arange(len(chunks)), size)
    far = random.random(len(chunk)) < np.repeat(chunks, size)
    load = random.normal(size=len(chunk))
    spread = np.where(far, 8.0, 2.0)
    return pd.DataFrame(
        {
            CHUNK: chunk,
            SCORE: 10 * load,
            LABEL: 10 * load + random.normal(size=len(chunk)) * spread,
            "load": load,
            "site": np.where(far, "far", "near").astype(object),
            "empty": np.nan,
            QUANTILES: [json.dumps({"0.1": each - 3, "0.9": each + 3}) for each in 10 * load],
        }
    )


def test_an_estimate_follows_the_errors_without_a_label() -> None:
    reference, analysis = rows([0.2] * 8, seed=1), rows([0.2, 0.9], seed=2)
    blind = analysis.drop(columns=LABEL)
    for metric in ("mae", "rmse"):
        usual = Usual(reference, FEATURES, RULES, metric)
        found, truth = usual.estimate(blind), usual.realize(analysis, metric)
        assert set(found) == {0, 1}
        for chunk, performance in found.items():
            assert performance.metric == metric
            assert performance.value == pytest.approx(truth[chunk].value, rel=0.12)
        assert found[1].value > 1.5 * found[0].value


def test_realized_errors_are_what_the_rows_say() -> None:
    analysis = rows([0.5], seed=3)
    error = (analysis[SCORE] - analysis[LABEL]).to_numpy()
    for metric, expected in (("mae", np.abs(error).mean()), ("rmse", np.sqrt((error**2).mean()))):
        [found] = Usual(analysis, FEATURES, RULES, metric).realize(analysis, metric).values()
        assert found.value == pytest.approx(expected)
        assert 0 <= found.low < found.value < found.high


def test_a_pinball_loss_is_that_of_the_logged_quantiles() -> None:
    analysis = rows([0.5], seed=4, size=50)
    losses = []
    for label, told in zip(analysis[LABEL], analysis[QUANTILES], strict=True):
        each = []
        for level, value in json.loads(told).items():
            below = label - value
            each.append(float(level) * below if below > 0 else (float(level) - 1) * below)
        losses.append(sum(each) / len(each))
    [found] = Usual(analysis, FEATURES, RULES, "pinball").realize(analysis, "pinball").values()
    assert found.value == pytest.approx(np.mean(losses))


@pytest.mark.parametrize(
    ("metric", "estimated"), [("mae", "mae"), ("rmse", "rmse"), ("pinball", "mae"), ("brier", "roc_auc")]
)
def test_what_cannot_be_estimated_has_a_stand_in(metric: str, estimated: str) -> None:
    assert estimated_metric(metric) == estimated
