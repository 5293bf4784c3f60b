"""What attaches and leaves again leaves nothing behind that waits for the cycle collector."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from tempfile import TemporaryDirectory

from llmos.kernel.core.state import PortState
from llmos.kernel.transport.attach import Attachment
from llmos.kernel.transport.server import KernelServer
from llmos.lib.config import ServerConfig
from llmos.lib.port import Port
from llmos.lib.serve import Server


def of_kernel() -> int:
    # By type(), which asks no object: some of other libraries warn when they are looked at.
    return sum(type(o) in (Attachment, PortState) for o in gc.get_objects())


async def test_a_port_that_left_is_gone_at_once() -> None:
    with TemporaryDirectory(prefix="llmos-") as folder:
        address = f"unix:{folder}/kernel.sock"
        kernel = KernelServer()
        await kernel.start([address])
        gc.collect()
        gc.disable()
        try:
            before = of_kernel()
            for number in range(3):
                config = ServerConfig(state_dir=Path(folder), kernel=address)
                server = Server(f"w{number}", config, listen=False)
                await server.start()
                client = Port(address, "client")
                await client.start()
                assert of_kernel() > before
                await client.stop()
                await server.stop()
            async with asyncio.timeout(10):
                while of_kernel() > before + 1:  # the core's newest event names a port
                    await asyncio.sleep(0.01)
        finally:
            gc.enable()
            await kernel.stop()
