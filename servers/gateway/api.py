"""The endpoints of the OpenAI API: read, convert, call the OS, convert back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.lib.errors import NotFound
from llmos.servers.gateway import answers, body, calls, convert, trace
from llmos.servers.gateway.admin import Channels
from llmos.servers.gateway.answer import Face, chunks, whole
from llmos.servers.gateway.backend import Backend, Call
from llmos.servers.gateway.config import GatewayConfig
from llmos.servers.gateway.faces import ChatChoice, Choice, TextChoice
from llmos.servers.gateway.generation import measured, merged
from llmos.servers.gateway.media import Reader
from llmos.servers.gateway.metrics import Metrics, RequestMeter
from llmos.servers.gateway.parameters import refused
from llmos.servers.gateway.schema import (
    Body,
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    GenerationBody,
    parse,
)
from llmos.servers.gateway.sessions import Generator, Remembering
from llmos.servers.gateway.stream import EventStream, unless_gone

B = TypeVar("B", bound=Body)


class OpenAI:
    """The endpoints over one backend. They raise LLMOSError and HTTPException."""

    def __init__(
        self,
        backend: Backend,
        config: GatewayConfig,
        metrics: Metrics,
        channels: Channels | None = None,
    ) -> None:
        """Serve from `backend`. channels: to the servers that remember; None = nobody does."""
        self._backend, self._channels = backend, channels
        self._config = config
        self._metrics = metrics

    def routes(self) -> list[Route]:
        """Return the routes under /v1."""
        return [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{id:path}", self.model, methods=["GET"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
        ]

    async def models(self, request: Request) -> JSONResponse:
        """List the models."""
        models = await unless_gone(request.receive, self._backend.list_models(self._call(request)))
        return JSONResponse({"object": "list", "data": answers.model_objects(models)})

    async def model(self, request: Request) -> JSONResponse:
        """Show one model. Raises NotFound NO_SUCH_MODEL."""
        ref = request.path_params["id"]
        models = await unless_gone(request.receive, self._backend.list_models(self._call(request)))
        found = answers.find_model(models, ref)
        if found is None:
            raise NotFound(
                "NO_SUCH_MODEL", f"There is no model {ref!r}; GET /v1/models lists those there are."
            )
        return JSONResponse(found)

    async def chat(self, request: Request) -> ASGIApp:
        """Answer a chat."""
        params = await self._read(request, ChatBody)
        requests = convert.chat_requests(params)
        choices = [ChatChoice(i, params) for i in range(len(requests))]
        backend: Generator = self._backend
        if params.session:
            backend = self._remembering(params.session)
        elif (medium := params.medium()) is not None:
            if self._channels is None:
                raise refused("UNSUPPORTED_VALUE", "messages", "must be text here")
            backend = Reader(self._channels("execution"), medium)
        return await self._generate(request, params, ChatChoice, requests, choices, backend)

    def _remembering(self, session: str) -> Generator:
        if self._channels is None or not self._config.sessions:
            raise refused(
                "UNSUPPORTED_PARAMETER", "session", "is off here; set `sessions` of the gateway"
            )
        budget = self._config.session_tokens
        return Remembering(self._backend, self._channels("memory"), session, budget)

    async def completions(self, request: Request) -> ASGIApp:
        """Continue prompts."""
        params = await self._read(request, CompletionBody)
        requests = convert.completion_requests(params, self._config.max_prompts)
        prompts = [prompt for prompt in params.prompt for _ in range(params.n or 1)]
        choices = [TextChoice(i, params, prompt) for i, prompt in enumerate(prompts)]
        return await self._generate(request, params, TextChoice, requests, choices)

    async def _generate(
        self,
        request: Request,
        params: GenerationBody,
        face: Face,
        requests: list[pb.GenerateRequest],
        choices: Sequence[Choice],
        backend: Generator | None = None,
    ) -> ASGIApp:
        call, note = self._call(request), trace.of(request.scope)
        streams = [(backend or self._backend).generate(r, call) for r in requests]
        meter = RequestMeter(self._metrics, note)
        pieces = measured(merged(streams), len(streams), meter)
        each = params.n or 1
        if not params.stream:
            work = whole(face, pieces, choices, each)
            return JSONResponse(await unless_gone(request.receive, work))
        events = chunks(face, pieces, choices, each, with_usage=params.include_usage())
        return EventStream(events, note)

    async def embeddings(self, request: Request) -> JSONResponse:
        """Turn texts into vectors."""
        params = await self._read(request, EmbeddingBody)
        note = trace.of(request.scope)
        work = self._backend.embed(convert.embed_request(params), self._call(request))
        with note.calling():
            reply = await unless_gone(request.receive, work)
        note.model = reply.model
        self._metrics.prompt_tokens(reply.model, reply.prompt_tokens, note.tenant or "local")
        as_base64 = params.encoding_format == "base64"
        return JSONResponse(answers.embeddings(reply, as_base64=as_base64))

    async def _read(self, request: Request, cls: type[B]) -> B:
        config = self._config
        return parse(cls, await body.read(request, config.max_body_bytes, config.body_timeout_s))

    def _call(self, request: Request) -> Call:
        return calls.of(request, self._config.request_timeout_s)
