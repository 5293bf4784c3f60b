"""llmos-init: boots the processes of a manifest and keeps them running."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import os
import signal
import sys
from pathlib import Path

from llmos.api.init.v1 import init_pb2_grpc
from llmos.lib import log
from llmos.lib.config import load_or_exit
from llmos.lib.errors import AlreadyExists, InvalidArgument, LLMOSError
from llmos.lib.rpc import from_exception
from llmos.lib.serve import Server
from llmos.servers.init import manifest as manifests
from llmos.servers.init.config import InitConfig
from llmos.servers.init.journal import Journal
from llmos.servers.init.lock import locked
from llmos.servers.init.probe import GrpcProbe
from llmos.servers.init.service import InitService
from llmos.servers.init.spawner import LocalSpawner
from llmos.servers.init.supervisor import Supervisor
from llmos.servers.init.unit import World

_ANSWER_S = 2.0  # for callers to hear the end of a shutdown


def main() -> None:
    """Run until everything is shut down."""
    config = load_or_exit(InitConfig, "init", "Boots LLM OS and keeps its processes running.")
    log.setup("init", config.log_level)
    try:
        manifest = manifests.load(_config_path())
        run_dir = config.run_dir()
        with locked(run_dir, config.state_dir):
            asyncio.run(_supervise(config, manifest, run_dir))
    except AlreadyExists as exc:
        print(f"llmos-init: {exc}", file=sys.stderr)
    except (LLMOSError, OSError) as exc:
        print(f"llmos-init: {from_exception(exc)}", file=sys.stderr)
        sys.exit(2 if isinstance(exc, InvalidArgument) else 1)


def _config_path() -> Path | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    named: Path | None = parser.parse_known_args()[0].config
    if named is None and (path := os.environ.get("LLMOS_CONFIG")):
        return Path(path)
    return named


async def _supervise(config: InitConfig, manifest: manifests.Manifest, run_dir: Path) -> None:
    log_folder = config.state_dir / "logs"
    log_folder.mkdir(exist_ok=True)
    world = World(
        policy=config.policy(),
        spawner=LocalSpawner(),
        probe=GrpcProbe(),
        journal=Journal(run_dir / "init.json"),
        run_dir=run_dir,
        logs=log_folder,
        log_cap=config.log_cap_mib << 20,
        address=config.socket,
        argv=lambda spec: spec.argv(manifest.path, config.state_dir),
    )
    supervisor = Supervisor(manifest, world)
    # init serves on its own socket from the first moment, and through the kernel once there is one.
    alone = dataclasses.replace(config, kernel="none")
    servers = [Server("init", alone)]
    if config.kernel != "none" and "kernel" in supervisor.units:
        servers.append(Server("init", dataclasses.replace(config, listen=""), listen=False))
    for server in servers:
        server.add(init_pb2_grpc.add_InitServicer_to_server, InitService(supervisor, log_folder))
    loop = asyncio.get_running_loop()
    ending: set[asyncio.Task[None]] = set()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: ending.add(loop.create_task(_drain(supervisor))))
    await servers[0].start()
    attach = asyncio.create_task(_attach(supervisor, servers[1:]))
    try:
        await supervisor.boot()
        logging.getLogger("llmos.servers.init").info("everything is ready")
        await supervisor.gone.wait()
    finally:
        attach.cancel()
        for server in reversed(servers):
            await server.stop(_ANSWER_S)


async def _attach(supervisor: Supervisor, servers: list[Server]) -> None:
    for server in servers:
        await supervisor.units["kernel"].ready.wait()
        await server.start()


async def _drain(supervisor: Supervisor) -> None:
    async for _ in supervisor.shutdown():
        pass


if __name__ == "__main__":
    main()
