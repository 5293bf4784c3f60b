"""Feeds the reclaimer: the kernel's port events, and time."""

from __future__ import annotations

import asyncio

import grpc

from llmos.api.kernel.v1 import admin_pb2
from llmos.lib.ports import port_changes
from llmos.servers.memory.prefix import store as prefix
from llmos.servers.memory.reclaim import Reclaimer
from llmos.servers.memory.sessions import sessions

TICK_S = 0.5
_Event = admin_pb2.WatchPortsResponse


async def tick(reclaimer: Reclaimer) -> None:
    """Let due leases go, for ever."""
    while True:
        reclaimer.tick()
        await asyncio.sleep(TICK_S)


async def keep(prefixes: prefix.PrefixStore) -> None:
    """Keep the blocks of prefixes in their budget, for ever."""
    while True:
        await prefixes.tick()
        await asyncio.sleep(prefix.TICK_S)


async def expire(kept: sessions.Sessions) -> None:
    """Delete sessions whose time is over, for ever."""
    while True:
        await kept.tick()
        await asyncio.sleep(sessions.TICK_S)


async def watch_ports(channel: grpc.aio.Channel, reclaimer: Reclaimer) -> None:
    """Follow the kernel's ports, for ever."""
    async for event in port_changes(channel):
        if event is None:
            reclaimer.lost()
        elif event.event in (_Event.EVENT_ATTACHED, _Event.EVENT_EXPORTED):
            reclaimer.attached(event.port.instance, event.port.port)
        elif event.event == _Event.EVENT_DETACHED:
            reclaimer.detached(event.port.instance, event.port.port)
        elif event.event == _Event.EVENT_SYNCED:
            reclaimer.synced()
