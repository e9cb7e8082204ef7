"""How each version's requests ended, counted where they end and told to the shared state within a second.

The prediction log holds what was answered; what failed is nowhere in it. While a version climbs, every replica counts
the requests each version had a part in, by the deployment's generation, so that a count is always that of one step.
"""

from __future__ import annotations

import logging
import secrets
import threading
from dataclasses import dataclass, replace

from sqlalchemy import BigInteger, Column, Connection, Engine, Integer, String, Table, delete, func, insert, select

from contracts.state import metadata
from serving.evidence import ErrorCount, Evidence, Traffic

_log = logging.getLogger(__name__)
EVERY = 0.5
"""Seconds between two tellings."""

rollout_outcomes = Table(
    "rollout_outcomes",
    metadata,
    Column("task", String, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("variant", String, primary_key=True),  # champion | canary | shadow
    Column("replica", String, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),  # ended in an error of ours
    Column("slow", BigInteger, nullable=False),  # answered, beyond the p99 budget
)
"""What became of the requests of one step, by each replica's own count."""

_Key = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Requests in which one version had a part during one step."""

    requests: int = 0
    failed: int = 0
    slow: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.requests + other.requests, self.failed + other.failed, self.slow + other.slow)


class Outcomes:
    """Counts in memory and tells the state what changed, in a thread of its own. `count` may be called by any thread.

    A replica that is killed takes at most `EVERY` seconds of counts with it.

    Args:
        engine: the shared state.
        every: seconds between two tellings.
    """

    def __init__(self, engine: Engine, every: float = EVERY) -> None:
        self._engine = engine
        self._every = every
        self._replica = secrets.token_hex(8)
        self._counts: dict[_Key, Outcome] = {}
        self._untold: set[_Key] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outcomes", daemon=True)
        self._thread.start()

    def count(self, task: str, generation: int, variant: str, *, failed: bool, slow: bool = False) -> None:
        """Note how one request ended for one version."""
        key, one = (task, generation, variant), Outcome(1, int(failed), int(slow))
        with self._lock:
            self._counts[key] = self._counts.get(key, Outcome()) + one
            self._untold.add(key)

    def tell(self) -> None:
        """Write what changed since the last time. A state that cannot be written is tried again the next time."""
        with self._lock:
            told = {key: self._counts[key] for key in self._untold}
            self._untold.clear()
        if not told:
            return
        columns = rollout_outcomes.c
        try:
            with self._engine.begin() as connection:
                for (task, generation, variant), found in told.items():
                    mine = {"task": task, "generation": generation, "variant": variant, "replica": self._replica}
                    own = [columns[name] == value for name, value in mine.items()]
                    connection.execute(delete(rollout_outcomes).where(*own))
                    counts = {"requests": found.requests, "failed": found.failed, "slow": found.slow}
                    connection.execute(insert(rollout_outcomes).values(mine | counts))
        except Exception as error:  # counting must never be felt by a request
            _log.warning("outcomes are not told: %s", error)
            with self._lock:
                self._untold |= told.keys()

    def close(self) -> None:
        """Tell the rest and let the state go."""
        self._stop.set()
        self._thread.join()
        self._engine.dispose()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self.tell()
        self.tell()


def read_outcomes(connection: Connection, task: str, generation: int) -> dict[str, Outcome]:
    """What all replicas counted during one step, by variant; empty before the first of them told anything."""
    columns = rollout_outcomes.c
    sums = (func.sum(columns.requests), func.sum(columns.failed), func.sum(columns.slow))
    query = select(columns.variant, *sums).where(columns.task == task, columns.generation == generation)
    rows = connection.execute(query.group_by(columns.variant)).all()
    return {variant: Outcome(int(requests), int(failed), int(slow)) for variant, requests, failed, slow in rows}


def counted(evidence: Evidence, found: dict[str, Outcome]) -> Evidence:
    """Evidence with the counts of its step: each version's own requests, how many failed, how many were too slow.

    What the challenger failed at on mirrored requests is its failure as well; nobody was kept waiting by them.
    """
    if not found:
        return evidence
    held, answered = found.get("champion", Outcome()), found.get("canary", Outcome())
    own = answered + found.get("shadow", Outcome())
    return replace(
        evidence,
        errors=ErrorCount(own.requests, own.failed, held.requests, held.failed),
        challenger=_timed(evidence.challenger, answered) if evidence.stage == "canary" else evidence.challenger,
        champion=_timed(evidence.champion, held),
    )


def _timed(traffic: Traffic, found: Outcome) -> Traffic:
    return replace(traffic, requests=found.requests - found.failed, over_budget=found.slow)
