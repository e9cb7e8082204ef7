"""Serving's door to OpenTelemetry: a span a request and one for each of its stages, where an exporter is configured.

Spans are made after the answer is out, of instants that were taken anyway, so tracing costs an answer nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from contracts.errors import SkewlessError
from serving.caller import Caller

_EXPORTER, _OTLP = "OTEL_TRACES_EXPORTER", ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_NAMES = {"otlp": "otlp_proto_http"}
Stage = tuple[str, float, float]
"""Name, beginning and end of a part of a request, by `time.perf_counter`."""


class TracingError(SkewlessError, ValueError):
    """An exporter of traces that is configured and not there."""


class Tracing:
    """Sends spans.

    Args:
        exporter: an OpenTelemetry span exporter.
        attributes: of the resource, beside those of the environment (`OTEL_RESOURCE_ATTRIBUTES`).
    """

    def __init__(self, exporter: Any, attributes: Mapping[str, str]) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(resource=Resource.create(dict(attributes)), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("skewless.serving")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, caller: Caller, task: str, status: int, began: float, stages: tuple[Stage, ...]) -> None:
        """A request that is over, as part of the trace its caller named."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        ended = time.perf_counter()
        wall = time.time_ns() - round(ended * 1e9)

        def at(instant: float) -> int:
            return wall + round(instant * 1e9)

        parent = self._propagator.extract({"traceparent": caller.traceparent, "tracestate": caller.tracestate})
        span = self._tracer.start_span(
            "predict",
            parent,
            SpanKind.SERVER,
            {
                "skewless.task": task,
                "skewless.request_id": caller.id,
                "url.path": caller.path,
                "http.response.status_code": status,
            },
            start_time=at(began),
        )
        inside = set_span_in_context(span)
        for name, start, end in stages:
            self._tracer.start_span(name, inside, start_time=at(start)).end(at(end))
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(at(ended))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def tracing_of(environment: Mapping[str, str]) -> Tracing | None:
    """Tracing as OpenTelemetry's own variables configure it; None where they name no exporter.

    Raises:
        TracingError: the exporter they name is not installed.
    """
    name = environment.get(_EXPORTER) or ("otlp" if any(environment.get(each) for each in _OTLP) else "none")
    if name == "none":
        return None
    found = entry_points(group="opentelemetry_traces_exporter", name=_NAMES.get(name, name))
    if not found:
        known = sorted(each.name for each in entry_points(group="opentelemetry_traces_exporter"))
        raise TracingError(
            f"{_EXPORTER} is {name!r}, and no such exporter is installed.",
            hint=f"installed are {', '.join(known)}; `none` switches traces off.",
        )
    attributes = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": "skewless"}
    return Tracing(next(iter(found)).load()(), attributes)
