"""The worker's side of the Open Inference Protocol: one model's description and inference."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from llmos.api.inference import open_inference_pb2 as pb
from llmos.api.inference import open_inference_pb2_grpc
from llmos.lib.call import tenant
from llmos.lib.errors import InvalidArgument, LLMOSError, NotFound
from llmos.lib.rpc import from_exception
from llmos.servers.execution.engine.base import Engine
from llmos.servers.execution.oip import describe, parameters
from llmos.servers.execution.oip.base import Refusing
from llmos.servers.execution.oip.infer import Inference
from llmos.servers.execution.oip.regions import Lookup
from llmos.servers.execution.worker.memory import SharedMemory

_AHEAD = 64  # requests of one stream that may be worked on at the same time
Answers = asyncio.Queue[pb.ModelStreamInferResponse | LLMOSError | None]


class WorkerInference(Refusing):
    """Keyed methods for the one model of this worker.

    The kernel routes by model name alone. A call for another version than this worker's, or for
    another model within a stream, goes on to that model's worker over `channel`; without one it
    fails with the name to ask instead.
    """

    def __init__(
        self,
        engine: Engine,
        ref: str,
        channel: grpc.aio.Channel | None = None,
        memory: SharedMemory | None = None,
        main: str = "",
    ) -> None:
        """Serve `engine`, which is `ref` (`name@version`); main: name of its main file."""
        self._engine = engine
        self._name, _, self._version = ref.partition("@")
        self._main = main
        self._inference = Inference(
            engine, self._version, memory or SharedMemory(channel), Lookup(channel)
        )
        self._others: open_inference_pb2_grpc.GRPCInferenceServiceAsyncStub | None = None
        if channel is not None:
            self._others = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Any
    ) -> pb.ModelMetadataResponse:
        """List the model's own tensors."""
        if other := self._other(request.name, request.version):
            answer = await self._stub(other).ModelMetadata(
                pb.ModelMetadataRequest(name=other), timeout=context.time_remaining()
            )
            answer.name = request.name
            return answer
        info = self._engine.info
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[self._version],
            platform=describe.PLATFORMS.get(info.engine, info.engine),
            inputs=[describe.metadata(spec) for spec in describe.inputs_of(info)],
            outputs=[describe.metadata(spec) for spec in describe.outputs_of(info)],
        )

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, context: Any
    ) -> pb.ModelConfigResponse:
        """Tell how the model is run."""
        if other := self._other(request.name, request.version):
            answer = await self._stub(other).ModelConfig(
                pb.ModelConfigRequest(name=other), timeout=context.time_remaining()
            )
            answer.config.name = request.name
            return answer
        config = describe.config(request.name, self._engine.info, self._main)
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Any
    ) -> pb.ModelStatisticsResponse:
        """Tell what this worker has done; the manager asks every worker."""
        found = describe.statistics(self._name, self._version, self._engine.statistics)
        return pb.ModelStatisticsResponse(model_stats=[found])

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Any
    ) -> pb.ModelInferResponse:
        """Run the model."""
        if other := self._other(request.model_name, request.model_version):
            return await self._forward(request, other, context)
        asked = parameters.read(request)
        async with asyncio.timeout(asked.timeout_s):
            return await self._inference.one(request, asked, tenant(context))

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Any
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Run the model on every request of a stream; answers come in the order of the requests.

        Requests are worked on together (so that they are batched), those of a sequence one by one
        as the engine does.
        """
        metadata = {str(k).lower(): v for k, v in context.invocation_metadata() or ()}
        strict = metadata.get("triton_grpc_error") == "true"
        lined_up: asyncio.Queue[Answers | None] = asyncio.Queue(_AHEAD)
        running: set[asyncio.Task[None]] = set()

        async def read() -> None:
            try:
                async for request in request_iterator:
                    answers: Answers = asyncio.Queue(16)
                    await lined_up.put(answers)
                    task = asyncio.create_task(self._answer(request, context, answers))
                    running.add(task)
                    task.add_done_callback(running.discard)
            finally:
                await lined_up.put(None)

        reading = asyncio.create_task(read())
        try:
            while (answers := await lined_up.get()) is not None:
                while (answer := await answers.get()) is not None:
                    if isinstance(answer, pb.ModelStreamInferResponse):
                        if strict and answer.error_message:
                            continue
                        yield answer
                    elif strict:
                        raise answer
            await reading
        finally:
            for task in (reading, *running):
                task.cancel()
            await asyncio.gather(reading, *running, return_exceptions=True)

    async def _answer(self, request: pb.ModelInferRequest, context: Any, answers: Answers) -> None:
        """Put all answers of one request, its error if it has one, and None."""
        try:
            asked = parameters.read(request)
            async with asyncio.timeout(asked.timeout_s):
                if other := self._other(request.model_name, request.model_version):
                    answer = await self._forward(request, other, context)
                    await answers.put(final(answer))
                else:
                    stream = self._inference.many(request, asked, tenant(context))
                    async for message in stream:
                        await answers.put(message)
        except Exception as exc:  # whatever it is, it is this request's answer
            error = from_exception(exc)
            message = pb.ModelStreamInferResponse(error_message=error.message)
            message.infer_response.id = request.id
            message.infer_response.model_name = request.model_name
            message.infer_response.parameters["triton_final_response"].bool_param = True
            await answers.put(message)
            await answers.put(error)
        await answers.put(None)

    async def _forward(
        self, request: pb.ModelInferRequest, other: str, context: Any
    ) -> pb.ModelInferResponse:
        forwarded = pb.ModelInferRequest()
        forwarded.CopyFrom(request)
        forwarded.model_name, forwarded.model_version = other, ""
        answer = await self._stub(other).ModelInfer(forwarded, timeout=context.time_remaining())
        answer.model_name = request.model_name
        return answer

    def _other(self, name: str, version: str) -> str:
        """Return the reference of the model that is meant when it is not this one, else ""."""
        base, _, in_name = name.partition("@")
        if base == self._name and in_name[:1].isalpha() and not version:
            return ""  # an alias that the kernel found to mean this worker
        if in_name and version and in_name != version:
            raise InvalidArgument(
                "BAD_NAME",
                f"Model name {name!r} has a version and another one, {version[:20]!r}, is asked; "
                "leave one out.",
            )
        if base and base != self._name:  # of a stream; a call of its own is routed by its name
            return f"{base}@{version or in_name}" if version or in_name else base
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


def final(answer: pb.ModelInferResponse) -> pb.ModelStreamInferResponse:
    """Return the only answer of a request as one of a stream."""
    answer.parameters["triton_final_response"].bool_param = True
    return pb.ModelStreamInferResponse(infer_response=answer)
