"""Traces and GenAI metrics by OTLP, after OpenTelemetry's semantic conventions for GenAI.

One trace per request: the HTTP span, below it the wait before the worker, and the engine's prefill
and decode as the worker measured them. The trace's context goes on to the OS with the call.
"""

from __future__ import annotations

import time
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from llmos.servers.gateway.trace import Trace

_EXPORT_MS = 10_000.0
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_CONTEXT = TraceContextTextMapPropagator()


class Telemetry:
    """Sends to one collector, in threads of its own; what cannot be sent is dropped and logged."""

    def __init__(self, endpoint: str, export_ms: float = _EXPORT_MS) -> None:
        """Begin to send to `endpoint`, an URL without path, every `export_ms` milliseconds."""
        base = endpoint.rstrip("/")
        resource = Resource.create(
            {"service.name": "llmos-gateway", "service.version": version("llmos")}
        )
        self._traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{base}/v1/traces")
        self._traces.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=export_ms)
        )
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(endpoint=f"{base}/v1/metrics"), export_interval_millis=export_ms
        )
        self._meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self._tracer = self._traces.get_tracer("llmos.gateway")
        meter = self._meters.get_meter("llmos.gateway")
        self.duration = meter.create_histogram("gen_ai.server.request.duration", "s")
        self.first_token = meter.create_histogram("gen_ai.server.time_to_first_token", "s")
        self.per_token = meter.create_histogram("gen_ai.server.time_per_output_token", "s")
        self.tokens = meter.create_histogram("gen_ai.client.token.usage", "{token}")

    def start(self, trace: Trace, method: str, route: str) -> RequestSpan:
        """Begin a request's span, below the client's if it sent one; calls go below it."""
        parent = _CONTEXT.extract(dict(trace.passed_on))
        span = self._tracer.start_span(
            f"{method} {route}",
            context=parent,
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
        )
        carrier: dict[str, str] = {}
        _CONTEXT.inject(carrier, set_span_in_context(span))
        trace.passed_on = tuple(carrier.items())
        return RequestSpan(self, span, route)

    def part(self, parent: Span, name: str, start_ns: int, end_ns: int) -> None:
        """Add a span below `parent` for what has already been."""
        span = self._tracer.start_span(
            name, context=set_span_in_context(parent), start_time=start_ns
        )
        span.end(end_ns)

    def close(self) -> None:
        """Send what is left and stop."""
        self._traces.shutdown()
        self._meters.shutdown()


class RequestSpan:
    """One request's span."""

    def __init__(self, telemetry: Telemetry, span: Span, route: str) -> None:
        """Begin now."""
        self._to, self._span = telemetry, span
        self._operation = _OPERATIONS.get(route, "")
        self._began = time.time_ns()

    def end(self, trace: Trace, code: int, seconds: float) -> None:
        """End it with what is known now, and count."""
        span = self._span
        span.set_attribute("http.response.status_code", code)
        span.set_attribute("llmos.request_id", trace.request_id)
        if trace.tenant:
            span.set_attribute("llmos.tenant", trace.tenant)
        if code >= 400:
            span.set_attribute("error.type", str(code))
            if code >= 500:
                span.set_status(Status(StatusCode.ERROR))
        if self._operation:
            self._generated(trace, code, seconds)
        span.end()

    def _generated(self, trace: Trace, code: int, seconds: float) -> None:
        about = {
            "gen_ai.operation.name": self._operation,
            "gen_ai.provider.name": "llmos",
            "gen_ai.response.model": trace.model,
            **({"error.type": str(code)} if code >= 400 else {}),
        }
        self._span.set_attributes(about)
        self._to.duration.record(seconds, about)
        spent = {"input": 0, "output": 0}
        for usage, first_s, whole_s in trace.usages:
            spent["input"] += usage.prompt_tokens
            spent["output"] += usage.completion_tokens
            self._to.first_token.record(first_s, about)
            if usage.completion_tokens > 1:
                each = (whole_s - first_s) / (usage.completion_tokens - 1)
                self._to.per_token.record(each, about)
            arrived = max(0.0, first_s - usage.first_token_s)
            marks = [0.0, arrived, first_s, whole_s]
            at = [self._began + int(mark * 1e9) for mark in marks]
            for name, start, end in zip(("queue", "prefill", "decode"), at, at[1:], strict=False):
                self._to.part(self._span, f"llmos.{name}", start, end)
        for kind, count in spent.items():
            if count:
                self._span.set_attribute(f"gen_ai.usage.{kind}_tokens", count)
                self._to.tokens.record(count, {**about, "gen_ai.token.type": kind})
