"""Tells a training that people wait for models: closes its gate while the kernel runs inference."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc

from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc, port_pb2
from llmos.servers.optimizer.train.gate import BUSY

_EVERY_S = 0.02
_QUIET_S = 0.1  # after the last call: requests come in bursts
_TIMEOUT_S = 2.0
_PREFIXES = ("/llmos.api.execution.", "/inference.")
_WAITING = (
    port_pb2.CALL_CLASS_SYSTEM,
    port_pb2.CALL_CLASS_INTERACTIVE,
    port_pb2.CALL_CLASS_NORMAL,
)


class Watcher:
    """Asks the kernel which calls run, many times a second."""

    def __init__(self, channel: grpc.aio.Channel, work: Path) -> None:
        """channel: to the kernel."""
        self._admin: admin_pb2_grpc.AdminAsyncStub = admin_pb2_grpc.AdminStub(channel)
        self._file = work / BUSY

    async def run(self) -> None:
        """Open and close the gate until cancelled; it is open then."""
        loop = asyncio.get_running_loop()
        quiet_at = 0.0
        try:
            while True:
                if await self._busy():
                    quiet_at = loop.time() + _QUIET_S
                    self._file.touch()
                elif loop.time() > quiet_at:
                    self._file.unlink(missing_ok=True)
                await asyncio.sleep(_EVERY_S)
        finally:
            self._file.unlink(missing_ok=True)

    async def _busy(self) -> bool:
        request = admin_pb2.ListCallsRequest(page_size=500)
        try:
            calls = (await self._admin.ListCalls(request, timeout=_TIMEOUT_S)).calls
        except grpc.RpcError:  # the kernel is away: so is inference
            return False
        return any(c.call_class in _WAITING and c.method.startswith(_PREFIXES) for c in calls)
