"""What is not counted but looked at, when `/metrics` is asked: logs, stores, queues, shares, ages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from asof.clockwork import to_micros
from serving.access import Access
from serving.admission import Admission, Workers
from serving.breaker import Breaker, State
from serving.log_writer import LogWriter
from serving.service import PredictionService

_STATES: tuple[State, ...] = ("closed", "half-open", "open")
_TASK = ["task"]


class LogCollector(Collector):
    """The log's own account: answered = logged + lost."""

    def __init__(self, writers: Mapping[str, LogWriter]) -> None:
        self._writers = writers

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """The families."""
        answered = CounterMetricFamily("skewless_answered", "Predictions answered to a caller.", labels=_TASK)
        logged = CounterMetricFamily("skewless_logged", "Answered predictions that were logged.", labels=_TASK)
        lost = CounterMetricFamily("skewless_lost", "Answered predictions that were not logged.", labels=_TASK)
        repeated = CounterMetricFamily("skewless_repeated", "Requests answered from the log.", labels=_TASK)
        refused = CounterMetricFamily("skewless_log_refused", "Rows refused: not committed.", labels=_TASK)
        waiting = GaugeMetricFamily("skewless_log_waiting", "Rows waiting to be committed.", labels=_TASK)
        lag = GaugeMetricFamily("skewless_log_lag_seconds", "How long the oldest of them has waited.", labels=_TASK)
        for task, writer in self._writers.items():
            counters = writer.counters
            answered.add_metric([task], counters.answered)
            logged.add_metric([task], counters.logged)
            lost.add_metric([task], counters.lost)
            repeated.add_metric([task], counters.repeated)
            refused.add_metric([task], counters.failed)
            waiting.add_metric([task], counters.waiting)
            lag.add_metric([task], writer.lag())
        return [answered, logged, lost, repeated, refused, waiting, lag]


class StoreCollector(Collector):
    """How the breakers before the online store fare."""

    def __init__(self, breakers: Mapping[str, Breaker]) -> None:
        self._breakers = breakers

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """The families."""
        told = "0 closed, 1 half-open, 2 open: the online store is left alone."
        state = GaugeMetricFamily("skewless_store_breaker_state", told, labels=_TASK)
        failed = CounterMetricFamily("skewless_store_failures", "Failed reads of the online store.", labels=_TASK)
        opened = CounterMetricFamily("skewless_store_breaker_opened", "Times the breaker opened.", labels=_TASK)
        spared = CounterMetricFamily("skewless_store_reads_spared", "Reads not tried: it was open.", labels=_TASK)
        for task, breaker in self._breakers.items():
            state.add_metric([task], _STATES.index(breaker.state))
            failed.add_metric([task], breaker.failed)
            opened.add_metric([task], breaker.opened)
            spared.add_metric([task], breaker.spared)
        return [state, failed, opened, spared]


class QueueCollector(Collector):
    """How much is under way, and who was not let in."""

    def __init__(self, admission: Admission, workers: Workers, access: Access) -> None:
        self._admission, self._workers, self._access = admission, workers, access

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """The families."""
        flying = GaugeMetricFamily("skewless_in_flight", "Requests under way.", labels=_TASK)
        shed = CounterMetricFamily("skewless_overloaded", "Requests refused: too many under way.", labels=_TASK)
        queued = GaugeMetricFamily("skewless_queue_depth", "Computations waiting for a thread.")
        draining = GaugeMetricFamily("skewless_draining", "1 while the replica finishes what it has.")
        refused = CounterMetricFamily("skewless_refused", "Requests not let in.", labels=["kind", "reason"])
        for task, count in self._admission.in_flight.items():
            flying.add_metric([task], count)
            shed.add_metric([task], self._admission.refused[task])
        queued.add_metric([], self._workers.waiting)
        draining.add_metric([], self._admission.draining)
        for (kind, reason), count in self._access.refused.items():
            refused.add_metric([kind, reason], count)
        return [flying, shed, queued, draining, refused]


class ServiceCollector(Collector):
    """Shares of the variants, and how old the views were that the last requests were answered with."""

    def __init__(self, services: Mapping[str, PredictionService]) -> None:
        self._services = services

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The families."""
        told = "Declared share of the keys that a variant answers; a shadow answers none."
        shares = GaugeMetricFamily("skewless_variant_share", told, labels=["task", "variant", "version"])
        told = "Age of a view's row at the instant asked about, in the last requests: the median, and the largest."
        ages = GaugeMetricFamily("skewless_view_age_seconds", told, labels=["task", "view", "quantile"])
        for task, service in self._services.items():
            live = service.live
            if live is not None:
                row, canary = live.deployment, live.challenger is not None and live.deployment.stage == "canary"
                share = row.share if canary else 0.0
                shares.add_metric([task, "champion", str(row.champion)], 1 - share)
                if live.challenger is not None and row.stage in ("canary", "shadow"):
                    shares.add_metric([task, row.stage, str(row.challenger)], share)
            for view, found in _ages(list(service.recent)).items():
                ages.add_metric([task, view, "0.5"], found[len(found) // 2])
                ages.add_metric([task, view, "1"], found[-1])
        return [shares, ages]


def _ages(recent: list[Any]) -> dict[str, list[float]]:
    ages: dict[str, list[float]] = {}
    for at, times in recent:
        asked = to_micros(at)
        for view, stamp in times.items():
            if stamp is not None:
                ages.setdefault(view, []).append((asked - stamp) / 1e6)
    return {view: sorted(found) for view, found in ages.items()}
