"""The gateway process: HTTP on one side, a port of the kernel on the other."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import Any

import uvloop

from llmos.lib import log
from llmos.lib.config import load_or_exit
from llmos.lib.errors import LLMOSError
from llmos.lib.extras import needed
from llmos.lib.serve import Server
from llmos.lib.tuning import quiet_gc

with needed("gateway"):
    from llmos.servers.gateway import web
    from llmos.servers.gateway.adapters import NamingAdapters
    from llmos.servers.gateway.app import build
    from llmos.servers.gateway.config import GatewayConfig
    from llmos.servers.gateway.counts import Counts
    from llmos.servers.gateway.keys import Keys
    from llmos.servers.gateway.metrics import Metrics
    from llmos.servers.gateway.siblings import Siblings, until_orphaned
    from llmos.servers.gateway.upstream import Upstream


async def run(config: GatewayConfig) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises LLMOSError when it cannot start."""
    first, run_dir = config.sibling == 0, config.run_dir()
    sock = _listen(config)
    server = Server(name_of(config), config, requires=["execution"], listen=first)
    far_end = "execution" if server.port is None else "kernel"
    telemetry = None
    if config.otlp_endpoint:
        # It takes a while to import, and most do without.
        from llmos.servers.gateway.telemetry import Telemetry

        telemetry = Telemetry(config.otlp_endpoint)
    keys = Keys() if config.auth == "keys" else None
    metrics = Metrics()
    counts = Counts(run_dir, config.sibling, metrics.text) if config.processes > 1 else None
    app = build(
        NamingAdapters(Upstream(server.channel("execution"), far_end)),
        config,
        server.channel,
        keys,
        telemetry,
        metrics,
        counts,
    )
    uvicorn = web.HttpServer(app, config.drain_s, config.tls_cert, config.tls_key)
    uvicorn.load()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, uvicorn.stop)
    address = web.address_of(sock)
    announced = web.announced(address, run_dir) if first else contextlib.nullcontext()
    async with counts.shared() if counts is not None else contextlib.nullcontext():
        with announced:
            # HTTP is there while the port attaches, so that /healthz and /readyz can tell.
            serving = asyncio.create_task(uvicorn.serve(sockets=[sock]))
            starting = asyncio.create_task(server.start())
            beside: list[Coroutine[Any, Any, None]] = []
            if keys is not None:
                beside.append(keys.run(server.channel))
            if not first:
                beside.append(until_orphaned(run_dir / web.ADDRESS_FILE, uvicorn.stop))
            elif config.processes > 1:
                flags = ("--port", str(sock.getsockname()[1]))
                beside.append(Siblings(config.processes - 1, flags, config.drain_s).run())
            tasks = [starting, *(asyncio.create_task(work) for work in beside)]
            try:
                await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
                if starting.done():
                    await starting
                    quiet_gc()
                await serving
            finally:
                uvicorn.stop()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(serving, *tasks, return_exceptions=True)
                await server.stop(grace_s=1.0)
                if telemetry is not None:
                    await asyncio.to_thread(telemetry.close)


def _listen(config: GatewayConfig) -> socket.socket:
    if config.processes == 1:
        return web.listen(config.host, config.port)
    if config.sibling == 0:
        return web.listen_first(config.host, config.port, config.run_dir())
    return web.listen(config.host, config.port, shared=True)


def name_of(config: GatewayConfig) -> str:
    """Return the process's name in the OS."""
    return f"gateway/{config.sibling}" if config.sibling else "gateway"


def main() -> None:
    """Run `llmos-gateway`."""
    config = load_or_exit(GatewayConfig, "gateway", "The OpenAI API of LLM OS over HTTP.")
    log.setup(name_of(config), config.log_level)
    try:
        uvloop.run(run(config))
    except LLMOSError as exc:
        print(f"llmos-gateway: {exc}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
