"""A storage server of the test's own process, and the channel on which it is reached."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc

from llmos.kernel.transport.server import KernelServer
from llmos.lib.config import socket_address
from llmos.lib.port import Port
from llmos.lib.serve import Server
from llmos.servers.storage.config import StorageConfig


async def reach(
    stack: AsyncExitStack, way: str, state_dir: Path, add: Callable[[Server], object]
) -> grpc.aio.Channel:
    """Serve what `add` adds until the stack ends; way: `gRPC` or `kernel`."""
    kernel = "none"
    if way == "kernel":
        kernel_server, kernel = KernelServer(), socket_address(state_dir, "kernel")
        await kernel_server.start([kernel])
        stack.push_async_callback(kernel_server.stop, 0)
    server = Server("storage", StorageConfig(state_dir=state_dir, kernel=kernel))
    add(server)
    await server.start()
    stack.push_async_callback(server.stop, 0)
    if way != "kernel":
        return await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
    port = Port(kernel, "client")
    await port.start()
    stack.push_async_callback(port.stop, 1)
    channel: grpc.aio.Channel = port.channel
    return channel
