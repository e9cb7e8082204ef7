"""One number that is shown far more often than usual, counted and held against a plain loop."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from contracts.bundle import FeatureSpec
from monitoring.log_frame import CHUNK
from monitoring.repeats import Repeats

WIND = FeatureSpec("wind", "number", "double")
ROWS = 200


@pytest.fixture
def reference() -> pd.DataFrame:
    """Ten days of wind; on the sixth it is calm for 80 rows of 200, and always three rows in ten are not measured."""
    random = np.random.default_rng(1)
    wind = random.normal(8, 3, (10, ROWS)).astype(np.float32).astype(float)
    wind[5, :80] = 0.0
    wind[:, 140:] = np.nan
    return pd.DataFrame({CHUNK: np.repeat(range(10), ROWS), "wind": wind.ravel()})


def usual(reference: pd.DataFrame, spec: FeatureSpec = WIND) -> Repeats:
    return Repeats(reference, [spec], min_rows=100)


def day(value: float, count: int) -> np.ndarray:
    """A day on which one number is shown `count` times; the others are all different."""
    others = np.random.default_rng(2).normal(8, 3, ROWS - count)
    return np.concatenate([np.full(count, value), others])


def by_hand(reference: pd.DataFrame, values: np.ndarray) -> float:
    """The definition, number by number."""
    days = [rows["wind"].dropna().tolist() for _, rows in reference.groupby(CHUNK)]
    counts = [Counter(each) for each in days]
    most = sorted(max(count.values()) / ROWS for count in counts)
    middle = (most[4] + most[5]) / 2
    away = sorted(abs(each - middle) for each in most)
    limit = middle + 3 * 1.4826 * (away[4] + away[5]) / 2
    found = 0.0
    for value, count in Counter(values.tolist()).items():
        ever = max(each[value] / ROWS for each in counts)
        found = max(found, count / len(values) - max(limit, ever))
    return found


@pytest.mark.parametrize(("value", "count"), [(7.25, 0), (7.25, 30), (7.25, 60), (7.25, 200), (0.0, 60), (0.0, 120)])
def test_the_excess_is_what_counting_by_hand_says(reference, value, count):
    values = day(value, count)
    assert usual(reference).excess("wind", values) == pytest.approx(by_hand(reference, values), abs=1e-12)


def test_a_stuck_gauge_is_no_calm_day(reference):
    assert usual(reference).excess("wind", day(7.25, 60)) > 0.25
    assert usual(reference).excess("wind", day(0.0, 60)) == 0.0


def test_a_feature_that_is_hardly_ever_there_is_not_stuck(reference):
    values = np.array([7.25] * 10 + [np.nan] * 190)
    assert usual(reference).excess("wind", values) < 0.05


@pytest.mark.parametrize("spec", [FeatureSpec("wind", "text", "string"), FeatureSpec("wind", "number", "bool")])
def test_texts_and_booleans_are_all_repetition(reference, spec):
    assert usual(reference, spec).excess("wind", day(7.25, 200)) == 0.0


def test_a_reference_without_a_chunk_or_without_a_value_is_judged_as_a_whole(reference):
    small = Repeats(reference[:50], [WIND], min_rows=100)
    assert small.excess("wind", day(7.25, 100)) == pytest.approx(0.5 - 1 / 50)
    empty = usual(reference.assign(wind=np.nan))
    assert empty.excess("wind", day(7.25, 100)) == 0.5
    assert empty.excess("wind", np.full(5, np.nan)) == 0.0
