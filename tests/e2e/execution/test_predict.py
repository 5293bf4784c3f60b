"""Predict through the whole system: tensors in buffers, and watching models come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest
from execution_stack import Client, Stack, client, stack
from model_files import tiny_onnx

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.execution.v1 import predict_pb2
from llmos.lib.buffers import BufferClient
from llmos.lib.rpc import from_rpc_error


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("predict")) as running:
        tiny_onnx(running.state_dir / "tiny.onnx")
        yield running


@pytest.fixture
async def llmos(running: Stack) -> AsyncIterator[Client]:
    async with client(running) as client_:
        await client_.import_model(str(running.state_dir / "tiny.onnx"), "tiny")
        yield client_


@pytest.mark.timeout(120)
async def test_tensors_come_and_go_in_buffers(llmos: Client) -> None:
    rows = 64
    x = np.random.default_rng(2).standard_normal((rows, 32)).astype(np.float32)
    async with BufferClient(llmos.channel) as buffers:
        given = await buffers.create(x.nbytes + 64)
        given.array("float32", x.shape, 64)[:] = x
        request = predict_pb2.PredictRequest(model="tiny", buffers_from=1)
        tensor = request.inputs.add(name="x", datatype="FP32", shape=x.shape)
        tensor.buffer.handle.CopyFrom(given.handle)
        tensor.buffer.offset, tensor.buffer.size = 64, x.nbytes
        answer = await llmos.execution.Predict(request, timeout=60)
        (output,) = answer.outputs
        assert output.WhichOneof("elements") == "buffer"
        taken = await buffers.open(output.buffer.handle)
        y = taken.array("float32", (rows, 8)).copy()
        weight = np.random.default_rng(0).standard_normal((32, 8), dtype=np.float32)
        np.testing.assert_allclose(y, x @ weight, atol=1e-4)
        for change, reason in (({"size": x.nbytes + 8}, "BAD_RANGE"), ({"size": 8}, "BAD_TENSOR")):
            tensor.buffer.size = change["size"]
            with pytest.raises(grpc.RpcError) as caught:
                await llmos.execution.Predict(request, timeout=60)
            assert from_rpc_error(caught.value).reason == reason
        tensor.buffer.handle.token = b"x" * len(tensor.buffer.handle.token)
        with pytest.raises(grpc.RpcError) as caught:
            await llmos.execution.Predict(request, timeout=60)
        assert from_rpc_error(caught.value).reason == "NO_SUCH_BUFFER"


@pytest.mark.timeout(120)
async def test_models_are_watched(llmos: Client) -> None:
    await llmos.unload("tiny")
    request = pb.WatchModelsRequest(model="tiny")
    changes: asyncio.Queue[pb.WatchModelsResponse] = asyncio.Queue()

    async def watch() -> None:
        async for change in llmos.execution.WatchModels(request):
            changes.put_nowait(change)

    watching = asyncio.create_task(watch())
    try:

        async def until(state: int) -> pb.Model:
            while True:
                change = await asyncio.wait_for(changes.get(), 60)
                if change.model.state == state:
                    return change.model

        assert (await until(pb.MODEL_STATE_STORED)).name == "tiny"
        await llmos.load("tiny")
        assert (await until(pb.MODEL_STATE_READY)).pid
        await llmos.unload("tiny")
        await until(pb.MODEL_STATE_STORED)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
