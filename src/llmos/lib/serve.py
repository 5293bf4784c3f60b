"""Serving: one servicer on both transports, the server's own gRPC address and the kernel port.

server = Server("storage", config)
server.add(registry_pb2_grpc.add_RegistryServicer_to_server, RegistryService(core))
await server.run()      # until SIGTERM, then drain
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib.metadata import version
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
from llmos.lib.config import ServerConfig
from llmos.lib.errors import FailedPrecondition, InvalidArgument
from llmos.lib.host import ProcessRecord
from llmos.lib.port import ExportSpec, Port
from llmos.lib.rpc import ErrorInterceptor, from_exception
from llmos.lib.tuning import quiet_gc

MAX_MESSAGE = 64 << 20
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.so_reuseport", 0),
)

AddToServer = Callable[[Any, Any], None]
log = logging.getLogger(__name__)


class Recorder:
    """Stands in for a grpc server to learn what `add_XServicer_to_server` registers."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.services: dict[str, dict[str, Any]] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """Ignore: the generated code registers the same methods by the next call as well."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Take the handlers of a service, by bare method name."""
        self.services[service] = handlers


class Introspection(admin_pb2_grpc.IntrospectionServicer):
    """Says what a process is; see admin.proto."""

    def __init__(self, name: str, services: Collection[str], requires: Sequence[str] = ()) -> None:
        """Answer for `name`, up from now on. services: may still grow."""
        self._name, self._services, self._requires = name, services, requires
        self._started = time.monotonic()

    async def Introspect(self, request: Any, context: Any) -> admin_pb2.IntrospectResponse:
        """See admin.proto."""
        if request.name not in ("", self._name):
            raise InvalidArgument("WRONG_SERVER", f"This is {self._name}, not {request.name}.")
        return admin_pb2.IntrospectResponse(
            name=self._name,
            version=version("llmos"),
            services=sorted(self._services),
            requires=self._requires,
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._started,
        )


class Server:
    """A process of LLM OS that serves: owns its gRPC server and its port."""

    def __init__(
        self, name: str, config: ServerConfig, *, requires: Sequence[str] = (), listen: bool = True
    ) -> None:
        """Prepare; nothing is opened before `start`.

        requires: names of the servers whose services this one calls. listen: False for workers,
        which are reached through the kernel only.
        """
        self.name = name
        self.config = config
        self.services: set[str] = set()
        self.address = (config.listen or config.socket(name)) if listen else ""
        kernel = config.kernel or config.socket("kernel")
        self.port = None if kernel == "none" else Port(kernel, name)
        self._grpc: grpc.aio.Server | None = None
        if listen:
            self._grpc = grpc.aio.server(options=OPTIONS, interceptors=[ErrorInterceptor()])
        self._health = health.aio.HealthServicer()
        self._direct: dict[str, grpc.aio.Channel] = {}
        self._record: ProcessRecord | None = None
        self._stopping = asyncio.Event()
        self._when_stopping: list[Callable[[], None]] = []
        add_introspection = admin_pb2_grpc.add_IntrospectionServicer_to_server
        self.add(add_introspection, Introspection(name, self.services, requires), keys=[name])

    def add(
        self,
        add_to_server: AddToServer,
        servicer: Any,
        *,
        keys: Sequence[str] = ("",),
        credits: int = 0,
        fault_handler: bool = False,
        stall_ms: int = 0,
    ) -> None:
        """Serve `servicer` on both transports.

        add_to_server is the generated `add_XServicer_to_server`; the rest is as in Export of
        port.proto. With stall_ms, long calls must say that they make progress (llmos.lib.call).
        Before `start` only; use `port.export` to change keys or credits later.
        """
        recorder = Recorder()
        add_to_server(servicer, recorder)
        self.services.update(recorder.services)
        if self._grpc is not None:
            add_to_server(servicer, self._grpc)
        if self.port is not None:
            for service, handlers in recorder.services.items():
                spec = ExportSpec(service, list(keys), credits, fault_handler, stall_ms)
                self.port.serve(spec, handlers)

    def channel(self, server: str) -> grpc.aio.Channel:
        """Return the channel on which the services of `server` (e.g. `storage`) are called.

        Through the kernel when there is one, else directly to the address in `config.peers`.
        Raises FailedPrecondition NO_PEER.
        """
        if self.port is not None:
            return self.port.channel
        if server not in self._direct:
            peers = dict(p.split("=", 1) for p in self.config.peers.split(",") if "=" in p)
            if server not in peers:
                raise FailedPrecondition(
                    "NO_PEER",
                    f"{self.name} runs alone and needs {server}: pass --peers {server}=ADDRESS.",
                )
            self._direct[server] = grpc.aio.insecure_channel(peers[server], options=OPTIONS)
        return self._direct[server]

    def progress(self) -> None:
        """As llmos.lib.call.progress, for work that belongs to no single call."""
        if self.port is not None:
            self.port.progress()

    async def start(self) -> None:
        """Listen and attach. Raises FailedPrecondition ADDRESS_IN_USE."""
        if self._grpc is not None:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
            names = [*sorted(self.services), health.SERVICE_NAME, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(names, self._grpc)
            await bind(self._grpc, self.address)
            await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
            await self._grpc.start()
        if self.port is not None:
            await self.port.start()
        # Serving means reachable both ways: whoever waits for it may call through the kernel then.
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self._record = ProcessRecord.of(os.getpid(), self.name, self.address)
        try:
            self._record.write(self.config.run_dir())
        except OSError as exc:  # e.g. a full disk
            raise from_exception(exc) from exc
        log.info("serving", extra={"address": self.address, "services": sorted(self.services)})

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", *self.services):
            await self._health.set(service, status)

    async def stop(self, grace_s: float = 10.0) -> None:
        """Drain: take no new calls, let running ones finish for `grace_s`, then cancel them."""
        for callback in self._when_stopping:
            callback()
        await self._health.enter_graceful_shutdown()
        if self.port is not None:
            await self.port.stop(grace_s)
        if self._grpc is not None:
            await self._grpc.stop(grace_s)
        for channel in self._direct.values():
            await channel.close()
        if self._record is not None:
            self._record.remove(self.config.run_dir())
        log.info("stopped")

    def when_stopping(self, callback: Callable[[], None]) -> None:
        """Call back first when the server stops: to end calls that would wait for hours."""
        self._when_stopping.append(callback)

    def request_stop(self) -> None:
        """Make `run` drain and return."""
        self._stopping.set()

    async def run(self, *, ready: Callable[[], None] | None = None) -> None:
        """Start, serve until SIGTERM, SIGINT or `request_stop`, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)
        starting = loop.create_task(self.start())
        stopping = loop.create_task(self._stopping.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if starting.done():
                starting.result()
                if ready is not None:
                    ready()
                quiet_gc()
                await stopping
        finally:
            starting.cancel()  # it may wait for a kernel that never comes
            stopping.cancel()
            await self.stop()


async def bind(server: grpc.aio.Server, address: str, setting: str = "--listen") -> None:
    """Bind a grpc server; a Unix socket left by a dead process is taken over, a live one is not.

    setting: where the address can be changed, for the error. Raises FailedPrecondition
    ADDRESS_IN_USE.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if os.path.exists(path):
            try:
                _, writer = await asyncio.open_unix_connection(path)
                writer.close()
                raise FailedPrecondition(
                    "ADDRESS_IN_USE", f"A process already listens on {path}; stop it first."
                )
            except OSError:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
    try:
        if server.add_insecure_port(address) == 0:
            raise RuntimeError("no port")
    except RuntimeError as exc:
        raise FailedPrecondition(
            "ADDRESS_IN_USE",
            f"Cannot listen on {address}: it is in use or not valid; stop what listens there or "
            f"choose another address by {setting}.",
        ) from exc
