"""A training waits between steps while the kernel runs inference, and only so long."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from llmos.api.execution.v1 import execution_pb2, execution_pb2_grpc
from llmos.kernel.transport.server import KernelServer
from llmos.lib.port import ExportSpec, Port
from llmos.lib.serve import Recorder
from llmos.servers.optimizer.train import gate as gates
from llmos.servers.optimizer.train.gate import BUSY, Gate
from llmos.servers.optimizer.train.watcher import Watcher


class Slow(execution_pb2_grpc.ExecutionServicer):
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()

    async def Embed(self, request: Any, context: Any) -> execution_pb2.EmbedResponse:
        await self.answer.wait()
        return execution_pb2.EmbedResponse()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[grpc.aio.Channel, Slow]]:
    kernel, address = KernelServer(), f"unix:{tmp_path}/kernel.sock"
    await kernel.start([address])
    slow, recorder = Slow(), Recorder()  # type: ignore[abstract]  # one call is enough
    add: Any = execution_pb2_grpc.add_ExecutionServicer_to_server
    add(slow, recorder)
    server, client = Port(address, "execution"), Port(address, "job/1")
    for service, handlers in recorder.services.items():
        server.serve(ExportSpec(service, ["m"], 8), handlers)
    await server.start()
    await client.start()
    yield client.channel, slow
    await client.stop(0)
    await server.stop(0)
    await kernel.stop(0)


async def until(file: Path, there: bool) -> None:
    deadline = asyncio.get_running_loop().time() + 20
    while file.exists() != there:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


async def test_the_gate_is_closed_while_a_person_waits(
    world: tuple[grpc.aio.Channel, Slow], tmp_path: Path
) -> None:
    channel, slow = world
    watching = asyncio.create_task(Watcher(channel, tmp_path).run())
    stub: execution_pb2_grpc.ExecutionAsyncStub = execution_pb2_grpc.ExecutionStub(channel)
    for name, closes in (("batch", False), ("interactive", True)):
        slow.answer.clear()
        call = stub.Embed(
            execution_pb2.EmbedRequest(model="m"),
            timeout=20,
            metadata=(("llmos-class", name), ("llmos-key", "m")),
        )
        if closes:
            await until(tmp_path / BUSY, True)
        else:
            await asyncio.sleep(0.3)
            assert not (tmp_path / BUSY).exists()
        slow.answer.set()
        await call
        await until(tmp_path / BUSY, False)
    (tmp_path / BUSY).touch()
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    assert not (tmp_path / BUSY).exists()


def test_a_closed_gate_holds_a_step_back_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "MAX_WAIT_S", 0.3)
    stop = threading.Event()
    gate = Gate(tmp_path, stop)
    gate.wait()
    assert gate.waited_s == 0
    (tmp_path / BUSY).touch()
    gate.wait()
    assert gate.waited_s >= 0.3
    monkeypatch.setattr(gates, "MAX_WAIT_S", 60)
    opener = threading.Timer(0.1, (tmp_path / BUSY).unlink)
    opener.start()
    gate.wait()
    (tmp_path / BUSY).touch()
    stop.set()  # a paused job does not wait for inference to end
    start = time.monotonic()
    gate.wait()
    assert gate.stopping and time.monotonic() - start < 30
