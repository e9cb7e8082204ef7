"""What each policy makes of the same monitoring report."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from contracts.task import load_task
from loop.replay_policies import POLICIES
from monitoring.report import ChunkReport, Drift, EstimatorTrust, MonitoringReport, Performance

NOW = datetime(2024, 3, 1, tzinfo=UTC)
BAD, GOOD = 0.4, 0.8


@pytest.fixture
def task(stranger):
    return load_task(stranger / "tasks" / "late_delivery.toml")


def report(task, performance, *, drifted=False):
    chunk = task.monitoring.chunk
    return MonitoringReport(
        task=task.name,
        version=1,
        bundle_hash="b",
        as_of=NOW,
        metric="roc_auc",
        estimated_metric="roc_auc",
        rows=1000,
        chunks=tuple(
            ChunkReport(
                start=NOW - (at + 1) * chunk,
                end=NOW - at * chunk,
                rows=500,
                state="judged",
                drift=(Drift("km", 0.5, 0.1, drifted),),
                realized=Performance("roc_auc", performance, performance, performance),
                labelled=500,
                settled=True,
            )
            for at in reversed(range(4))
        ),
        estimator=EstimatorTrust(None, None, 0, 0.05),
        labels=None,
        skew=None,
    )


@pytest.mark.parametrize(
    ("policy", "days", "performance", "drifted", "reason"),
    [
        ("never", 400, BAD, True, None),
        ("monthly", 31, GOOD, False, "schedule"),
        ("monthly", 29, BAD, True, None),
        ("weekly", 8, GOOD, False, "schedule"),
        ("quarterly", 31, BAD, True, None),
        ("drift", 8, GOOD, True, "drift"),
        ("drift", 8, BAD, False, None),
        ("drift", 6, GOOD, True, None),  # within the cool-down
        ("decay", 8, BAD, False, "decay"),
        ("decay", 6, BAD, False, None),
        ("decay", 400, GOOD, True, None),
        ("task", 31, GOOD, False, "schedule"),
        ("task", 8, BAD, False, "decay"),
    ],
)
def test_what_a_policy_asks_for(task, policy, days, performance, drifted, reason):
    found = POLICIES[policy].reason(
        task, report(task, performance, drifted=drifted), last_training=NOW - timedelta(days=days), now=NOW
    )
    assert (found[0] if found else None) == reason
