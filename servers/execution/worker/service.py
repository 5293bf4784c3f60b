"""The worker's side of Execution: converts and hands to the engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.execution.v1 import execution_pb2_grpc, predict_pb2
from llmos.lib import call
from llmos.lib.errors import Unimplemented
from llmos.servers.execution.engine.base import Engine
from llmos.servers.execution.worker import convert, predict, resume
from llmos.servers.execution.worker.adapters import StoredAdapters
from llmos.servers.execution.worker.memory import SharedMemory


class WorkerExecution(execution_pb2_grpc.ExecutionServicer):
    """Keyed methods of Execution for the one model of this worker."""

    def __init__(
        self,
        engine: Engine,
        ref: str,
        memory: SharedMemory | None = None,
        adapters: StoredAdapters | None = None,
    ) -> None:
        """Serve `engine`, which is `ref`; tensors in buffers are reached through `memory`."""
        self._adapters = adapters or StoredAdapters(engine, None, Path())
        self._engine = engine
        self._ref = ref
        self._memory = memory or SharedMemory(None)

    async def Generate(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Stream; every piece adds its tokens to the resume log."""
        before = resume.parse(call.resume_log(context), adapted=bool(request.adapter))
        if before is not None and before.finished:
            return  # only the END was lost with the earlier worker
        adapter = request.adapter
        if adapter and before is not None:  # not what the name means by now
            adapter = f"{adapter.partition('@')[0]}@{before.adapter}"
        adapter = await self._adapters.ready(adapter) if adapter else ""
        wanted = convert.generation(
            request,
            seed=before.seed if before else None,
            resume=before.tokens if before else (),
            rank=call.rank(context),
            tenant=call.tenant(context),
            adapter=adapter,
        )
        first = before is None
        began = resume.begin(wanted.seed, int(adapter.partition("@")[2] or 0))
        async with contextlib.aclosing(self._engine.generate(wanted)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                delta = resume.entry(piece.tokens, bool(piece.finish))
                call.append_resume_log(context, began + delta if first else delta)
                yield convert.response(piece, self._ref, wanted.seed, first, self._engine.spell)
                first = False

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> Any:
        """Refuse."""
        raise _not_here()

    async def LoadModel(self, request: pb.LoadModelRequest, context: Any) -> Any:
        """Refuse."""
        raise _not_here()

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Any) -> Any:
        """Refuse."""
        raise _not_here()

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        """Embed texts."""
        result = await self._engine.embed(convert.texts(request))
        return await asyncio.to_thread(convert.embeddings, result, self._ref)

    async def Classify(
        self, request: predict_pb2.ClassifyRequest, context: Any
    ) -> predict_pb2.ClassifyResponse:
        """Name what items are."""
        classes = await self._engine.classify(predict.items(request))
        return await asyncio.to_thread(predict.classified, classes, request.top, self._ref)

    async def Predict(
        self, request: predict_pb2.PredictRequest, context: Any
    ) -> predict_pb2.PredictResponse:
        """Run on tensors."""
        wanted = await predict.prediction(request, self._engine, self._memory, call.tenant(context))
        results = await self._engine.predict(wanted)
        return await self._response(results, request)

    async def PredictStream(
        self, request: predict_pb2.PredictStreamRequest, context: Any
    ) -> AsyncIterator[predict_pb2.PredictStreamResponse]:
        """Run on tensors; any number of answers."""
        inner = request.request
        wanted = await predict.prediction(inner, self._engine, self._memory, call.tenant(context))
        stream = self._engine.predict_stream(wanted)
        async with contextlib.aclosing(stream) as answers:  # type: ignore[type-var]
            async for results in answers:
                yield predict_pb2.PredictStreamResponse(answer=await self._response(results, inner))

    async def WatchModels(self, request: pb.WatchModelsRequest, context: Any) -> AsyncIterator[Any]:
        """Refuse."""
        raise _not_here()
        yield

    async def HoldModel(self, request: pb.HoldModelRequest, context: Any) -> AsyncIterator[Any]:
        """Refuse."""
        raise _not_here()
        yield

    async def _response(
        self, results: Any, request: predict_pb2.PredictRequest
    ) -> predict_pb2.PredictResponse:
        return await predict.response(
            results, self._ref, self._engine, self._memory, request.buffers_from
        )

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        """Tokenize, off the loop: a long text takes long."""
        ids, pieces = await asyncio.to_thread(self._engine.tokenize, request.text)
        return pb.TokenizeResponse(ids=ids, pieces=pieces)


def _not_here() -> Unimplemented:
    """Return the error of the manager's methods; behind the kernel nobody sees it."""
    return Unimplemented("WRONG_SERVER", "This is a worker; the execution manager does that.")
