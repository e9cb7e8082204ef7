"""What only the learner of array features must show: it reads their order, and an empty place says nothing."""

from __future__ import annotations

import numpy as np
import pytest

from contracts.scorer import Scorer
from training.evaluation import parity
from training.frame import Inputs
from training.learners.protocol import Part, Problem

pytest.importorskip("torch", reason="the extra 'sequences' is not installed: see CONTRIBUTING.md")

PLACES = tuple(range(1, 9))
PROBLEM = Problem(kind="binary", metric="roc_auc", seed=3, sequences=(PLACES,))


def world(rows: int, seed: int) -> Part:
    """One number that says nothing, and an array of up to eight values: positive where its last two rise."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(rows, 9)).astype(np.float32)
    labels = (numbers[:, 8] > numbers[:, 7]).astype(np.int8)
    length = rng.integers(2, 9, rows)
    numbers[:, 1:][np.arange(8)[None, :] < 8 - length[:, None]] = np.nan
    return Part(Inputs(numbers, np.empty((rows, 0), object)), labels)


@pytest.fixture(scope="module")
def fitted():
    from training.learners import torch_sequence

    return torch_sequence.fit(PROBLEM, world(3000, 1), world(1000, 2), {"epochs": 12, "batch_rows": 128})


@pytest.fixture(scope="module")
def scorer(fitted):
    return Scorer(fitted.model)


def test_it_reads_the_order_of_places(scorer):
    later = world(2000, 3)
    assert ((scorer.score(later.inputs.numbers) > 0.5) == later.labels).mean() > 0.9
    turned = later.inputs.numbers.copy()
    turned[:, [7, 8]] = turned[:, [8, 7]]
    assert ((scorer.score(turned) > 0.5) == later.labels).mean() < 0.1


def test_packaged_is_native_at_every_length(fitted, scorer):
    inputs = world(1500, 4).inputs
    for length in range(9):
        numbers = inputs.numbers.copy()
        numbers[:, 1 : 9 - length] = np.nan
        numbers[::7, 8] = np.inf
        assert np.isfinite(scorer.predict(numbers)).all()
        assert parity(scorer.predict(numbers), fitted.native(Inputs(numbers, inputs.texts))) < 1e-5


def test_an_empty_array_is_like_any_other_empty_array(scorer):
    numbers = world(1, 5).inputs.numbers.repeat(2, axis=0)
    numbers[:, 1:] = np.nan
    assert len(set(scorer.score(numbers).tolist())) == 1


def test_batches_of_any_size_are_answered(scorer):
    numbers = world(64, 6).inputs.numbers
    whole = scorer.score(numbers)
    for size in (1, 3, 64):
        parts = [scorer.score(numbers[at : at + size]) for at in range(0, 64, size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
    assert scorer.score(numbers[:0]).shape == (0,)
