"""The kernel's gRPC endpoint: the port entry, the generic entry, and the kernel's own services."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc

from llmos.api.kernel.v1 import admin_pb2_grpc, events_pb2_grpc
from llmos.kernel.core.core import Core
from llmos.kernel.record import Recorder as EventRecorder
from llmos.kernel.transport.admin import AdminService
from llmos.kernel.transport.attach import Attachment
from llmos.kernel.transport.entry import Entry
from llmos.kernel.transport.events import EventsService
from llmos.kernel.transport.health import HealthService
from llmos.kernel.transport.hub import HOST, Hub, OwnPort
from llmos.lib import methods
from llmos.lib.errors import FailedPrecondition, Unavailable
from llmos.lib.h2.server import Server
from llmos.lib.h2.stream import Stream
from llmos.lib.host import new_instance
from llmos.lib.reflection import ReflectionService
from llmos.lib.serve import MAX_MESSAGE, Introspection, Recorder

log = logging.getLogger(__name__)

TCP_SETTING = "--tcp or LLMOS_KERNEL_TCP (127.0.0.1:0 = any free port, none = no TCP)"
ATTACH = "/llmos.api.kernel.v1.Port/Attach"


class KernelServer:
    """One kernel: core, hub and gRPC server."""

    def __init__(self, core: Core | None = None, record: Path | None = None) -> None:
        """Build; `start` listens. record: file to write every event to.

        Raises FailedPrecondition READ_ONLY.
        """
        self.core = core or Core(new_instance(), HOST)
        self.hub = Hub(self.core)
        if record is not None:
            self.hub.recorder = EventRecorder(record, self.core)
        self._server = Server(self._accept, MAX_MESSAGE)
        self._own = OwnPort(self.hub, "kernel", HOST)
        self._clients = OwnPort(self.hub, "grpc-clients")
        self._entry = Entry(self._clients)
        self._serve_own()

    def _accept(self, stream: Stream) -> None:
        if stream.path == ATTACH:
            Attachment(self.hub, stream)
        else:
            self._entry.accept(stream)

    def _serve_own(self) -> None:
        recorder: Any = Recorder()
        admin_pb2_grpc.add_AdminServicer_to_server(AdminService(self.hub), recorder)
        events_pb2_grpc.add_EventsServicer_to_server(EventsService(), recorder)
        health_pb2_grpc.add_HealthServicer_to_server(HealthService(self.hub), recorder)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            ReflectionService(self._described), recorder
        )
        introspection = Introspection("kernel", [*recorder.services])
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
        try:
            for address in addresses:
                unix = address.startswith("unix:")
                self._server.bind(address, "--listen" if unix else TCP_SETTING)
        except FailedPrecondition:
            self._server.stop_listening()
            raise
        await self._server.start()
        log.info("kernel listens", extra={"addresses": addresses})

    async def stop(self, grace_s: float = 2.0) -> None:
        """Stop listening, let plain clients' calls finish for `grace_s`, close all streams."""
        self._server.stop_listening()
        until = time.monotonic() + grace_s
        while self._clients.session.streams and time.monotonic() < until:
            await asyncio.sleep(0.01)
        self.hub.close(Unavailable("KERNEL_STOPPING", "The kernel stops; attach again."))
        await asyncio.sleep(0)
        self._clients.session.close(Unavailable("KERNEL_STOPPING", "The kernel stopped."))
        await self._server.close()
        if self.hub.recorder is not None:
            self.hub.recorder.close()
            self.hub.recorder = None
