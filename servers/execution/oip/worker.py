"""The worker's side of the Open Inference Protocol: one model's metadata and inference."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np

from llmos.api.inference import open_inference_pb2 as pb
from llmos.api.inference import open_inference_pb2_grpc
from llmos.lib.errors import InvalidArgument, NotFound, ResourceExhausted
from llmos.servers.execution.engine.base import Engine, TensorSpec
from llmos.servers.execution.oip import parameters, tensors
from llmos.servers.execution.oip.base import Refusing

TEXT = "text"
EMBEDDING = "embedding"
MAX_TEXTS = 2048
_PLATFORMS = {"onnx": "onnxruntime_onnx", "torch": "pytorch"}


class WorkerInference(Refusing):
    """ModelMetadata and ModelInfer for the one model of this worker.

    The kernel routes by model name alone. A call for another version than this worker's goes on
    to that version's worker over `channel`; without one it fails with the name to ask instead.
    """

    def __init__(self, engine: Engine, ref: str, channel: grpc.aio.Channel | None = None) -> None:
        """Serve `engine`, which is `ref` (`name@version`)."""
        self._engine = engine
        self._name, _, self._version = ref.partition("@")
        self._others: open_inference_pb2_grpc.GRPCInferenceServiceAsyncStub | None = None
        if channel is not None:
            self._others = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._inputs = {spec.name: spec for spec in engine.info.inputs}
        self._outputs = {spec.name: spec for spec in engine.info.outputs}

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Any
    ) -> pb.ModelMetadataResponse:
        """List the model's own tensors."""
        if other := self._other(request.name, request.version):
            stub = self._stub(other)
            answer = await stub.ModelMetadata(
                pb.ModelMetadataRequest(name=other), timeout=context.time_remaining()
            )
            answer.name = request.name
            return answer
        info = self._engine.info
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[self._version],
            platform=_PLATFORMS.get(info.engine, info.engine),
            inputs=[_metadata(spec) for spec in info.inputs],
            outputs=[_metadata(spec) for spec in info.outputs],
        )

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Any
    ) -> pb.ModelInferResponse:
        """Run the model."""
        if other := self._other(request.model_name, request.model_version):
            forwarded = pb.ModelInferRequest()
            forwarded.CopyFrom(request)
            forwarded.model_name, forwarded.model_version = other, ""
            stub = self._stub(other)
            answer = await stub.ModelInfer(forwarded, timeout=context.time_remaining())
            answer.model_name = request.model_name
            return answer
        async with asyncio.timeout(parameters.timeout_s(request)):
            return await self._infer(request)

    async def _infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        wanted = [output.name for output in request.outputs]
        # In a thread: a message may have tens of megabytes.
        arrays = await asyncio.to_thread(tensors.decode, request, self._inputs)
        if self._engine.info.task == "embed" and TEXT in arrays and TEXT not in self._inputs:
            results = {EMBEDDING: await self._embed(arrays, wanted)}
            specs = {EMBEDDING: TensorSpec(EMBEDDING, "float32", (-1, -1))}
        else:
            results = await self._engine.infer(arrays, wanted)
            specs = self._outputs
        response = pb.ModelInferResponse(
            model_name=request.model_name, model_version=self._version, id=request.id
        )
        for name, array in results.items():
            dtype = specs[name].dtype
            response.outputs.add(name=name, datatype=tensors.NAMES[dtype], shape=array.shape)
            response.raw_output_contents.append(
                await asyncio.to_thread(tensors.encode, array, dtype)
            )
        return response

    async def _embed(self, arrays: dict[str, tensors.Array], wanted: list[str]) -> tensors.Array:
        array = arrays[TEXT]
        if len(arrays) > 1:
            raise tensors.bad(f"Tensor {TEXT!r} stands alone; leave the other inputs out.")
        if array.dtype != object or not (
            array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)
        ):
            raise tensors.bad(
                f"Tensor {TEXT!r} has shape {list(array.shape)}; expected BYTES of shape [n] or "
                "[n, 1]."
            )
        for name in wanted:
            if name != EMBEDDING:
                raise tensors.bad(f"{TEXT!r} gives {EMBEDDING!r} only, not {name!r}.")
        if array.size > MAX_TEXTS:
            raise ResourceExhausted(
                "TOO_MANY_INPUTS",
                f"{array.size} texts in one call; split them into calls of {MAX_TEXTS}.",
            )
        texts = tensors.strings(TEXT, array.reshape(-1)).tolist()
        vectors: np.ndarray[Any, np.dtype[np.float32]] = (await self._engine.embed(texts)).vectors
        return vectors

    def _other(self, name: str, version: str) -> str:
        """Return the reference of the model that is meant when it is not this one, else ""."""
        base, _, in_name = name.partition("@")
        if in_name and version and in_name != version:
            raise InvalidArgument(
                "BAD_NAME",
                f"Model name {name!r} has a version and another one, {version[:20]!r}, is asked; "
                "leave one out.",
            )
        wanted = version or in_name or self._version
        return "" if wanted == self._version else f"{base}@{wanted}"

    def _stub(self, other: str) -> open_inference_pb2_grpc.GRPCInferenceServiceAsyncStub:
        if self._others is None:
            raise NotFound(
                "NO_SUCH_VERSION",
                f"Here is {self._name}@{self._version}; for the other version ask for the model "
                f"name {other!r} and leave the version empty.",
            )
        return self._others


def _metadata(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=tensors.NAMES[spec.dtype], shape=spec.shape
    )
