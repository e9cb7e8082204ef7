"""Load tests on record: what an endpoint took at the traffic its task expects, while a version answered there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, Connection, Engine, Integer, String, Table, insert, select

from contracts.state import Instant, create_missing, metadata
from serving.rollout_state import Deployment

load_tests = Table(
    "load_tests",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task", String, nullable=False, index=True),
    Column("generation", Integer, nullable=False),
    Column("challenger", Integer),
    Column("stage", String, nullable=False),
    Column("at", Instant, nullable=False),
    Column("report", JSON, nullable=False),
)
"""Never changed afterwards; the newest of a version counts."""


@dataclass(frozen=True, slots=True)
class LoadTest:
    """One load test. Latencies in milliseconds, from the instant each request was due."""

    requests: int
    rate: float
    """Requests a second asked for."""
    seconds: float
    failed: int
    """Requests without an answer, or with a server error."""
    refused: int
    """Requests the endpoint would not take (4xx)."""
    quantiles: Mapping[str, tuple[float, float, float]]
    """"p50", "p95", "p99", "p99.9" to (value, low, high), a 95 % interval."""
    late_p99_ms: float
    """How late the caller itself sent 99 of 100 requests: a busy caller measures itself."""
    canary_requests: int
    canary_p99_ms: float | None
    """Of requests the challenger answered; None below 20."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"quantiles": {name: list(found) for name, found in self.quantiles.items()}}


def record_load_test(engine: Engine, deployment: Deployment, test: LoadTest, at: datetime) -> None:
    """Put a load test on record."""
    create_missing(engine)
    row = {
        "task": deployment.task,
        "generation": deployment.generation,
        "challenger": deployment.challenger,
        "stage": deployment.stage,
        "at": at,
        "report": test.to_dict(),
    }
    with engine.begin() as connection:
        connection.execute(insert(load_tests).values(row))


def latest_load_test(connection: Connection, task: str, version: int) -> LoadTest | None:
    """The newest load test held while the version answered its share of the keys; None where there was none."""
    columns = load_tests.c
    query = select(columns.report).where(columns.task == task, columns.challenger == version, columns.stage == "canary")
    found = connection.execute(query.order_by(columns.id.desc()).limit(1)).scalar()
    return None if found is None else LoadTest(**found)
