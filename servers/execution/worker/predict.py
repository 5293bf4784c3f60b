"""Predict and Classify of execution.proto as what engines take, and back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.api.execution.v1 import predict_pb2 as pb
from llmos.lib.errors import InvalidArgument, ResourceExhausted
from llmos.servers.execution.engine.base import (
    Classes,
    Engine,
    Prediction,
    SequenceCall,
    TensorSpec,
)
from llmos.servers.execution.oip import tensors
from llmos.servers.execution.worker.memory import SharedMemory

MAX_ITEMS = 2048


async def prediction(
    request: pb.PredictRequest, engine: Engine, memory: SharedMemory, tenant: str
) -> Prediction:
    """Return what to run. Raises InvalidArgument BAD_TENSOR, and as SharedMemory.once."""
    specs = {spec.name: spec for spec in engine.info.inputs}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for tensor in request.inputs:
        if tensor.name in arrays:
            raise tensors.bad(f"Tensor {tensor.name!r} comes twice.")
        data: bytes | memoryview = tensor.data
        if tensor.WhichOneof("elements") == "buffer":
            data = await memory.once(tensor.buffer)
        # In a thread: a message may have tens of megabytes.
        arrays[tensor.name] = await asyncio.to_thread(
            tensors.from_bytes,
            tensor.name,
            tensor.datatype,
            list(tensor.shape),
            data,
            specs.get(tensor.name),
        )
    sequence = None
    if request.HasField("sequence"):
        given = request.sequence
        if not given.id:
            raise InvalidArgument("BAD_TENSOR", "The sequence has id 0; choose another number.")
        sequence = SequenceCall(given.id, given.start, given.end)
    return Prediction(arrays, list(request.outputs), sequence, tenant)


async def response(
    results: Mapping[str, npt.NDArray[Any]],
    ref: str,
    engine: Engine,
    memory: SharedMemory,
    buffers_from: int,
) -> pb.PredictResponse:
    """Return results as the wire's; large ones in buffers when the caller wants that."""
    specs = {spec.name: spec for spec in engine.info.outputs}
    answer = pb.PredictResponse(model=ref)
    for name, array in results.items():
        dtype = dtype_of(specs.get(name), array)
        tensor = answer.outputs.add(name=name, datatype=tensors.NAMES[dtype], shape=array.shape)
        data = await asyncio.to_thread(tensors.encode, array, dtype)
        if buffers_from and len(data) >= buffers_from:
            tensor.buffer.CopyFrom(await memory.give(data))
        else:
            tensor.data = data
    return answer


def dtype_of(spec: TensorSpec | None, array: npt.NDArray[Any]) -> str:
    """Return an output's datatype: as declared, else the array's own."""
    if spec is not None and spec.dtype:
        return spec.dtype
    return "object" if array.dtype.kind in "OSU" else str(array.dtype)


def items(request: pb.ClassifyRequest) -> list[str | bytes]:
    """Return what to classify.

    Raises InvalidArgument EMPTY_INPUT; ResourceExhausted TOO_MANY_INPUTS.
    """
    if not request.items:
        raise InvalidArgument("EMPTY_INPUT", "There is nothing to classify; give at least one.")
    if len(request.items) > MAX_ITEMS:
        raise ResourceExhausted(
            "TOO_MANY_INPUTS",
            f"{len(request.items)} items in one call; split them into calls of {MAX_ITEMS}.",
        )
    found: list[str | bytes] = []
    for index, item in enumerate(request.items):
        content = item.text if item.WhichOneof("content") == "text" else item.file
        if not content:
            raise InvalidArgument("EMPTY_INPUT", f"Item {index} is empty; leave it out.")
        found.append(content)
    return found


def classified(classes: Classes, top: int, ref: str) -> pb.ClassifyResponse:
    """Return scores as labels, the likeliest first; top 0 = all."""
    answer = pb.ClassifyResponse(model=ref)
    for scores in classes.scores:
        best: Sequence[int] = np.argsort(-scores, kind="stable")[: top or None].tolist()
        answer.classifications.add(
            labels=[
                pb.Label(name=_name(classes.names, index), score=float(scores[index]), index=index)
                for index in best
            ]
        )
    return answer


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else str(index)
