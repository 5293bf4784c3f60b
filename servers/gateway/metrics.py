"""The gateway's Prometheus metrics. Label values are bounded: no client can add series."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.servers.gateway.trace import Trace

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """All series of one gateway process. `model` is the version that answered, or empty."""

    def __init__(self) -> None:
        """Start at zero."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "llmos_gateway_requests",
            "HTTP requests ended; a stream that broke has the code of its error",
            ["route", "model", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "llmos_gateway_request_seconds",
            "From the request's head to the last byte of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._in_flight = Gauge(
            "llmos_gateway_requests_in_flight",
            "HTTP requests being answered",
            ["route"],
            registry=registry,
        )
        self._first_token = Histogram(
            "llmos_gateway_time_to_first_token_seconds",
            "From the parsed request to the first token, loading and queueing included",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._per_token = Histogram(
            "llmos_gateway_time_per_output_token_seconds",
            "Mean over a generation's tokens after the first",
            ["model"],
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        self._tokens = Counter(
            "llmos_gateway_tokens",
            "Tokens of generations and embeddings",
            ["model", "kind"],
            registry=registry,
        )

    def started(self, route: str) -> None:
        """Count a request that came."""
        self._in_flight.labels(route).inc()

    def ended(self, route: str, code: int, model: str, seconds: float) -> None:
        """Count a request that ended."""
        self._in_flight.labels(route).dec()
        self._requests.labels(route, model, str(code)).inc()
        self._seconds.labels(route).observe(seconds)

    def prompt_tokens(self, model: str, count: int) -> None:
        """Count tokens of input."""
        self._tokens.labels(model, "prompt").inc(count)

    def first_token(self, model: str, seconds: float) -> None:
        """Take a generation's time to its first token."""
        self._first_token.labels(model).observe(seconds)

    def finished(self, model: str, usage: pb.Usage, decode_s: float) -> None:
        """Take what a generation took; decode_s is from its first token to its end."""
        self.prompt_tokens(model, usage.prompt_tokens)
        self._tokens.labels(model, "completion").inc(usage.completion_tokens)
        if usage.completion_tokens > 1:
            self._per_token.labels(model).observe(decode_s / (usage.completion_tokens - 1))

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


class RequestMeter:
    """A generation meter that also notes in the request's trace which model answered."""

    def __init__(self, metrics: Metrics, trace: Trace) -> None:
        """Remember both."""
        self._metrics = metrics
        self._trace = trace

    def first_token(self, model: str, seconds: float) -> None:
        """Pass on."""
        self._trace.model = model
        self._metrics.first_token(model, seconds)

    def finished(self, model: str, usage: pb.Usage, decode_s: float) -> None:
        """Pass on."""
        self._trace.model = model
        self._metrics.finished(model, usage, decode_s)
