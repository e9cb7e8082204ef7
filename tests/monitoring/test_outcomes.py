from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.outcomes import join_labels
from tests.monitoring.conftest import START, micros

INSTANT = pa.timestamp("us", tz="UTC")


def asked(*cases: tuple[str | None, int]) -> pa.Table:
    """Log rows: case and hour of the question."""
    stamps = [micros(START) + hour * 3_600_000_000 for _, hour in cases]
    return pa.table(
        {
            "case_id": pa.array([case for case, _ in cases], pa.string()),
            "event_timestamp": pa.array(stamps, pa.int64()).cast(INSTANT),
        }
    )


def told(*labels: tuple[str | None, int, int]) -> pa.Table:
    """Labels: case, outcome, hour at which it was known."""
    stamps = [micros(START) + hour * 3_600_000_000 for _, _, hour in labels]
    return pa.table(
        {
            "id": pa.array([case for case, _, _ in labels], pa.string()),
            "label": pa.array([float(label) for _, label, _ in labels], pa.float64()),
            "label_known_at": pa.array(stamps, pa.int64()).cast(INSTANT),
        }
    )


def test_every_label_is_used_or_counted() -> None:
    log = asked(("a", 0), ("b", 1), ("c", 2), ("d", 3), (None, 4), ("a", 5), ("late", 9))
    labels = told(
        ("a", 1, 10),
        ("a", 1, 11),  # says it again
        ("b", 0, 10),
        ("b", 1, 12),  # contradicts
        ("c", 0, 20),  # not known yet
        ("nobody", 1, 10),  # never asked about
        ("late", 1, 8),  # known before it was asked about
        ("c", 7, 9),  # no outcome of two
        (None, 1, 9),  # nobody's
    )
    found = join_labels(log, labels, as_of=START + timedelta(hours=15))
    np.testing.assert_array_equal(found.label, [1, np.nan, np.nan, np.nan, np.nan, 1, np.nan])
    assert found.account.to_dict() == {
        "known": 4,
        "joined": 2,
        "unknown_case": 1,
        "duplicate": 1,
        "contradictory": 1,
        "before_prediction": 1,
        "without_case": 1,
        "invalid": 1,
        "nameless": 1,
    }


@settings(deadline=None)  # a database a case
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(0, 9)), max_size=8),
    st.lists(st.tuples(st.sampled_from(["a", "b", "d"]), st.integers(0, 1), st.integers(0, 12)), max_size=8),
    st.integers(0, 12),
)
def test_labels_join_as_the_loop_joins_them(
    cases: list[tuple[str | None, int]], labels: list[tuple[str, int, int]], now: int
) -> None:
    found = join_labels(asked(*cases), told(*labels), as_of=START + timedelta(hours=now))
    expected = []
    for case, at in cases:
        known = sorted((hour, label) for name, label, hour in labels if name == case and hour <= now)
        agreed = known and len({label for _, label in known}) == 1 and known[0][0] > at
        expected.append(float(known[0][1]) if agreed else np.nan)
    np.testing.assert_array_equal(found.label, np.array(expected, float))


def test_nothing_logged_and_nothing_known_join_to_nothing() -> None:
    found = join_labels(asked(), told(), as_of=START)
    assert len(found.label) == 0
    assert set(found.account.to_dict().values()) == {0}
