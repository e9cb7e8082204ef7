"""An application in miniature: turns spine rows into prediction requests and keeps account of the answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from contracts.task import Task


def request_rows(task: Task, spine: pa.Table) -> list[dict[str, Any]]:
    """What an application would send for each spine row: id, keys, request fields, asking instant; never a label."""
    columns = [task.spine.id, *task.spine.keys, *task.spine.request_fields, task.spine.event_timestamp]
    rows = spine.select(list(dict.fromkeys(columns))).to_pylist()
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


@dataclass
class Account:
    """What a caller saw: answers by status, latencies of the answered, reasons of the refused."""

    latencies_ms: list[float] = field(default_factory=list)
    answered_rows: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    variants: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        """Requests sent."""
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        """Requests that met a server error or no server at all (status 0)."""
        return sum(count for status, count in self.statuses.items() if status == 0 or status >= 500)

    def to_dict(self) -> dict[str, Any]:
        """The `serving` part of a run's JSON."""
        return {
            "requests": self.requests,
            "answered_rows": self.answered_rows,
            "p50_ms": self.latency_ms(0.5),
            "p99_ms": self.latency_ms(0.99),
            "failed": self.failed,
            "refused": dict(self.refusals),
            "variants": dict(self.variants),
        }

    def latency_ms(self, quantile: float) -> float | None:
        """Latency quantile of the answered requests, seen by the caller; None before the first answer."""
        return float(np.quantile(self.latencies_ms, quantile)) if self.latencies_ms else None


class Caller:
    """Asks one task's endpoint, one connection, one request at a time."""

    def __init__(self, url: str, task: Task, account: Account | None = None, token: str | None = None) -> None:
        self.url = url
        """Base of the endpoint."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(base_url=url, timeout=30.0, headers=headers)
        self._task = task
        self._path = f"/v1/tasks/{task.name}/predict"
        self.account = account or Account()

    def ask(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predictions for one request of `rows`; empty when it was refused or failed, which the account then says."""
        started = time.perf_counter()
        try:
            response = self._client.post(self._path, json={"rows": rows})
        except httpx.TransportError as error:
            self.account.statuses[0] += 1
            self.account.refusals[type(error).__name__] += 1
            return []
        elapsed = 1000 * (time.perf_counter() - started)
        self.account.statuses[response.status_code] += 1
        if response.status_code != 200:
            self.account.refusals[response.json().get("error", {}).get("message", response.text[:200])] += 1
            return []
        predictions: list[dict[str, Any]] = response.json()["predictions"]
        self.account.latencies_ms.append(elapsed)
        self.account.answered_rows += len(predictions)
        self.account.variants.update(each["variant"] for each in predictions)
        return predictions

    def ask_each(self, rows: Iterable[dict[str, Any]]) -> None:
        """One request a row, in order."""
        for row in rows:
            self.ask([row])

    def wait_for(self, generation: int, seconds: float = 30.0) -> None:
        """Return when the endpoint serves this task's deployment `generation`. Raises TimeoutError after `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self._client.get("/readyz").json()["tasks"].get(self._task.name) or {}
            if found.get("generation", 0) >= generation:
                return
            time.sleep(0.05)
        raise TimeoutError(f"{self._client.base_url} does not serve generation {generation} after {seconds:.0f} s.")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
