"""Feeds the reclaimer: the kernel's port events, and time."""

from __future__ import annotations

import asyncio
import logging

import grpc

from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
from llmos.lib.errors import LLMOSError
from llmos.lib.rpc import from_exception
from llmos.servers.memory.reclaim import Reclaimer

TICK_S = 0.5
_BACK_OFF_S = (0.1, 2.0)
_Event = admin_pb2.WatchPortsResponse

log = logging.getLogger(__name__)


async def tick(reclaimer: Reclaimer) -> None:
    """Let due leases go, for ever."""
    while True:
        reclaimer.tick()
        await asyncio.sleep(TICK_S)


async def watch_ports(channel: grpc.aio.Channel, reclaimer: Reclaimer) -> None:
    """Follow the kernel's ports, for ever; when the stream breaks, watch again with back-off."""
    stub = admin_pb2_grpc.AdminStub(channel)
    pause = _BACK_OFF_S[0]
    while True:
        try:
            async for event in stub.WatchPorts(admin_pb2.WatchPortsRequest()):
                _apply(event, reclaimer)
                pause = _BACK_OFF_S[0]
            cause = "the stream ended"
        except (grpc.RpcError, LLMOSError) as exc:
            cause = from_exception(exc).message
        reclaimer.lost()
        log.info("the kernel's port events stopped; watching again", extra={"cause": cause})
        await asyncio.sleep(pause)
        pause = min(2 * pause, _BACK_OFF_S[1])


def _apply(event: admin_pb2.WatchPortsResponse, reclaimer: Reclaimer) -> None:
    if event.event in (_Event.EVENT_ATTACHED, _Event.EVENT_EXPORTED):
        reclaimer.attached(event.port.instance, event.port.port)
    elif event.event == _Event.EVENT_DETACHED:
        reclaimer.detached(event.port.instance, event.port.port)
    elif event.event == _Event.EVENT_SYNCED:
        reclaimer.synced()
