"""What a replica counts, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest, values
from prometheus_client.registry import Collector

# `import feast` switches prometheus_client into its multi-process mode, and hands the switch to child processes: values
# then live in files that all registries of a process share by name. A replica's counters are its own, in its memory.
values.ValueClass = values.MutexValue

_BUCKETS = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.008, 0.0125, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Counters of one replica; every name begins with `skewless_` and carries the task."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
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
            "Parts of an answered request: parse, queue (for a thread), features, scoring, log.",
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

    def watch(self, *collectors: Collector) -> None:
        """Also tell what these find when they are asked."""
        for each in collectors:
            self._registry.register(each)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
