"""A real kernel with real server processes that tests kill, stop and drain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
from kernel_process import KernelProcess, end

from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc, state_pb2, state_pb2_grpc
from llmos.lib import rpc
from llmos.lib.errors import LLMOSError
from llmos.lib.port import Port

SERVER = Path(__file__).with_name("fault_server.py")


class Cell:
    """A kernel, servers by name, one client port, and the servers' journal."""

    def __init__(self, folder: Path) -> None:
        self.kernel = KernelProcess(folder)
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.client = Port(self.kernel.address, "client")
        channel = self.client.channel
        self.blobs = registry_pb2_grpc.BlobsStub(channel)
        self.documents = state_pb2_grpc.DocumentsStub(channel)
        self.admin = admin_pb2_grpc.AdminStub(channel)
        self._once: Any = channel.unary_unary("/fault.Test/Once")

    async def server(self, name: str, credits: int = 0, stall_ms: int = 0) -> int:
        """Start a server and wait until it serves; return its pid."""
        ready = self.count("ready", name)
        process = self.processes[name] = self._spawn(name, credits, stall_ms)
        await self.until(lambda: self.count("ready", name) > ready)
        return process.pid

    def _spawn(self, name: str, credits: int, stall_ms: int) -> subprocess.Popen[bytes]:
        words = [sys.executable, str(SERVER), str(self.folder), name, str(credits), str(stall_ms)]
        env = {k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")}
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, env=env)

    def signal(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a server."""
        self.processes[name].send_signal(number)
        if number is signal.SIGKILL:
            self.processes[name].wait()

    def journal(self) -> list[tuple[int, str, str]]:
        """Return what the servers noted: pid, event, id."""
        try:
            lines = (self.folder / "journal").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(int(pid), event, name) for pid, event, name in map(str.split, lines)]

    def count(self, event: str, name: str) -> int:
        """Return how often something happened to a call."""
        return sum((e, n) == (event, name) for _, e, n in self.journal())

    async def until(self, what: Callable[[], bool], seconds: float = 30) -> None:
        """Wait for something."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.journal()
            await asyncio.sleep(0.02)

    async def started(self, *names: str) -> None:
        """Wait until calls run."""
        for name in names:
            await self.until(lambda name=name: self.count("start", name) > 0)  # type: ignore[misc]

    def ask(self, name: str, seconds: float, timeout: float = 60) -> asyncio.Future[int]:
        """Make an idempotent call; the result is the pid that answered."""

        async def asked() -> int:
            request = pb.StatBlobsRequest(sha256=[name, str(seconds)])
            return int((await self.blobs.StatBlobs(request, timeout=timeout)).sizes[0])

        return asyncio.ensure_future(asked())

    def once(self, name: str, seconds: float) -> asyncio.Future[bytes]:
        """Make a call that is not idempotent."""

        async def asked() -> bytes:
            return bytes(await self._once(f"{name} {seconds}".encode(), timeout=60))

        return asyncio.ensure_future(asked())

    def put(self, name: str, seconds: float, request_id: str = "") -> asyncio.Future[str]:
        """Make a call that is not idempotent and that the library knows."""
        request = state_pb2.PutDocumentRequest(key=name, content_type=str(seconds))
        metadata = (("llmos-request-id", request_id),) if request_id else None

        async def asked() -> str:
            reply = await self.documents.PutDocument(request, timeout=60, metadata=metadata)
            return reply.document.key

        return asyncio.ensure_future(asked())

    def read(self, name: str, pieces: int, ms: int = 50) -> asyncio.Future[list[int]]:
        """Read a stream to its end."""
        request = pb.ReadBlobRequest(sha256=name, length=pieces, offset=ms)

        async def asked() -> list[int]:
            stream = self.blobs.ReadBlob(request, timeout=60)
            return [int.from_bytes(piece.data, "big") async for piece in stream]

        return asyncio.ensure_future(asked())

    async def port_of(self, name: str) -> admin_pb2.PortInfo:
        """Return what the kernel says of a server."""
        ports = (await self.admin.ListPorts(admin_pb2.ListPortsRequest())).ports
        return next(p for p in ports if p.name == name)


async def failure(call: asyncio.Future[Any]) -> LLMOSError:
    """Return the error that a call must end with."""
    try:
        result = await call
    except grpc.aio.AioRpcError as exc:
        return rpc.from_rpc_error(exc)
    raise AssertionError(f"answered with {result!r}")


@contextlib.asynccontextmanager
async def cell(folder: Path) -> AsyncIterator[Cell]:
    """Start a kernel and a client; end everything whatever happens."""
    made = Cell(folder)
    made.kernel.start()
    try:
        await made.client.start()
        yield made
    finally:
        await made.client.stop(0)
        for process in made.processes.values():
            process.send_signal(signal.SIGCONT)
            end(process, grace_s=0)
        made.kernel.stop()
