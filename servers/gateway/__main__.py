"""The gateway process: HTTP on one side, a port of the kernel on the other."""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop

from llmos.lib import log
from llmos.lib.config import load_or_exit
from llmos.lib.errors import LLMOSError
from llmos.lib.extras import needed
from llmos.lib.serve import Server

with needed("gateway"):
    from llmos.servers.gateway import web
    from llmos.servers.gateway.app import build
    from llmos.servers.gateway.config import GatewayConfig
    from llmos.servers.gateway.keys import Keys
    from llmos.servers.gateway.upstream import Upstream


async def run(config: GatewayConfig) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises LLMOSError when it cannot start."""
    sock = web.listen(config.host, config.port)
    server = Server("gateway", config, requires=["execution"])
    far_end = "execution" if server.port is None else "kernel"
    telemetry = None
    if config.otlp_endpoint:
        # It takes a while to import, and most do without.
        from llmos.servers.gateway.telemetry import Telemetry

        telemetry = Telemetry(config.otlp_endpoint)
    keys = Keys() if config.auth == "keys" else None
    app = build(
        Upstream(server.channel("execution"), far_end), config, server.channel, keys, telemetry
    )
    uvicorn = web.HttpServer(app, config.drain_s, config.tls_cert, config.tls_key)
    uvicorn.load()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, uvicorn.stop)
    with web.announced(web.address_of(sock), config.run_dir()):
        # HTTP is there while the port attaches, so that /healthz and /readyz can tell.
        serving = asyncio.create_task(uvicorn.serve(sockets=[sock]))
        starting = asyncio.create_task(server.start())
        reading = asyncio.create_task(keys.run(server.channel)) if keys is not None else None
        try:
            await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
            await serving
        finally:
            uvicorn.stop()
            tasks = [task for task in (starting, reading) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(serving, *tasks, return_exceptions=True)
            await server.stop(grace_s=1.0)
            if telemetry is not None:
                await asyncio.to_thread(telemetry.close)


def main() -> None:
    """Run `llmos-gateway`."""
    config = load_or_exit(GatewayConfig, "gateway", "The OpenAI API of LLM OS over HTTP.")
    log.setup("gateway", config.log_level)
    try:
        uvloop.run(run(config))
    except LLMOSError as exc:
        print(f"llmos-gateway: {exc}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
