"""Standard services that answer for the whole OS: gRPC health and server reflection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmos.kernel.core.absence import served
from llmos.kernel.core.events import PortChange
from llmos.kernel.transport.hub import Hub
from llmos.lib.errors import NotFound

log = logging.getLogger(__name__)

Response = health_pb2.HealthCheckResponse
RECHECK_S = 0.5  # stalls make no event, so watchers look again this often


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Of `service` or `service/key`: serving = a port holds it, takes calls and finishes work."""

    def __init__(self, hub: Hub) -> None:
        """Answer from the hub's core."""
        self._hub = hub

    def _status(self, name: str) -> int:
        if not name:
            return int(Response.SERVING)
        service_name, _, key = name.partition("/")
        service = self._hub.core.scheduler.services.get(service_name)
        if service is None or not service.seen:
            return int(Response.SERVICE_UNKNOWN)
        exports = service.hot.get(key, []) if key else service.exports.values()
        return int(Response.SERVING if served(exports) else Response.NOT_SERVING)

    async def Check(self, request: Any, context: Any) -> Any:
        """NOT_FOUND NO_SUCH_SERVICE: nobody exported it since the kernel started."""
        status = self._status(request.service)
        if status == Response.SERVICE_UNKNOWN:
            raise NotFound("NO_SUCH_SERVICE", f"Nobody exports {request.service!r}.")
        return Response(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Stream the status now and at each change."""
        changed = asyncio.Event()

        def watch(_: PortChange) -> None:
            changed.set()

        self._hub.watchers.add(watch)
        last = -1
        try:
            while True:
                changed.clear()
                if (status := self._status(request.service)) != last:
                    last = status
                    yield Response(status=status)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), RECHECK_S)
        finally:
            self._hub.watchers.discard(watch)
