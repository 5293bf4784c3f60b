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
from llmos.servers.gateway.aliases import Aliases
from llmos.servers.gateway.trace import Trace

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5)
_QUEUE_SECONDS = (0.001, 0.0025, 0.005, *_SECONDS)
_WHO = ["model", "tenant"]
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """All series of one gateway process. `model` is the version that answered, or empty.

    `tenant` is the key's, or `local` where no keys are wanted.
    """

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
        # What happened to generations and is shown by other servers' names, too.
        self._shown = shown = CollectorRegistry()
        self._first_token = self._histogram(
            "time_to_first_token", "From the parsed request to the first token, waiting included"
        )
        self._per_token = self._histogram(
            "time_per_output_token",
            "Mean over a generation's tokens after the first",
            _TOKEN_SECONDS,
        )
        self._queue = self._histogram(
            "queue",
            "From the parsed request to its arrival at the worker: queueing and loading",
            _QUEUE_SECONDS,
        )
        self._prefill = self._histogram("prefill", "From there to the first token")
        self._decode = self._histogram("decode", "From the first to the last token")
        self._whole = self._histogram("generation", "From the parsed request to the last token")
        self._tokens = Counter(
            "llmos_gateway_tokens",
            "Tokens of generations and embeddings; kind cached: of prompt, found in a prefix cache",
            ["model", "kind", "tenant"],
            registry=shown,
        )
        self._ended = Counter(
            "llmos_gateway_generations",
            "Generations that came to an end, by why",
            [*_WHO, "reason"],
            registry=shown,
        )
        self._running = Gauge(
            "llmos_gateway_generations_running",
            "Generations whose first token has come",
            _WHO,
            registry=shown,
        )
        registry.register(Aliases(shown))

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        full = f"llmos_gateway_{name}_seconds"
        return Histogram(full, about, _WHO, buckets=buckets, registry=self._shown)

    def started(self, route: str) -> None:
        """Count a request that came."""
        self._in_flight.labels(route).inc()

    def ended(self, route: str, code: int, model: str, seconds: float) -> None:
        """Count a request that ended."""
        self._in_flight.labels(route).dec()
        self._requests.labels(route, model, str(code)).inc()
        self._seconds.labels(route).observe(seconds)

    def prompt_tokens(self, model: str, count: int, tenant: str) -> None:
        """Count tokens of input."""
        self._tokens.labels(model, "prompt", tenant).inc(count)

    def first_token(self, model: str, seconds: float, tenant: str) -> None:
        """Take a generation's time to its first token; it runs from now on."""
        self._first_token.labels(model, tenant).observe(seconds)
        self._running.labels(model, tenant).inc()

    def stopped(self, model: str, tenant: str) -> None:
        """Take that a generation that had begun is over, however."""
        self._running.labels(model, tenant).dec()

    def finished(
        self, model: str, piece: pb.GenerateResponse, first_s: float, whole_s: float, tenant: str
    ) -> None:
        """Take a generation's last piece, its time to the first token and to the end, seconds."""
        usage = piece.usage
        self.prompt_tokens(model, usage.prompt_tokens, tenant)
        self._tokens.labels(model, "cached", tenant).inc(usage.cached_tokens)
        self._tokens.labels(model, "completion", tenant).inc(usage.completion_tokens)
        reason = pb.FinishReason.Name(piece.finish_reason).rpartition("_")[2].lower()
        self._ended.labels(model, tenant, reason).inc()
        if usage.completion_tokens > 1:
            each = (whole_s - first_s) / (usage.completion_tokens - 1)
            self._per_token.labels(model, tenant).observe(each)
        self._queue.labels(model, tenant).observe(max(0.0, first_s - usage.first_token_s))
        self._prefill.labels(model, tenant).observe(usage.first_token_s)
        self._decode.labels(model, tenant).observe(usage.decode_s)
        self._whole.labels(model, tenant).observe(whole_s)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


class RequestMeter:
    """A generation meter that also notes in the request's trace which model answered."""

    def __init__(self, metrics: Metrics, trace: Trace) -> None:
        """Remember both."""
        self._metrics = metrics
        self._trace = trace
        self._tenant = trace.tenant or "local"

    def first_token(self, model: str, seconds: float) -> None:
        """Pass on."""
        self._trace.model = model
        self._metrics.first_token(model, seconds, self._tenant)

    def stopped(self, model: str) -> None:
        """Pass on."""
        self._metrics.stopped(model, self._tenant)

    def finished(
        self, model: str, piece: pb.GenerateResponse, first_s: float, whole_s: float
    ) -> None:
        """Pass on."""
        self._trace.model = model
        self._trace.usages.append((piece.usage, first_s, whole_s))
        if not self._trace.timing:  # of several generations of a request, the first to end
            self._trace.timing.update(
                first_token_s=first_s,
                worker_first_token_s=piece.usage.first_token_s,
                worker_decode_s=piece.usage.decode_s,
                prompt_tokens=piece.usage.prompt_tokens,
                completion_tokens=piece.usage.completion_tokens,
            )
        self._metrics.finished(model, piece, first_s, whole_s, self._tenant)
