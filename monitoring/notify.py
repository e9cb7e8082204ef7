"""Telling people of alerts: a line in the program's log, and a POST to a webhook where one is set.

An alert is told once. A webhook that cannot be reached is tried again with growing pauses, and by the next run; that an
alert could not be told is on record with the alert.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
from sqlalchemy import Engine

from monitoring.alerts import note_told, untold

_log = logging.getLogger("skewless.alerts")
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where alerts are sent, and how patiently."""

    url: str
    attempts: int = 4
    pause_s: float = 0.5
    """Before the second attempt; doubled before each further one."""
    sleep: Callable[[float], None] = time.sleep

    def send(self, alert: Mapping[str, Any]) -> str:
        """POST one alert as JSON. Returns what went wrong at last, or an empty text.

        The header `Idempotency-Key` is the same in every attempt, so that a receiver may drop a repetition. An answer
        of 4xx, except 408 and 429, is final: asking again would not change it.
        """
        error = ""
        body = {name: each.isoformat() if isinstance(each, datetime) else each for name, each in alert.items()}
        key = {"Idempotency-Key": f"{alert['task']}-{alert['id']}"}
        for attempt in range(self.attempts):
            if attempt:
                self.sleep(self.pause_s * 2 ** (attempt - 1))
            try:
                answer = httpx.post(self.url, json=body, headers=key, timeout=_TIMEOUT_S, trust_env=False)
            except (httpx.HTTPError, httpx.InvalidURL) as failure:
                error = f"{type(failure).__name__}: {failure}"
                continue
            if answer.is_success:
                return ""
            error = f"HTTP {answer.status_code}"
            if answer.is_client_error and answer.status_code not in (408, 429):
                break
        return error


def tell(engine: Engine, task: str, *, now: datetime, webhook: Webhook | None = None) -> list[int]:
    """Tell people of a task's open alerts that they were not told of yet.

    Args:
        engine: the shared state.
        task: whose alerts.
        now: the instant written down.
        webhook: None: the log line is all.

    Returns:
        The numbers of the alerts that were told.
    """
    told = []
    for alert in untold(engine, task):
        _log.warning("alert %d of %s, %s: %s", alert["id"], task, alert["kind"], alert["message"])
        error = webhook.send(alert) if webhook is not None else ""
        if error:
            _log.error("alert %d of %s could not be sent: %s", alert["id"], task, error)
        else:
            told.append(alert["id"])
        how = f"webhook: {error}" if error else "webhook" if webhook is not None else "log"
        note_told(engine, alert["id"], told=not error, how=how, now=now)
    return told
