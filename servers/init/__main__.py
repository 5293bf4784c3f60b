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
from llmos.lib import log as logs
from llmos.lib.config import load_or_exit
from llmos.lib.errors import AlreadyExists, InvalidArgument, LLMOSError, Unavailable
from llmos.lib.family import mark
from llmos.lib.publish import Publisher
from llmos.lib.rpc import from_exception
from llmos.lib.serve import Server
from llmos.servers.init import manifest as manifests
from llmos.servers.init import standin
from llmos.servers.init.config import InitConfig
from llmos.servers.init.journal import Journal
from llmos.servers.init.lock import locked
from llmos.servers.init.probe import GrpcProbe
from llmos.servers.init.service import InitService
from llmos.servers.init.spawner import LocalSpawner
from llmos.servers.init.supervisor import Supervisor
from llmos.servers.init.unit import World
from llmos.servers.init.watch import watch

_ANSWER_S = 2.0  # for callers to hear the end of a shutdown
log = logging.getLogger("llmos.servers.init")


def main() -> None:
    """Run until everything is shut down."""
    path = _config_path()
    config = load_or_exit(InitConfig, "init", "Boots LLM OS and keeps its processes running.")
    logs.setup("init", config.log_level)
    try:
        manifest = manifests.load(path)
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
        sys.argv += ["--config", path]  # where its own settings are read from, too
        return Path(path)
    return named


async def _supervise(config: InitConfig, manifest: manifests.Manifest, run_dir: Path) -> None:
    log_folder = config.state_dir / "logs"
    log_folder.mkdir(exist_ok=True)
    publisher = Publisher()
    world = World(
        policy=config.policy(),
        spawner=LocalSpawner(mark(run_dir)),
        probe=GrpcProbe(),
        journal=Journal(run_dir / "init.json"),
        run_dir=run_dir,
        logs=log_folder,
        log_cap=config.log_cap_mib << 20,
        address=config.socket,
        argv=lambda spec: spec.argv(manifest.path, config.state_dir),
        tell=publisher.tell,
    )
    supervisor = Supervisor(manifest, world)
    loop = asyncio.get_running_loop()
    ending: set[asyncio.Task[None]] = set()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: ending.add(loop.create_task(_drain(supervisor))))
    # init serves on its own socket from the first moment, and through the kernel once there is one.
    service = InitService(supervisor, log_folder)
    alone = Server("init", dataclasses.replace(config, kernel="none"))
    alone.add(init_pb2_grpc.add_InitServicer_to_server, service)
    await alone.start()
    tasks = [asyncio.create_task(_attach(config, supervisor, service, publisher))]
    try:
        await supervisor.boot()
        log.info("everything is ready")
        tasks.append(
            asyncio.create_task(standin.keep(world.spawner, run_dir, log_folder / "init.log"))
        )
        await supervisor.stopping.wait()
        await _end(tasks.pop())
        await supervisor.gone.wait()
    finally:
        for task in tasks:
            await _end(task)
        await alone.stop(_ANSWER_S)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def _attach(
    config: InitConfig, supervisor: Supervisor, service: InitService, publisher: Publisher
) -> None:
    """Serve through the kernel, publish and watch there until cancelled.

    The port reconnects by itself once attached.
    """
    kernel = supervisor.units.get("kernel")
    while kernel is not None and config.kernel != "none":
        await kernel.ready.wait()
        server = Server("init", config, listen=False)
        server.add(init_pb2_grpc.add_InitServicer_to_server, service)
        try:
            await server.start()
            channel = server.channel("kernel")
            publisher.connect(channel)
            await watch(channel, supervisor)
        except Unavailable as exc:  # the kernel died again before we were attached
            log.warning("not attached to the kernel: %s", exc)
        finally:
            publisher.connect(None)
            await server.stop(_ANSWER_S)


async def _drain(supervisor: Supervisor) -> None:
    async for _ in supervisor.shutdown():
        pass


if __name__ == "__main__":
    main()
