"""A tiny deterministic model behind the real Execution service: it says again what it is told.

One token is one word. Models: `echo` (versions 1 and 2), `params` (answers with its request as
JSON), `vec` (embeds), and some that misbehave on purpose.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.api.execution.v1 import execution_pb2_grpc
from llmos.lib.config import ServerConfig
from llmos.lib.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from llmos.lib.serve import Server

CONTEXT = 50
MODELS = [
    ("breaks", 1, "generate"),
    ("busy", 1, "generate"),
    ("down", 1, "generate"),
    ("echo", 1, "generate"),
    ("echo", 2, "generate"),
    ("endless", 1, "generate"),
    ("flood", 1, "generate"),
    ("params", 1, "generate"),
    ("silent", 1, "generate"),
    ("vec", 1, "embed"),
]


class EchoModel:
    """The models; raises what the workers' contract says."""

    def __init__(self) -> None:
        self.running = 0
        self.cancelled = 0
        self.made = 0
        self.metadata: dict[str, str] = {}
        self.remaining_s: float | None = None

    async def generate(self, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateResponse]:
        self.running += 1
        try:
            async for piece in self._generate(request):
                yield piece
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _generate(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        name, ref = _resolve(request.model)
        if not 0 <= request.sampling.temperature <= 2:
            raise InvalidArgument(
                "BAD_SAMPLING", "temperature must be 0 to 2.", details={"param": "temperature"}
            )
        if name == "busy":
            raise ResourceExhausted("QUEUE_FULL", "256 calls wait; try later.", retry_after_s=0.05)
        if name == "down":
            raise Unavailable("LOAD_FAILED", "The model did not load.")
        if name == "vec":
            raise FailedPrecondition("WRONG_TASK", "vec does `embed`, not `generate`.")
        if name == "silent":
            await asyncio.sleep(3600)
        words = _words(request)
        if name == "params":
            words = [json_format.MessageToJson(request, preserving_proto_field_name=True)]
        while name == "flood":
            self.made += 1
            await asyncio.sleep(0)  # as a worker's stream does: what goes on beside it has its turn
            yield pb.GenerateResponse(text="x" * 65536)
        if not words:
            raise InvalidArgument("EMPTY_PROMPT", "The prompt is empty.")
        limit = request.max_tokens or 256
        if len(words) > CONTEXT:
            raise OutOfRange(
                "CONTEXT_OVERFLOW", f"The prompt has {len(words)} tokens; {CONTEXT} are allowed."
            )
        reason, sent = pb.FINISH_REASON_STOP, 0
        while True:
            for word in words:
                if sent == limit:
                    reason = pb.FINISH_REASON_LENGTH
                    break
                if word in request.stop:
                    break
                text = word if sent == 0 else f" {word}"
                sent += 1
                piece = pb.GenerateResponse(text=text, token_ids=[len(word)])
                if sent == 1:
                    piece.model, piece.seed = ref, request.sampling.seed
                yield piece
                if name == "breaks" and sent == 2:
                    raise Unavailable("MAY_HAVE_RUN", "The worker died.")
                if name == "endless":
                    self.made += 1
                    await asyncio.sleep(0.005)
            if name != "endless" or sent == limit:
                break
        usage = pb.Usage(prompt_tokens=len(words), completion_tokens=sent)
        yield pb.GenerateResponse(
            finish_reason=reason, usage=usage, model=ref, seed=request.sampling.seed
        )

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        name, ref = _resolve(request.model)
        if name == "silent":
            self.running += 1
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.running -= 1
        if not request.texts:
            raise InvalidArgument("EMPTY_INPUT", "There is no text to embed.")
        reply = pb.EmbedResponse(model=ref, prompt_tokens=sum(len(t) for t in request.texts))
        for i, text in enumerate(request.texts):
            reply.embeddings.add(values=[0.6, 0.8, len(text) / 3])
            if len(text) > CONTEXT:
                reply.truncated.append(i)
        return reply

    async def list_models(self) -> Sequence[pb.Model]:
        return [
            pb.Model(
                name=name,
                version=version,
                state=pb.MODEL_STATE_READY,
                engine="echo",
                task=task,
                context_length=CONTEXT,
                created_unix_s=1.7e9 + version,
                is_default=True if name != "echo" else version == 2,
            )
            for name, version, task in MODELS
        ]


def _resolve(ref: str) -> tuple[str, str]:
    name, _, version = ref.partition("@")
    versions = [v for n, v, _ in MODELS if n == name]
    if not versions:
        raise NotFound("NO_SUCH_MODEL", f"There is no model {name!r}; there are echo and vec.")
    if version and int(version) not in versions:
        raise NotFound("NO_SUCH_VERSION", f"{name} has no version {version}.")
    return name, f"{name}@{version or max(versions)}"


def _words(request: pb.GenerateRequest) -> list[str]:
    which = request.WhichOneof("input")
    if which == "tokens":
        return [str(i) for i in request.tokens.ids]
    if which == "chat":
        return request.chat.messages[-1].content.split()
    return request.prompt.split()


class EchoService(execution_pb2_grpc.ExecutionServicer):
    """The model as a servicer."""

    def __init__(self, model: EchoModel) -> None:
        self._model = model

    def _note(self, context: Any) -> None:
        metadata = context.invocation_metadata() or ()
        self._model.metadata = {str(k): str(v) for k, v in metadata}
        self._model.remaining_s = context.time_remaining()

    async def Classify(self, request: Any, context: Any) -> Any:
        raise Unimplemented("NOT_HERE", "The echo does not classify.")

    async def Predict(self, request: Any, context: Any) -> Any:
        raise Unimplemented("NOT_HERE", "The echo does not predict.")

    async def PredictStream(self, request: Any, context: Any) -> Any:
        raise Unimplemented("NOT_HERE", "The echo does not predict.")
        yield

    async def WatchModels(self, request: Any, context: Any) -> Any:
        raise Unimplemented("NOT_HERE", "The echo is not watched.")
        yield

    async def HoldModel(self, request: Any, context: Any) -> Any:
        raise Unimplemented("NOT_HERE", "The echo is not held.")
        yield

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> Any:
        self._note(context)
        async for piece in self._model.generate(request):
            yield piece

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        self._note(context)
        return await self._model.embed(request)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Any
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=await self._model.list_models())

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        pieces = request.text.split()
        return pb.TokenizeResponse(ids=[len(p) for p in pieces], pieces=pieces)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Any) -> pb.LoadModelResponse:
        raise Unimplemented("ALWAYS_LOADED", "The echo models are always loaded.")

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Any
    ) -> pb.UnloadModelResponse:
        raise Unimplemented("ALWAYS_LOADED", "The echo models are always loaded.")


class EchoBackend:
    """The model as the gateway's backend, in process."""

    def __init__(self, model: EchoModel) -> None:
        self.model = model

    async def generate(
        self, request: pb.GenerateRequest, call: Any
    ) -> AsyncGenerator[pb.GenerateResponse]:
        self._note(call)
        async for piece in self.model.generate(request):
            yield piece

    async def embed(self, request: pb.EmbedRequest, call: Any) -> pb.EmbedResponse:
        self._note(call)
        return await self.model.embed(request)

    async def list_models(self, call: Any) -> Sequence[pb.Model]:
        return await self.model.list_models()

    async def missing(self) -> list[str]:
        return []

    def _note(self, call: Any) -> None:
        self.model.metadata = dict(call.metadata)
        self.model.remaining_s = call.timeout_s


@contextmanager
def serving(model: EchoModel, state_dir: Path) -> Iterator[str]:
    """Serve the model over gRPC on a thread of its own and give the address."""
    config = ServerConfig(state_dir=state_dir, kernel="none")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Server:
        server = Server("execution", config)
        server.add(execution_pb2_grpc.add_ExecutionServicer_to_server, EchoService(model))
        await server.start()
        return server

    try:
        server = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
        try:
            yield server.address
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
