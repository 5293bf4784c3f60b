"""Endpoints for those who run the gateway: what it is, whether it lives, is ready, and counts."""

from __future__ import annotations

from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from llmos.servers.gateway import model_metrics
from llmos.servers.gateway.backend import Backend
from llmos.servers.gateway.counts import Counts
from llmos.servers.gateway.metrics import CONTENT_TYPE, Metrics


class Ops:
    """The endpoints beside the API."""

    def __init__(
        self,
        backend: Backend,
        metrics: Metrics | Counts,
        channels: model_metrics.Channels | None = None,
    ) -> None:
        """Look at `backend` and `metrics`; `channels`: where models and the kernel are asked."""
        self._backend = backend
        self._channels = channels
        self._metrics = metrics

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/", self.about, methods=["GET"]),
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]

    async def about(self, request: Request) -> Response:
        """Say what this is; browsers are sent on to the console."""
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/console/")
        return JSONResponse(
            {
                "name": "llmos-gateway",
                "version": version("llmos"),
                "about": "The OpenAI API of LLM OS; point a client's base_url at /v1 here.",
                "endpoints": [
                    "GET /v1/models",
                    "GET /v1/models/{id}",
                    "POST /v1/chat/completions",
                    "POST /v1/completions",
                    "POST /v1/embeddings",
                    "POST /v1/audio/transcriptions",
                    "GET /llmos/v1",
                    "GET /console/",
                    "GET /metrics",
                    "GET /healthz",
                    "GET /readyz",
                ],
            }
        )

    async def healthz(self, request: Request) -> JSONResponse:
        """Say that the process is alive, whatever it is attached to."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> JSONResponse:
        """Say whether requests can be answered, and if not what is missing."""
        missing = await self._backend.missing()
        if missing:
            return JSONResponse({"status": "not ready", "missing": missing}, 503)
        return JSONResponse({"status": "ready", "missing": []})

    async def metrics(self, request: Request) -> Response:
        """Return all metrics."""
        metrics = self._metrics
        text = await metrics.text() if isinstance(metrics, Counts) else metrics.text()
        if self._channels is not None:
            text += await model_metrics.text(self._channels)
        return Response(text, headers={"content-type": CONTENT_TYPE})
