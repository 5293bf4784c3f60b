"""A loaded engine on the kernel's port (or, without a kernel, on an address of its own)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc, worker_pb2_grpc
from llmos.api.execution.v1.zygote_pb2 import WorkerOrder
from llmos.api.inference import open_inference_pb2, open_inference_pb2_grpc
from llmos.lib.config import ServerConfig
from llmos.lib.serve import Server
from llmos.servers.execution.engine.base import Engine
from llmos.servers.execution.engine.prefix import SharesPrefixes
from llmos.servers.execution.oip.worker import WorkerInference
from llmos.servers.execution.wire import name_of
from llmos.servers.execution.worker.adapters import StoredAdapters
from llmos.servers.execution.worker.control import WorkerControl, info_of, instance_key
from llmos.servers.execution.worker.memory import SharedMemory
from llmos.servers.execution.worker.models import OtherModels
from llmos.servers.execution.worker.prefix import WorkerPrefixes, digest_of
from llmos.servers.execution.worker.service import WorkerExecution

if TYPE_CHECKING:
    from llmos.servers.execution.worker.birth import Parent

_EXECUTION = execution_pb2.DESCRIPTOR.services_by_name["Execution"].full_name
_INFERENCE = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


def run(order: WorkerOrder, engine: Engine, granted: int, parent: Parent) -> None:
    """Serve until SIGTERM; tells `parent` when the exports are acknowledged."""
    uvloop.run(_serve(order, engine, granted, parent))
    engine.close()


async def _serve(order: WorkerOrder, engine: Engine, granted: int, parent: Parent) -> None:
    config = ServerConfig(
        state_dir=Path(order.state_dir),
        kernel=order.kernel,
        listen=order.listen,
        log_level=order.log_level,
    )
    name = name_of(order.ref, order.replica)
    server = Server(f"worker/{name}", config, listen=bool(order.listen))
    info = info_of(order, engine.info, granted)
    channel = server.port.channel if server.port is not None else None
    memory = SharedMemory(channel)
    if channel is not None:
        engine.connect(OtherModels(channel, memory))
    adapters = StoredAdapters(engine, channel, config.state_dir)
    prefixes: WorkerPrefixes | None = None
    if channel is not None and isinstance(engine, SharesPrefixes) and (model := digest_of(order)):
        prefixes = WorkerPrefixes(channel, model, engine.layout, engine.block_bytes)
        engine.share(prefixes)
    server.add(
        execution_pb2_grpc.add_ExecutionServicer_to_server,
        WorkerExecution(engine, order.ref, memory, adapters),
        keys=info.keys,
        credits=order.credits,
        stall_ms=order.stall_ms,
    )
    server.add(
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server,
        WorkerInference(engine, order.ref, channel, memory, order.files[0].name),
        keys=[*info.keys, instance_key(info)],
        credits=order.credits,
        stall_ms=order.stall_ms,
    )
    server.add(
        worker_pb2_grpc.add_WorkerControlServicer_to_server,
        WorkerControl(server, info, _EXECUTION, _INFERENCE),
        keys=[name],
    )
    telling = asyncio.create_task(_tell_of_work(server, engine, order.stall_ms / 1000))
    try:
        await server.run(ready=lambda: parent.ready(info))
    finally:
        telling.cancel()
        if prefixes is not None:
            await prefixes.close()
        await memory.close()


async def _tell_of_work(server: Server, engine: Engine, stall_s: float) -> None:
    """Tell the kernel whenever the engine has got on with its work; for ever."""
    if not stall_s:
        return
    done = engine.work()
    while True:
        await asyncio.sleep(min(1.0, stall_s / 8))
        if done != (done := engine.work()):
            server.progress()
