"""What init learns from the kernel: which processes hang although they run."""

from __future__ import annotations

import logging

import grpc

from llmos.lib.host import host_id
from llmos.lib.ports import hung_ports
from llmos.servers.init.supervisor import Supervisor

WHY = "hung: it had calls in progress and made no progress in its stall time"
log = logging.getLogger(__name__)


async def watch(channel: grpc.aio.Channel, supervisor: Supervisor) -> None:
    """Report hung processes of this host to the supervisor, for ever."""
    here = host_id()
    async for port in hung_ports(channel):
        if port.host == here:
            supervisor.hung(port.name, port.pid, WHY)
        else:
            log.warning("a process of another host hangs", extra={"process": port.name})
