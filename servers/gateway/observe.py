"""The outermost layer: every request gets an id, is counted, timed and logged."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmos.lib.log import call_id
from llmos.servers.gateway import trace as traces
from llmos.servers.gateway.metrics import Metrics

if TYPE_CHECKING:
    from llmos.servers.gateway.telemetry import Telemetry

ROUTES = frozenset(
    {
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/audio/transcriptions",
    }
)
# One series for each.
_TREES = ("/llmos/v1", "/console", "/v2", "/v1/files", "/v1/batches", "/v1/fine_tuning")
_POLLED = frozenset({"/healthz", "/readyz", "/metrics", "/llmos/v1", "/console"})
log = logging.getLogger(__name__)


def route_of(path: str) -> str:
    """Return the route for metrics; paths that clients invent are all `other`."""
    if path in ROUTES:
        return path
    if path.startswith("/v1/models/"):
        return "/v1/models/{id}"
    return next((prefix for prefix in _TREES if path.startswith(prefix)), "other")


class Observed:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, telemetry: Telemetry | None = None) -> None:
        """Wrap `app`."""
        self._telemetry = telemetry
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = traces.begin(scope)
        token = call_id.set(trace.request_id)
        route = route_of(scope["path"])
        start = time.monotonic()
        span = None
        if self._telemetry is not None and route not in _POLLED:
            span = self._telemetry.start(trace, scope["method"], route)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                header = (b"x-request-id", trace.request_id.encode())
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        self._metrics.started(route)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            seconds = time.monotonic() - start
            code = trace.failed or trace.status or 500
            self._metrics.ended(route, code, trace.model, seconds)
            if span is not None:
                span.end(trace, code, seconds)
            # Probes and scrapes come every few seconds for ever; they are no news.
            log.log(
                logging.DEBUG if route in _POLLED and scope["method"] == "GET" else logging.INFO,
                "request",
                extra={
                    "method": scope["method"],
                    "route": route,
                    "status": code,
                    "model": trace.model,
                    "seconds": round(seconds, 4),
                    **{name: round(value, 4) for name, value in trace.timing.items()},
                },
            )
            call_id.reset(token)
