from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import split as module
from training.split import SplitError, split_by_time

CUTOFF = datetime(2024, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def micros(instant):
    return int((instant - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


def split(asked, known, labels, **lengths):
    lengths = {"window": 30 * DAY, "validation": 5 * DAY, "holdout": 5 * DAY, **lengths}
    return split_by_time(np.array(asked), np.array(known), np.array(labels, np.int8), cutoff=CUTOFF, **lengths)


@pytest.fixture
def any_size(monkeypatch):
    monkeypatch.setattr(module, "_check", lambda *_: None)


@given(
    st.lists(st.tuples(st.integers(-35 * 24, 24), st.integers(0, 20 * 24)), max_size=60),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_no_part_knows_a_label_before_its_time(cases, validation_days, holdout_days):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_check", lambda *_: None)
        hour = 3_600_000_000
        asked = np.array([micros(CUTOFF) + a * hour for a, _ in cases], np.int64)
        known = asked + np.array([d * hour for _, d in cases], np.int64)
        labels = np.zeros(len(cases))
        found = split(asked, known, labels, validation=validation_days * DAY, holdout=holdout_days * DAY)
    bounds = {name: micros(bound) for name, bound in found.bounds.items()}
    parts = [
        ("train", "start", "validation"),
        ("validation", "validation", "holdout"),
        ("holdout", "holdout", "cutoff"),
    ]
    taken = set()
    for name, begin, end in parts:
        rows = getattr(found, name)
        # The slow, obvious oracle.
        expected = [i for i in range(len(cases)) if bounds[begin] <= asked[i] < bounds[end] and known[i] <= bounds[end]]
        assert rows.tolist() == expected
        late = [i for i in range(len(cases)) if bounds[begin] <= asked[i] < bounds[end] and known[i] > bounds[end]]
        assert found.embargoed.get(name, len(late)) == len(late)
        assert not taken & set(expected)
        taken |= set(expected)


@pytest.mark.usefixtures("any_size")
def test_a_label_known_at_the_very_instant_counts():
    at = micros(CUTOFF - 10 * DAY)  # where validation begins
    found = split([at - 1, at - 1, at], [at, at + 1, at], [0, 1, 0])
    assert found.train.tolist() == [0]
    assert found.validation.tolist() == [2]
    assert found.embargoed == {"train": 1, "validation": 0}


def evenly(rows=600):
    asked = np.linspace(micros(CUTOFF - 30 * DAY), micros(CUTOFF) - 1, rows).astype(np.int64)
    return asked, asked, np.arange(rows) % 2


def test_a_summary_is_plain_json():
    summary = split(*evenly()).summary()
    assert summary["rows"] == {"train": 400, "validation": 100, "holdout": 100}
    assert summary["bounds"]["cutoff"] == "2024-05-01T00:00:00+00:00"


@pytest.mark.parametrize(("name", "begin", "end"), [("train", -30, -10), ("validation", -10, -5), ("holdout", -5, 0)])
def test_a_part_of_one_class_is_named(name, begin, end):
    asked, known, labels = evenly()
    days = (asked - micros(CUTOFF)) / 86_400_000_000
    labels = np.where((days >= begin) & (days < end), 1, labels)
    with pytest.raises(SplitError, match=rf"The {name} part.*only the label 1"):
        split(asked, known, labels)


def test_too_few_rows_say_how_many_came_too_late():
    asked, known, labels = evenly()
    known = np.where(asked < micros(CUTOFF - 10 * DAY), micros(CUTOFF), known)
    with pytest.raises(
        SplitError, match=r"The train part.*has 0 labelled rows \(400 more became known too late\)"
    ) as error:
        split(asked, known, labels)
    assert "training.window" in error.value.hint
