"""How a pipeline calls other models: over the kernel, large tensors as buffers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy.typing as npt

from llmos.api.execution.v1 import execution_pb2_grpc
from llmos.api.execution.v1 import predict_pb2 as pb
from llmos.lib.buffers import Mapping as Buffer
from llmos.lib.errors import FailedPrecondition, ResourceExhausted
from llmos.lib.rpc import from_rpc_error
from llmos.servers.execution.oip import tensors
from llmos.servers.execution.worker.memory import SharedMemory
from llmos.servers.execution.worker.predict import dtype_of

BUFFERS_FROM = 256 << 10  # below this a message is cheaper than making and opening a buffer


class OtherModels:
    """See engine.base.Models. Calls are children of the call being served."""

    def __init__(self, channel: grpc.aio.Channel, memory: SharedMemory) -> None:
        """Call on the kernel's channel; buffers are reached through `memory`."""
        self._stub = execution_pb2_grpc.ExecutionStub(channel)
        self._memory = memory

    async def predict(
        self, model: str, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[Any]]:
        """Run a model. Raises as Execution/Predict."""
        request = pb.PredictRequest(model=model, outputs=outputs, buffers_from=BUFFERS_FROM)
        lent: list[Buffer] = []
        try:
            for name, array in inputs.items():
                dtype = dtype_of(None, array)
                tensor = request.inputs.add(
                    name=name, datatype=tensors.NAMES[dtype], shape=array.shape
                )
                data = await asyncio.to_thread(tensors.encode, array, dtype)
                if (buffer := await self._lend(data)) is not None:
                    lent.append(buffer)
                    tensor.buffer.handle.CopyFrom(buffer.handle)
                    tensor.buffer.size = len(data)
                else:
                    tensor.data = data
            try:
                answer = await self._stub.Predict(request)
            except grpc.RpcError as exc:
                raise from_rpc_error(exc) from exc
        finally:
            for buffer in lent:
                self._memory.free_soon(buffer)
        found = {}
        for tensor in answer.outputs:
            elements: bytes | memoryview = tensor.data
            if tensor.WhichOneof("elements") == "buffer":
                elements = await self._memory.once(tensor.buffer)
            found[tensor.name] = tensors.from_bytes(
                tensor.name, tensor.datatype, list(tensor.shape), elements, None
            )
        return found

    async def _lend(self, data: bytes) -> Buffer | None:
        if len(data) < BUFFERS_FROM:
            return None
        try:
            return await self._memory.lend(data)
        except (ResourceExhausted, FailedPrecondition):
            return None  # no room there, or another host: it goes in the message
