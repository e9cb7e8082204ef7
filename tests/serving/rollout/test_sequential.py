"""Bounds that are looked at after every row: how often they convict the innocent, how soon the guilty."""

from __future__ import annotations

from math import comb, inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.sequential import ALPHA, excess, least_stability, share_bounds

RUNS, ROWS = 1000, 1500


def paths(rng: np.random.Generator, share: float, rows: int = ROWS) -> np.ndarray:
    """Bad rows so far, int [RUNS, rows]."""
    return np.cumsum(rng.random((RUNS, rows)) < share, axis=1)


@pytest.mark.parametrize("share", [0.002, 0.01, 0.3])
def test_the_true_share_is_ever_left_outside_in_fewer_runs_than_alpha_says(share: float) -> None:
    """Looked at after every single row; an interval of one look, read the same way, is wrong in a third of the runs."""
    bad, total = paths(np.random.default_rng(5), share), np.arange(1, ROWS + 1)
    low, high = share_bounds(bad[:, ::5], total[::5], ALPHA)
    outside = ((low > share) | (share > high)).any(axis=1)
    assert outside.mean() <= ALPHA
    naive = np.abs(bad / total - share) > 2.58 * np.sqrt(np.maximum(bad / total * (1 - bad / total), 1e-9) / total)
    assert naive[:, 50:].any(axis=1).mean() > 5 * ALPHA


def test_an_innocent_challenger_is_rolled_back_in_fewer_stages_than_alpha_says() -> None:
    """Both versions fail at the same rate, above what the task allows: nine requests of the champion's to each one."""
    rng = np.random.default_rng(6)
    ours, theirs = paths(rng, 0.05), paths(rng, 0.05, 9 * ROWS)[:, 8::9]
    total = np.arange(1, ROWS + 1)
    low, _ = share_bounds(ours[:, ::5], total[::5], ALPHA / 2)
    _, high = share_bounds(theirs[:, ::5], 9 * total[::5], ALPHA / 2)
    assert ((low > np.maximum(0.01, high)).any(axis=1)).mean() <= ALPHA


@pytest.mark.parametrize(("share", "within"), [(1.0, 5), (0.5, 15), (0.1, 150), (0.05, 500)])
def test_a_breach_is_convicted_within_so_many_requests_in_nine_runs_of_ten(share: float, within: int) -> None:
    bad, total = paths(np.random.default_rng(7), share, within), np.arange(1, within + 1)
    low, _ = share_bounds(bad, total, ALPHA / 2)
    _, high = share_bounds(np.zeros(within), 19 * total, ALPHA / 2)
    assert ((low > np.maximum(0.01, high)).any(axis=1)).mean() >= 0.9


def test_scores_that_are_distributed_alike_are_never_told_apart() -> None:
    rng = np.random.default_rng(8)
    shares = rng.dirichlet(np.ones(12))
    p, q = rng.multinomial(1, shares, (2, 200, 600)).cumsum(axis=2)[:, :, 20::20]
    assert least_stability(p, q).max(axis=1).astype(bool).mean() <= ALPHA


def test_the_least_index_stays_below_the_true_one_and_comes_near_it() -> None:
    rng = np.random.default_rng(9)
    p, q = np.full(12, 1 / 12), np.array([0.5, 0.3] + [0.02] * 10)
    true = float(np.sum((q - p) * np.log(q / p)))
    found = [least_stability(rng.multinomial(n, p), rng.multinomial(n, q)) for n in (100, 400, 2000, 50_000)]
    assert found == sorted(found)
    assert 0 <= found[0] < 0.25 < found[2] < found[-1] < true < found[-1] * 1.3


def test_bounds_agree_with_the_mixture_written_out() -> None:
    """The mixture as a plain sum over shares, against which the closed form of the beta distribution stands."""
    shares = (np.arange(20_000) + 0.5) / 20_000
    weights = 1 / np.sqrt(shares * (1 - shares))
    weights /= weights.sum()
    for bad, total in ((0, 7), (3, 40), (40, 40)):
        low, high = share_bounds(bad, total, 0.05)
        likelihood = shares**bad * (1 - shares) ** (total - bad)
        possible = shares[(weights @ likelihood) / likelihood < 1 / 0.05]
        assert (low, high) == pytest.approx((possible.min(), possible.max()), abs=2e-3)


def test_the_mixture_averages_to_one_for_the_true_share() -> None:
    """What the bounds rest on, exactly, over every outcome of 40 rows: the chance of being outside is below alpha."""
    for share in (0.01, 0.1, 0.5):
        outside = 0.0
        for bad in range(41):
            low, high = share_bounds(bad, 40, 0.05)
            outside += comb(40, bad) * share**bad * (1 - share) ** (40 - bad) * (not low <= share <= high)
        assert outside <= 0.05


@given(bad=st.integers(0, 50), more=st.integers(0, 500))
def test_bounds_hold_the_share_seen_and_rise_with_each_bad_row(bad: int, more: int) -> None:
    total = bad + more + 1
    low, high = share_bounds(bad, total, ALPHA)
    assert 0 <= low <= bad / total <= high <= 1
    next_low, next_high = share_bounds(bad + 1, total, ALPHA)
    assert (low, high) <= (next_low, next_high) < (inf, inf)


def test_nothing_seen_leaves_everything_possible() -> None:
    assert share_bounds(0, 0, ALPHA) == (0, 1)
    assert not excess(0, 0, 0.01, beside=(0, 0)).convicted
    assert excess(1, 1, 0.0, beside=(0, 0)).convicted
