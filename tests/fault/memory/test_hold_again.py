"""A hold of a client without a port, over the death of the kernel."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.execution.v1.execution_pb2_grpc import ExecutionStub
from llmos.clients.ctl.model_hold import ModelHold
from llmos.kernel.transport.server import KernelServer
from llmos.lib.config import socket_address
from llmos.lib.errors import Aborted, NotFound
from llmos.lib.port import ExportSpec, Port
from llmos.lib.rpc import abort

SERVICE = "llmos.api.execution.v1.Execution"


class Holder:
    """Execution as a holder sees it: the model is held while the call lasts."""

    def __init__(self) -> None:
        self.holds = 0
        self.holding: set[object] = set()
        self.forced = asyncio.Event()

    async def hold(self, request: pb.HoldModelRequest, context: Any) -> Any:
        if request.model == "nobody":
            await abort(context, NotFound("NO_SUCH_MODEL", "There is no model nobody."))
        self.holds += 1
        me = object()
        self.holding.add(me)
        try:
            yield pb.HoldModelResponse(model=pb.Model(name=request.model, version=1, pid=7))
            await self.forced.wait()
            await abort(context, Aborted("UNLOADED", "It was unloaded by force."))
        finally:
            self.holding.discard(me)


async def until(what: Any) -> None:
    async with asyncio.timeout(30):
        while not what():
            await asyncio.sleep(0.02)


async def test_the_hold_is_taken_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    address = socket_address(tmp_path, "kernel")
    kernel, holder = KernelServer(), Holder()
    await kernel.start([address])
    port = Port(address, "execution")
    handler = grpc.unary_stream_rpc_method_handler(
        holder.hold,
        request_deserializer=pb.HoldModelRequest.FromString,
        response_serializer=pb.HoldModelResponse.SerializeToString,
    )
    port.serve(ExportSpec(SERVICE), {"HoldModel": handler})
    await port.start()
    try:
        with grpc.insecure_channel(address) as channel:
            stub = ExecutionStub(channel)
            with pytest.raises(NotFound):
                await asyncio.to_thread(next, ModelHold(stub, "nobody", 30).models())
            held = ModelHold(stub, "m", 60)
            models = held.models()
            assert (await asyncio.to_thread(next, models)).name == "m"
            held.beside(models)
            await kernel.stop(0)
            kernel = KernelServer()
            await kernel.start([address])
            await until(lambda: holder.holds == 2 and len(holder.holding) == 1)
            await asyncio.to_thread(held.end)
            await until(lambda: not holder.holding)
            forced = ModelHold(stub, "m", 60)
            rest = forced.models()
            await asyncio.to_thread(next, rest)
            forced.beside(rest)
            holder.forced.set()
            await until(lambda: "hold" not in {t.name for t in threading.enumerate()})
            await asyncio.to_thread(forced.end)
    finally:
        await port.stop(1)
        await kernel.stop(0)
    said = capfd.readouterr().err
    assert "taking it again" in said and "m@1 is held, by worker 7" in said
    assert "held no more: It was unloaded by force." in said
