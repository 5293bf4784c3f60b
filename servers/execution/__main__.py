"""`llmos-execution`: the execution manager."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys

import uvloop

from llmos.api.execution.v1 import execution_pb2_grpc
from llmos.api.inference import open_inference_pb2_grpc
from llmos.api.kernel.v1 import admin_pb2_grpc
from llmos.lib import log as logs
from llmos.lib.buffers import BufferClient
from llmos.lib.call import background
from llmos.lib.config import load_or_exit
from llmos.lib.errors import LLMOSError
from llmos.lib.extras import needed
from llmos.lib.holds import VersionHolds
from llmos.lib.publish import Fact, Publisher
from llmos.lib.serve import Server

with needed("execution"):
    from llmos.servers.execution.config import ExecutionConfig
    from llmos.servers.execution.manager.adoption import adopt
    from llmos.servers.execution.manager.aliases import follow
    from llmos.servers.execution.manager.changes import Changes
    from llmos.servers.execution.manager.core import Manager
    from llmos.servers.execution.manager.holding import HoldingCatalog
    from llmos.servers.execution.manager.kernels import compile_kernels
    from llmos.servers.execution.manager.memory import MemoryGrants
    from llmos.servers.execution.manager.routing import DirectRouter, KernelRouter
    from llmos.servers.execution.manager.watch import watch
    from llmos.servers.execution.manager.zygote import ZygoteClient
    from llmos.servers.execution.oip.manager import ManagerInference
    from llmos.servers.execution.oip.regions import Regions
    from llmos.servers.execution.service import ExecutionService, PagerService

log = logging.getLogger(__name__)


async def serve(config: ExecutionConfig) -> None:
    """Run the manager until SIGTERM. Raises what keeps it from starting."""
    server = Server("execution", config, requires=["storage", "memory", "kernel"])
    direct = DirectRouter() if server.port is None else None
    address = config.kernel or config.socket("kernel")
    router = direct or KernelRouter(server.channel("kernel"), address)
    cache = config.state_dir / "execution" / "files"
    place = f"execution on {socket.gethostname()} ({config.state_dir})"
    holds = VersionHolds(server.channel("storage"), place, lambda: manager.needed())
    catalog = HoldingCatalog(
        server.channel("storage"), cache, config.patience_s, holds, server.progress
    )
    grants = MemoryGrants(server.channel("memory"), config.patience_s)
    zygote = ZygoteClient(config.state_dir, server.progress)
    publisher = Publisher(server.port.channel if server.port is not None else None)

    def tell(topic: str, **facts: Fact) -> None:
        publisher.tell(topic, **facts)
        changes.happened()
        holds.changed()

    manager = Manager(config, catalog, grants, router, zygote, progress=server.progress, tell=tell)
    changes = Changes(manager.rows)
    regions = Regions(lambda: BufferClient(server.channel("memory")), config.shm_allow)
    stall_ms = int(config.stall_s * 1000)
    server.add(
        execution_pb2_grpc.add_ExecutionServicer_to_server,
        ExecutionService(manager, direct, changes),
        fault_handler=True,
        stall_ms=stall_ms,
    )
    server.add(
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server,
        ManagerInference(manager, regions, router.statistics, manager.log),
        fault_handler=True,
        stall_ms=stall_ms,
    )
    server.add(admin_pb2_grpc.add_PagerServicer_to_server, PagerService(manager))

    async def adopt_open_and_watch() -> None:
        try:
            adopted = await adopt(config.run_dir(), router)
            manager.open(adopted, await grants.leases() if adopted else None)
            watching.append(background(holds.keep()))
            if server.port is not None:
                await watch(server.port.channel, manager)
        except Exception:  # outermost: without this the manager would wait for ever, in silence
            log.exception("cannot adopt or watch workers")
            server.request_stop()

    def ready() -> None:
        zygote.start()
        watching.append(background(adopt_open_and_watch()))
        watching.append(background(compile_kernels()))
        watching.append(background(follow(server.channel("storage"), manager)))

    watching: list[asyncio.Task[None]] = []
    try:
        await server.run(ready=ready)
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await regions.close()
        await manager.close()
        await zygote.stop()
        if direct is not None:
            await direct.close()


def main() -> None:
    """Run; one sentence on stderr and exit code 1 when it cannot start."""
    config = load_or_exit(ExecutionConfig, "execution", "Loads models and runs them.")
    logs.setup("execution", config.log_level)
    try:
        uvloop.run(serve(config))
    except LLMOSError as exc:
        print(f"llmos-execution: {exc}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
