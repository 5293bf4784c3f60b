"""One inference request: its tensors in, the engine, its tensors out."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np

from llmos.api.inference import open_inference_pb2 as pb
from llmos.lib.bufferkey import handle_of
from llmos.lib.errors import InvalidArgument, ResourceExhausted, Unimplemented
from llmos.servers.execution.engine.base import Engine, Generation, Prediction, TensorSpec
from llmos.servers.execution.oip import parameters, segments, tensors
from llmos.servers.execution.oip.describe import TEXT_INPUT, TEXT_OUTPUT
from llmos.servers.execution.oip.parameters import Asked, Place
from llmos.servers.execution.oip.regions import Lookup, Region
from llmos.servers.execution.worker.memory import SharedMemory, part
from llmos.servers.execution.worker.predict import dtype_of

TEXT = "text"
EMBEDDING = "embedding"
MAX_TEXTS = 2048


class Inference:
    """Runs the requests of one model."""

    def __init__(self, engine: Engine, version: str, memory: SharedMemory, regions: Lookup) -> None:
        """Serve `engine`; `regions` finds the shared memory that requests name."""
        self._engine = engine
        self._version = version
        self._memory = memory
        self._regions = regions
        self._inputs = {spec.name: spec for spec in engine.info.inputs}
        self._outputs = {spec.name: spec for spec in engine.info.outputs}

    async def one(
        self, request: pb.ModelInferRequest, asked: Asked, tenant: str
    ) -> pb.ModelInferResponse:
        """Answer a request once. Raises as ModelInfer in the proto."""
        arrays, places = await self._read(request, asked)
        if self._engine.info.task == "generate" and TEXT_INPUT.name in arrays:
            raise Unimplemented(
                "DECOUPLED",
                "The model answers a request in many pieces; use ModelStreamInfer, or "
                "llmos.api.execution.v1.Execution/Generate.",
            )
        wanted = [output.name for output in request.outputs]
        embeds = self._engine.info.task == "embed" and TEXT in arrays and TEXT not in self._inputs
        if embeds:
            results = {EMBEDDING: await self._embed(arrays, wanted)}
        else:
            results = await self._engine.predict(Prediction(arrays, wanted, asked.sequence, tenant))
        return await self._write(request, results, places)

    async def many(
        self, request: pb.ModelInferRequest, asked: Asked, tenant: str
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer a request as often as the model does; the last answer says that it is."""
        info = self._engine.info
        decoupled = info.task == "generate" or (
            info.serving is not None and info.serving.stream is not None
        )
        if not decoupled:
            yield _message(await self.one(request, asked, tenant), last=True)
            return
        arrays, places = await self._read(request, asked)
        if info.task == "generate":
            pieces = self._generate(arrays, asked)
        else:
            wanted = [output.name for output in request.outputs]
            given = Prediction(arrays, wanted, asked.sequence, tenant)
            pieces = self._engine.predict_stream(given)
        held = None
        async with contextlib.aclosing(pieces) as stream:  # type: ignore[type-var]
            async for results in stream:
                if held is not None:
                    yield _message(held, last=False)
                held = await self._write(request, results, places)
                if asked.empty_final:
                    yield _message(held, last=False)
                    held = None
        if held is None:
            held = pb.ModelInferResponse(
                model_name=request.model_name, model_version=self._version, id=request.id
            )
        yield _message(held, last=True)

    async def _read(
        self, request: pb.ModelInferRequest, asked: Asked
    ) -> tuple[dict[str, tensors.Array], dict[str, Place]]:
        """Return the inputs, and where outputs go that go to shared memory."""
        parameters.check_tensors(request)
        if asked.generation and self._engine.info.task != "generate":
            raise parameters.bad(
                f"Parameter {next(iter(asked.generation))!r} is for models that generate text."
            )
        shared: dict[str, memoryview] = {}
        for tensor in request.inputs:
            if (where := parameters.place(tensor.name, tensor.parameters)) is not None:
                shared[tensor.name] = await self._given(where)
        specs = self._inputs
        if self._engine.info.task == "generate":
            specs = {TEXT_INPUT.name: TEXT_INPUT}
        # In a thread: a message may have tens of megabytes.
        arrays = await asyncio.to_thread(tensors.decode, request, specs, shared)
        places = {}
        for output in request.outputs:
            if (where := parameters.place(output.name, output.parameters)) is not None:
                places[output.name] = where
        return arrays, places

    async def _given(self, where: Place) -> memoryview:
        region = await self._region(where)
        at = region.offset + where.offset
        if segment := segments.name_of(region.key):
            return memoryview(await asyncio.to_thread(segments.read, segment, at, where.size))
        return part(await self._memory.open(handle_of(region.key)), at, where.size)

    async def _put(self, where: Place, data: bytes) -> None:
        region = await self._region(where)
        at = region.offset + where.offset
        if segment := segments.name_of(region.key):
            await asyncio.to_thread(segments.write, segment, at, data)
            return
        mapping = await self._memory.open(handle_of(region.key), write=True)
        part(mapping, at, where.size)[: len(data)] = data

    async def _region(self, where: Place) -> Region:
        region = await self._regions.find(where.region)
        if where.offset + where.size > region.byte_size:
            raise tensors.bad(
                f"{where.size:,} bytes from byte {where.offset:,} do not fit in region "
                f"{where.region!r} of {region.byte_size:,} bytes."
            )
        return region

    async def _write(
        self,
        request: pb.ModelInferRequest,
        results: Mapping[str, tensors.Array],
        places: Mapping[str, Place],
    ) -> pb.ModelInferResponse:
        response = pb.ModelInferResponse(
            model_name=request.model_name, model_version=self._version, id=request.id
        )
        tops = {o.name: parameters.classification(o.name, o.parameters) for o in request.outputs}
        for name, array in results.items():
            spec: TensorSpec | None = self._outputs.get(name)
            if tops.get(name):
                array, spec = self._classes(name, array, tops[name]), None
            dtype = dtype_of(spec, array)
            data = await asyncio.to_thread(tensors.encode, array, dtype)
            output = response.outputs.add(
                name=name, datatype=tensors.NAMES[dtype], shape=array.shape
            )
            if (where := places.get(name)) is None:
                response.raw_output_contents.append(data)
                continue
            if len(data) > where.size:
                raise tensors.bad(
                    f"Output {name!r} has {len(data):,} bytes; {where.size:,} bytes of region "
                    f"{where.region!r} are given for it."
                )
            await self._put(where, data)
            output.parameters["shared_memory_region"].string_param = where.region
            output.parameters["shared_memory_byte_size"].int64_param = len(data)
            if where.offset:
                output.parameters["shared_memory_offset"].int64_param = where.offset
        return response

    def _classes(self, name: str, array: tensors.Array, top: int) -> tensors.Array:
        """Return the likeliest classes as the classification extension writes them."""
        if array.ndim < 1 or array.dtype.kind not in "fiu":
            raise parameters.bad(f"Output {name!r} scores no classes; leave classification out.")
        labels = self._engine.labels(name) or ()
        scores = array.reshape(-1, array.shape[-1])
        best = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :top]
        found = np.empty(best.shape, object)
        for place, which in np.ndenumerate(best):
            index = int(which)
            label = f":{labels[index]}" if index < len(labels) else ""
            found[place] = f"{scores[place[0], index]:f}:{index}{label}"
        return found.reshape(*array.shape[:-1], best.shape[1])

    async def _embed(
        self, arrays: Mapping[str, tensors.Array], wanted: Sequence[str]
    ) -> tensors.Array:
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
        return (await self._engine.embed(texts)).vectors

    async def _generate(
        self, arrays: Mapping[str, tensors.Array], asked: Asked
    ) -> AsyncIterator[dict[str, Any]]:
        array = arrays.get(TEXT_INPUT.name)
        if array is None or array.size != 1 or len(arrays) > 1:
            raise tensors.bad(
                f"The model takes one tensor {TEXT_INPUT.name!r}, BYTES of one element; the rest "
                "are parameters."
            )
        given = asked.generation
        temperature, top_p = float(given.get("temperature", 0.7)), float(given.get("top_p", 1.0))
        if not 0 <= temperature <= 2 or not 0 < top_p <= 1:  # also of NaN
            raise InvalidArgument(
                "BAD_SAMPLING",
                f"temperature is {temperature:g} and top_p {top_p:g}; they must be 0 to 2, and "
                "over 0 to 1.",
            )
        numbers = {}
        for name, default in (("max_tokens", 0), ("top_k", 0), ("seed", secrets.randbits(32))):
            value = given.get(name, default)
            if not isinstance(value, int) or value < 0:
                raise parameters.bad(f"Parameter {name!r} is {value!r}; give a whole number.")
            numbers[name] = value
        wanted = Generation(
            prompt=array.reshape(-1)[0],
            max_tokens=numbers["max_tokens"],
            temperature=temperature,
            top_p=top_p,
            top_k=numbers["top_k"],
            seed=numbers["seed"],
        )
        async with contextlib.aclosing(self._engine.generate(wanted)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                if piece.text:
                    yield {TEXT_OUTPUT.name: np.array([piece.text], object)}


def _message(answer: pb.ModelInferResponse, *, last: bool) -> pb.ModelStreamInferResponse:
    answer.parameters["triton_final_response"].bool_param = last
    return pb.ModelStreamInferResponse(infer_response=answer)
