"""What a replica counts, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from serving.breaker import Breaker, State
from serving.log_writer import LogWriter

# `import feast` switches prometheus_client into its multi-process mode, and hands the switch to child processes: values
# then live in files that all registries of a process share by name. A replica's counters are its own, in its memory.
values.ValueClass = values.MutexValue

_STATES: tuple[State, ...] = ("closed", "half-open", "open")
_BUCKETS = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.008, 0.0125, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Counters of one replica; every name begins with `skewless_` and carries the task."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "skewless_requests",
            "Prediction requests by task and HTTP status.",
            ["task", "code"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "skewless_request_seconds",
            "From the whole body received to the answer handed over, by task.",
            ["task"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.stages = Histogram(
            "skewless_stage_seconds",
            "Parts of an answered request: features, scoring, log.",
            ["task", "stage"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.predictions = Counter(
            "skewless_predictions",
            "Logged predictions by task, variant and version.",
            ["task", "variant", "version"],
            registry=self._registry,
        )
        self.withheld = Counter(
            "skewless_values_withheld",
            "View rows found but nulled: expired (past the TTL) or future.",
            ["task", "view", "reason"],
            registry=self._registry,
        )
        self.degraded = Counter(
            "skewless_degraded_rows",
            "Rows answered with a stand-in for what the online store did not give, or with the fallback; and why.",
            ["task", "reason"],
            registry=self._registry,
        )
        self.shadow_dropped = Counter(
            "skewless_shadow_dropped",
            "Shadow requests not scored: the shadow lagged behind.",
            ["task"],
            registry=self._registry,
        )
        self.generation = Gauge(
            "skewless_deployment_generation",
            "Generation of the deployment being served.",
            ["task"],
            registry=self._registry,
        )

    def watch_log(self, writers: Mapping[str, LogWriter]) -> None:
        """Also tell the counters of the prediction logs, by task."""
        self._registry.register(_LogCollector(writers))

    def watch_stores(self, breakers: Mapping[str, Breaker]) -> None:
        """Also tell how the online store's breaker fares, by task."""
        self._registry.register(_StoreCollector(breakers))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _LogCollector(Collector):
    """The log's own account, read when it is asked for: answered = logged + lost."""

    def __init__(self, writers: Mapping[str, LogWriter]) -> None:
        self._writers = writers

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        answered = CounterMetricFamily("skewless_answered", "Predictions answered to a caller.", labels=["task"])
        logged = CounterMetricFamily("skewless_logged", "Answered predictions that were logged.", labels=["task"])
        lost = CounterMetricFamily("skewless_lost", "Answered predictions that were not logged.", labels=["task"])
        repeated = CounterMetricFamily("skewless_repeated", "Requests answered from the log.", labels=["task"])
        refused = CounterMetricFamily("skewless_log_refused", "Rows refused: not committed.", labels=["task"])
        waiting = GaugeMetricFamily("skewless_log_waiting", "Rows waiting to be committed.", labels=["task"])
        for task, writer in self._writers.items():
            counters = writer.counters
            answered.add_metric([task], counters.answered)
            logged.add_metric([task], counters.logged)
            lost.add_metric([task], counters.lost)
            repeated.add_metric([task], counters.repeated)
            refused.add_metric([task], counters.failed)
            waiting.add_metric([task], counters.waiting)
        return [answered, logged, lost, repeated, refused, waiting]


class _StoreCollector(Collector):
    """The breakers' own account, read when it is asked for."""

    def __init__(self, breakers: Mapping[str, Breaker]) -> None:
        self._breakers = breakers

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        told = "0 closed, 1 half-open, 2 open: the online store is left alone."
        state = GaugeMetricFamily("skewless_store_breaker_state", told, labels=["task"])
        failed = CounterMetricFamily("skewless_store_failures", "Failed reads of the online store.", labels=["task"])
        opened = CounterMetricFamily("skewless_store_breaker_opened", "Times the breaker opened.", labels=["task"])
        spared = CounterMetricFamily("skewless_store_reads_spared", "Reads not tried: it was open.", labels=["task"])
        for task, breaker in self._breakers.items():
            state.add_metric([task], _STATES.index(breaker.state))
            failed.add_metric([task], breaker.failed)
            opened.add_metric([task], breaker.opened)
            spared.add_metric([task], breaker.spared)
        return [state, failed, opened, spared]
