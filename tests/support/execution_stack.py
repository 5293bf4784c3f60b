"""Real kernel, storage, memory and execution processes, and the workers that they make."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
from memory_process import Processes

from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc
from llmos.api.inference import open_inference_pb2, open_inference_pb2_grpc
from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
from llmos.api.memory.v1 import residency_pb2_grpc
from llmos.api.storage.v1 import registry_pb2, registry_pb2_grpc
from llmos.lib.config import run_dir
from llmos.lib.host import ProcessRecord, records
from llmos.lib.port import Port

EXECUTION_FLAGS = ("--threads", "1")


class Stack:
    """The processes of one state directory."""

    def __init__(self, state_dir: Path, processes: Processes) -> None:
        self.state_dir = state_dir
        self.processes = processes
        self.flags: dict[str, tuple[str, ...]] = {"execution": EXECUTION_FLAGS}

    def start(self, *names: str) -> None:
        for name in names:
            self.processes.start(name, *self.flags.get(name, ()))

    def kill(self, name: str) -> None:
        self.processes.kill(name)

    def records(self, prefix: str) -> list[ProcessRecord]:
        return [r for r in records(run_dir(self.state_dir)) if r.name.startswith(prefix)]

    def record(self, name: str) -> ProcessRecord:
        (found,) = self.records(name)
        return found

    def end_orphans(self) -> None:
        """End what outlives the manager: zygote and workers, also one that is half born."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for record in [*self.records("zygote"), *self.records("worker/")]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(record.pid, number)
            until = time.monotonic() + 12
            while time.monotonic() < until:
                if not [*self.records("zygote"), *self.records("worker/")]:
                    return
                time.sleep(0.02)


@contextmanager
def stack(state_dir: Path, *names: str, **flags: tuple[str, ...]) -> Iterator[Stack]:
    """Run the servers named, all by default; `flags` are more arguments by name."""
    with Processes(state_dir) as processes:
        running = Stack(state_dir, processes)
        for name, more in flags.items():
            running.flags[name] = (*running.flags.get(name, ()), *more)
        try:
            running.start(*(names or ("kernel", "storage", "memory", "execution")))
            yield running
        finally:
            with contextlib.suppress(KeyError):
                processes.stop("execution")
            running.end_orphans()


class Client:
    """What a test calls."""

    def __init__(self, port: Port) -> None:
        channel = port.channel
        self.channel = channel
        self.execution = execution_pb2_grpc.ExecutionStub(channel)
        self.inference = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        self.registry = registry_pb2_grpc.RegistryStub(channel)
        self.residency = residency_pb2_grpc.ResidencyStub(channel)
        self.admin = admin_pb2_grpc.AdminStub(channel)

    async def attached(self) -> set[str]:
        """Return the names of the processes that export something."""
        reply = await self.admin.ListPorts(admin_pb2.ListPortsRequest(), timeout=60)
        return {p.name for p in reply.ports if p.exports}

    async def import_model(self, source: str, name: str = "") -> str:
        request = registry_pb2.ImportModelRequest(source=source, name=name)
        async for reply in self.registry.ImportModel(request, timeout=120):
            version = reply.version
        return f"{version.name}@{version.version}"

    async def infer(
        self, model: str, timeout: float = 60
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """Run a model of model_files.tiny_onnx on ones."""
        request = open_inference_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="x", datatype="FP32", shape=[1, 32])
        request.raw_input_contents.append(np.ones((1, 32), np.float32).tobytes())
        reply = await self.inference.ModelInfer(request, timeout=timeout)
        return np.frombuffer(reply.raw_output_contents[0], np.float32)

    async def models(self) -> dict[str, execution_pb2.Model]:
        request = execution_pb2.ListModelsRequest()
        reply = await self.execution.ListModels(request, timeout=60)
        return {f"{m.name}@{m.version}": m for m in reply.models}

    async def load(self, model: str, pin: bool = False) -> execution_pb2.Model:
        request = execution_pb2.LoadModelRequest(model=model, pin=pin)
        return (await self.execution.LoadModel(request, timeout=120)).model

    async def unload(self, model: str) -> bool:
        request = execution_pb2.UnloadModelRequest(model=model)
        return (await self.execution.UnloadModel(request, timeout=120)).was_loaded


@asynccontextmanager
async def client(running: Stack) -> AsyncIterator[Client]:
    """Attach a client to the kernel, when those that were started have done so."""
    port = Port(running.processes.address("kernel"), "test")
    await port.start()
    client_ = Client(port)
    wanted = {n for n in ("storage", "memory", "execution") if running.processes.runs(n)}
    try:
        async with asyncio.timeout(60):
            while not wanted <= await client_.attached():
                await asyncio.sleep(0.05)
        yield client_
    finally:
        await port.stop(1)


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)
