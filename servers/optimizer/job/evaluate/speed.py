"""Speed and memory of a version as the execution server has it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import numpy as np

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.execution.v1 import execution_pb2_grpc, predict_pb2
from llmos.lib.rpc import from_rpc_error
from llmos.servers.optimizer.job.models.subject import Subject, prepare

_ALONE = 24  # calls one at a time
_TOGETHER = 8
_CALLS = 64
_TOKENS = 16
_LOAD_S = 300.0
_DATATYPES = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64", "int32": "INT32"}
SERVED = ("onnx", "torch_export", "torchscript")  # and language models


def servable(subject: Subject) -> bool:
    """Say whether the execution server has an engine for it."""
    return subject.format in SERVED or (
        subject.task == "generate" and subject.format in ("gguf", "safetensors")
    )


async def measure(
    channel: grpc.aio.Channel, subject: Subject, inputs: Sequence[Any]
) -> dict[str, float]:
    """Return latency_p50, latency_p99, throughput and memory. Raises what execution says."""
    stub: execution_pb2_grpc.ExecutionAsyncStub = execution_pb2_grpc.ExecutionStub(channel)
    some = list(inputs[:_CALLS])
    call = _caller(stub, subject)
    try:
        await stub.LoadModel(pb.LoadModelRequest(model=subject.ref), timeout=_LOAD_S)
        for item in some[:3]:
            await call(item)
        alone = []
        for index in range(_ALONE):
            start = time.perf_counter()
            await call(some[index % len(some)])
            alone.append((time.perf_counter() - start) * 1e3)
        start = time.perf_counter()
        places = asyncio.Semaphore(_TOGETHER)

        async def one(item: Any) -> None:
            async with places:
                await call(item)

        await asyncio.gather(*(one(some[i % len(some)]) for i in range(_CALLS)))
        rate = _CALLS / (time.perf_counter() - start)
        models = (await stub.ListModels(pb.ListModelsRequest(), timeout=60)).models
    except grpc.RpcError as exc:
        raise from_rpc_error(exc) from exc
    used = [m.used_bytes for m in models if f"{m.name}@{m.version}" == subject.ref]
    return {
        "latency_p50": float(np.percentile(alone, 50)),
        "latency_p99": float(np.percentile(alone, 99)),
        "throughput": rate,
        "memory": float(max(used, default=0)),
    }


def _caller(
    stub: execution_pb2_grpc.ExecutionAsyncStub, subject: Subject
) -> Callable[[Any], Awaitable[object]]:
    async def generate(text: str) -> None:
        request = pb.GenerateRequest(
            model=subject.ref,
            prompt=text,
            max_tokens=_TOKENS,
            sampling=pb.Sampling(temperature=0.0),
        )
        async for _ in stub.Generate(request, timeout=_LOAD_S):
            pass

    async def embed(text: str) -> None:
        await stub.Embed(pb.EmbedRequest(model=subject.ref, texts=[text]), timeout=_LOAD_S)

    async def classify(text: str) -> None:
        item = predict_pb2.Item(text=text)
        request = predict_pb2.ClassifyRequest(model=subject.ref, items=[item])
        await stub.Classify(request, timeout=_LOAD_S)

    async def predict(value: Any) -> None:
        feeds = {k: v for k, v in next(iter(subject.batches([value]))).feeds.items()}
        request = predict_pb2.PredictRequest(
            model=subject.ref,
            inputs=[
                predict_pb2.Tensor(
                    name=name,
                    datatype=_DATATYPES[str(prepare(array).dtype)],
                    shape=array.shape,
                    data=prepare(array).tobytes(),
                )
                for name, array in feeds.items()
            ],
        )
        await stub.Predict(request, timeout=_LOAD_S)

    if subject.encoder is not None and subject.format in ("onnx", "gguf", "safetensors"):
        ways = {"generate": generate, "embed": embed, "classify": classify}
        if subject.format != "onnx" or subject.task != "generate":
            return ways.get(subject.task, predict)
    return predict
