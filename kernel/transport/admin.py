"""The kernel's own service: Admin."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
from llmos.kernel.core import view
from llmos.kernel.core.events import CancelRequested, DrainRequested, LimitsChanged, PortChange
from llmos.kernel.transport.hub import Hub
from llmos.lib.errors import InvalidArgument, NotFound, ResourceExhausted

log = logging.getLogger(__name__)

MAX_BEHIND = 10_000
MAX_PAGE = 10_000
WatchEvent = admin_pb2.WatchPortsResponse.Event


class AdminService(admin_pb2_grpc.AdminServicer):
    """Answers from the core's state; see admin.proto."""

    def __init__(self, hub: Hub) -> None:
        """Look into the hub's core."""
        self._hub, self._core = hub, hub.core
        self._asked: Any = None  # the limits asked for last

    async def ListPorts(self, request: Any, context: Any) -> admin_pb2.ListPortsResponse:
        return admin_pb2.ListPortsResponse(ports=view.ports(self._core, time.monotonic()))

    async def ListServices(self, request: Any, context: Any) -> admin_pb2.ListServicesResponse:
        return admin_pb2.ListServicesResponse(services=view.services(self._core, time.monotonic()))

    async def ListCalls(self, request: Any, context: Any) -> admin_pb2.ListCallsResponse:
        if request.page_size > MAX_PAGE:
            raise InvalidArgument("BAD_PAGE", f"page_size is at most {MAX_PAGE}.")
        size = request.page_size or 1000
        return view.calls(self._core, request.service, size, time.monotonic())

    async def GetStats(self, request: Any, context: Any) -> admin_pb2.GetStatsResponse:
        return view.stats(self._core, self._hub.started, os.getpid(), time.monotonic())

    async def CancelCall(self, request: Any, context: Any) -> admin_pb2.CancelCallResponse:
        try:
            call = int(request.id, 16)
        except ValueError:
            call = 0
        if call not in self._core.calls.table:
            raise NotFound("NO_SUCH_CALL", f"No call {request.id!r} is queued or running.")
        self._hub.feed(CancelRequested(call))
        return admin_pb2.CancelCallResponse()

    async def DrainPort(self, request: Any, context: Any) -> admin_pb2.DrainPortResponse:
        port = self._core.ports.get(request.port)
        if port is None or port.hello is None or port.own:
            raise NotFound("NO_SUCH_PORT", f"No port {request.port} is attached.")
        self._hub.feed(DrainRequested(port.id))
        return admin_pb2.DrainPortResponse(running=len(port.serving))

    async def ListTenants(self, request: Any, context: Any) -> admin_pb2.ListTenantsResponse:
        return view.tenants(self._core)

    async def UpdateLimits(self, request: Any, context: Any) -> admin_pb2.UpdateLimitsResponse:
        for change in (request.limits, *request.tenants):
            for field, value in change.ListFields():
                if field.name != "tenant" and (value < 0 or (field.name == "weight" and not value)):
                    raise InvalidArgument("BAD_LIMIT", f"{field.name} = {value} is no limit.")
        self._hub.feed(LimitsChanged(request))
        if request != self._asked:  # a gateway asks for the same ones every few seconds
            log.info("limits changed", extra={"limits": str(request)})
        self._asked = request
        return admin_pb2.UpdateLimitsResponse()

    async def WatchPorts(
        self, request: Any, context: Any
    ) -> AsyncIterator[admin_pb2.WatchPortsResponse]:
        queue: asyncio.Queue[PortChange] = asyncio.Queue(MAX_BEHIND)
        behind = False

        def watch(change: PortChange) -> None:
            nonlocal behind
            if change.port.own:
                return
            try:
                queue.put_nowait(change)
            except asyncio.QueueFull:
                behind = True

        self._hub.watchers.add(watch)
        try:
            now = time.monotonic()
            for _, port in sorted(self._core.ports.items()):
                if port.hello is not None and not port.own:
                    yield admin_pb2.WatchPortsResponse(
                        event=WatchEvent.EVENT_ATTACHED, port=view.port_info(port, now)
                    )
            yield admin_pb2.WatchPortsResponse(event=WatchEvent.EVENT_SYNCED)
            while not behind:
                change = await queue.get()
                yield admin_pb2.WatchPortsResponse(
                    event=change.what,  # type: ignore[arg-type]
                    port=view.port_info(change.port, time.monotonic()),
                )
            raise ResourceExhausted("SLOW_WATCHER", f"{MAX_BEHIND} events behind; watch again.")
        finally:
            self._hub.watchers.discard(watch)
