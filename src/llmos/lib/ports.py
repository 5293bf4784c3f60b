"""Following the kernel's ports for as long as a process lives, whatever happens to the kernel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc

from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
from llmos.lib.errors import LLMOSError
from llmos.lib.rpc import from_exception

_BACK_OFF_S = (0.1, 2.0)
_Event = admin_pb2.WatchPortsResponse
log = logging.getLogger(__name__)


async def port_changes(
    channel: grpc.aio.Channel,
) -> AsyncIterator[admin_pb2.WatchPortsResponse | None]:
    """Yield the events of Admin/WatchPorts, for ever; None = the kernel is away, all is unknown.

    After None all ports that there are come again, then SYNCED.
    """
    stub = admin_pb2_grpc.AdminStub(channel)
    pause = _BACK_OFF_S[0]
    while True:
        try:
            async for event in stub.WatchPorts(admin_pb2.WatchPortsRequest()):
                yield event
                pause = _BACK_OFF_S[0]
            cause = "the stream ended"
        except (grpc.RpcError, LLMOSError) as exc:
            cause = from_exception(exc).message
        yield None
        log.info("the kernel's port events stopped; watching again", extra={"cause": cause})
        await asyncio.sleep(pause)
        pause = min(2 * pause, _BACK_OFF_S[1])


async def hung_ports(channel: grpc.aio.Channel) -> AsyncIterator[admin_pb2.PortInfo]:
    """Yield the ports that the kernel finds hung, for ever: calls in progress, and no progress."""
    async for change in port_changes(channel):
        if change is not None and (
            change.event == _Event.EVENT_STALLED
            or (change.event == _Event.EVENT_ATTACHED and change.port.stalled)
        ):
            yield change.port
