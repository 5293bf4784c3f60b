"""`llmos-memory`: parse, build, serve, drain."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from llmos.api.memory.v1.buffers_pb2_grpc import add_BuffersServicer_to_server
from llmos.api.memory.v1.prefix_pb2_grpc import add_PrefixesServicer_to_server
from llmos.api.memory.v1.residency_pb2_grpc import add_ResidencyServicer_to_server
from llmos.api.memory.v1.sessions_pb2_grpc import add_SessionsServicer_to_server
from llmos.lib import log
from llmos.lib.config import load_or_exit
from llmos.lib.errors import FailedPrecondition, LLMOSError
from llmos.lib.rpc import from_exception
from llmos.lib.serve import Server
from llmos.servers.memory import devices, shm, watch
from llmos.servers.memory.buffers import BufferStore
from llmos.servers.memory.config import MemoryConfig
from llmos.servers.memory.prefix.service import PrefixesService
from llmos.servers.memory.prefix.store import PrefixStore
from llmos.servers.memory.reclaim import Reclaimer
from llmos.servers.memory.residency import Ledger
from llmos.servers.memory.service import BuffersService, ResidencyService
from llmos.servers.memory.sessions.models import ExecutionModels, Models, NoModels
from llmos.servers.memory.sessions.service import SessionsService
from llmos.servers.memory.sessions.sessions import Sessions
from llmos.servers.memory.sessions.store import SessionStore


async def serve(config: MemoryConfig) -> None:
    """Run the memory server until it is told to stop."""
    path = shm.locate(config.shm_dir, config.state_dir, config.run_dir())
    store = BufferStore(
        shm.Directory(path, config.state_dir),
        budget=config.buffer_bytes,
        max_size=config.max_buffer_bytes,
        quota=config.tenant_buffer_bytes,
        progress=lambda: server.progress(),
    )
    ledger = Ledger(
        devices.probe(config.ram_fraction, config.vram_fraction), ttl_s=config.grant_ttl_s
    )
    prefixes = PrefixStore(
        store,
        config.state_dir / "memory",
        ram_budget=int(store.accounts.budget * config.prefix_ram_fraction),
        disk_budget=config.prefix_disk_bytes,
        disk_spare=config.prefix_disk_spare_bytes,
    )
    server = Server("memory", config)
    stall_ms = int(config.stall_s * 1000)
    server.add(add_BuffersServicer_to_server, BuffersService(store), stall_ms=stall_ms)
    server.add(add_ResidencyServicer_to_server, ResidencyService(ledger), stall_ms=stall_ms)
    server.add(add_PrefixesServicer_to_server, PrefixesService(prefixes), stall_ms=stall_ms)
    sessions = Sessions(
        SessionStore(config.state_dir / "memory" / "sessions.db"),
        _models(server),
        config.session_embedder,
    )
    # No stall time: a context may wait for a model to be loaded, which others watch over.
    server.add(add_SessionsServicer_to_server, SessionsService(sessions))
    reclaimer = Reclaimer(
        store,
        watching=server.port is not None,
        detach_grace_s=config.detach_grace_s,
        sync_grace_s=config.sync_grace_s,
    )
    tasks: list[asyncio.Task[None]] = []

    def ready() -> None:
        tasks.append(asyncio.create_task(watch.tick(reclaimer)))
        tasks.append(asyncio.create_task(watch.keep(prefixes)))
        tasks.append(asyncio.create_task(watch.expire(sessions)))
        if server.port is not None:
            feed = watch.watch_ports(server.channel("kernel"), reclaimer)
            tasks.append(asyncio.create_task(feed))
        for task in tasks:  # they never end by themselves: if one does, better restart than leak
            task.add_done_callback(lambda _: server.request_stop())

    try:
        await server.run(ready=ready)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await sessions.close()
        await prefixes.close()
        store.close()
    for outcome in outcomes:
        if not isinstance(outcome, asyncio.CancelledError) and outcome is not None:
            raise outcome


def _models(server: Server) -> Models:
    try:
        return ExecutionModels(server.channel("execution"))
    except FailedPrecondition:  # alone: sessions do without
        return NoModels()


def main() -> None:
    """Start the process."""
    config = load_or_exit(MemoryConfig, "memory", "LLM OS's shared buffers and device memory.")
    log.setup("memory", config.log_level)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config))
    except (LLMOSError, OSError) as exc:
        print(f"llmos-memory: {from_exception(exc)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
