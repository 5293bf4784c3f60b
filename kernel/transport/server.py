"""The kernel's gRPC server: the port entry, the generic entry, and the kernel's own services."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc

from llmos.api.kernel.v1 import admin_pb2_grpc, events_pb2_grpc
from llmos.kernel.core.core import Core
from llmos.kernel.record import Recorder as EventRecorder
from llmos.kernel.transport.admin import AdminService, IntrospectionService
from llmos.kernel.transport.attach import Attachment
from llmos.kernel.transport.entry import Entry
from llmos.kernel.transport.events import EventsService
from llmos.kernel.transport.health import HealthService
from llmos.kernel.transport.hub import HOST, Hub, OwnPort
from llmos.lib import methods
from llmos.lib.errors import Unavailable
from llmos.lib.host import new_instance
from llmos.lib.reflection import ReflectionService
from llmos.lib.serve import OPTIONS, Recorder, bind

log = logging.getLogger(__name__)

TCP_SETTING = "--tcp or LLMOS_KERNEL_TCP (127.0.0.1:0 = any free port, none = no TCP)"
_LAST_STATUS_S = 0.5  # for telling ports that the kernel stops
ATTACH = "/llmos.api.kernel.v1.Port/Attach"


class _PortEntry(grpc.GenericRpcHandler):
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method != ATTACH:
            return None

        async def attach(frames: AsyncIterator[bytes], context: Any) -> None:
            await Attachment(self._hub).run(frames, context)

        return grpc.stream_stream_rpc_method_handler(attach)


class KernelServer:
    """One kernel: core, hub and gRPC server."""

    def __init__(self, core: Core | None = None, record: Path | None = None) -> None:
        """Build; `start` listens. record: file to write every event to. Raises OSError."""
        self.core = core or Core(new_instance(), HOST)
        self.hub = Hub(self.core)
        if record is not None:
            self.hub.recorder = EventRecorder(record, self.core)
        self._server = grpc.aio.server(options=OPTIONS)
        self._own = OwnPort(self.hub, "kernel", HOST)
        self._entry = OwnPort(self.hub, "grpc-clients")
        self._serve_own()
        self._server.add_generic_rpc_handlers((_PortEntry(self.hub), Entry(self._entry)))

    def _serve_own(self) -> None:
        recorder: Any = Recorder()
        admin_pb2_grpc.add_AdminServicer_to_server(AdminService(self.hub), recorder)
        events_pb2_grpc.add_EventsServicer_to_server(EventsService(), recorder)
        health_pb2_grpc.add_HealthServicer_to_server(HealthService(self.hub), recorder)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            ReflectionService(self._described), recorder
        )
        introspection = IntrospectionService(self.hub, sorted(recorder.services))
        admin_pb2_grpc.add_IntrospectionServicer_to_server(introspection, recorder)
        for service, handlers in recorder.services.items():
            self._own.handlers.add(service, handlers)
            keys = ["kernel"] if service.endswith(".Introspection") else [""]
            self._own.export(service, keys, methods.files_of(service))

    def _described(self) -> list[tuple[str, tuple[bytes, ...]]] | None:
        if not self.core.files_changed:
            return None
        self.core.files_changed = False
        services = self.core.scheduler.services.values()
        return [(s.name, s.files) for s in services if s.files and s.seen]

    async def start(self, addresses: list[str]) -> None:
        """Listen on gRPC addresses. Raises FailedPrecondition ADDRESS_IN_USE."""
        for address in addresses:
            unix = address.startswith("unix:")
            await bind(self._server, address, "--listen" if unix else TCP_SETTING)
        await self._server.start()
        log.info("kernel listens", extra={"addresses": addresses})

    async def stop(self, grace_s: float = 2.0) -> None:
        """Stop listening, let plain clients' calls finish for `grace_s`, close all streams."""
        stopping = asyncio.ensure_future(self._server.stop(grace_s + _LAST_STATUS_S))
        until = time.monotonic() + grace_s
        while self._entry.session.streams and time.monotonic() < until:
            await asyncio.sleep(0.01)
        self.hub.close(Unavailable("KERNEL_STOPPING", "The kernel stops; attach again."))
        await stopping
        if self.hub.recorder is not None:
            self.hub.recorder.close()
            self.hub.recorder = None
