"""What the manager learns from the kernel: which workers hang."""

from __future__ import annotations

import grpc

from llmos.lib.host import host_id
from llmos.lib.ports import hung_ports
from llmos.servers.execution.manager.core import Manager

_PREFIX = "worker/"


async def watch(channel: grpc.aio.Channel, manager: Manager) -> None:
    """Report hung workers of this host to the manager, for ever."""
    here = host_id()
    async for port in hung_ports(channel):
        if port.name.startswith(_PREFIX) and port.host == here:
            manager.hung(port.name.removeprefix(_PREFIX), port.pid)
