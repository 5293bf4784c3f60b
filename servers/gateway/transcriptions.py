"""POST /v1/audio/transcriptions: what is said in a sound, by a model that turns sound into text."""

from __future__ import annotations

import grpc
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from llmos.api.execution.v1 import execution_pb2 as pb
from llmos.lib.errors import InvalidArgument
from llmos.servers.gateway import calls, forms, trace
from llmos.servers.gateway.admin import Channels
from llmos.servers.gateway.config import GatewayConfig
from llmos.servers.gateway.media import Medium, Reader
from llmos.servers.gateway.parameters import refused
from llmos.servers.gateway.stream import unless_gone

# Fields that may be there; the others would change the answer and cannot be honoured.
_TAKEN = {"file", "model", "response_format", "temperature"}
FORMATS = ("json", "text")


class Transcriptions:
    """The endpoint over the channels of a server. It raises LLMOSError and HTTPException."""

    def __init__(self, channels: Channels, config: GatewayConfig) -> None:
        """Ask models on `channels`' channel of execution."""
        self._channels, self._config = channels, config

    def routes(self) -> list[Route]:
        """Return the route."""
        return [Route("/v1/audio/transcriptions", self.create, methods=["POST"])]

    async def create(self, request: Request) -> Response:
        """Transcribe a sound."""
        form = await forms.read(request, self._config)
        model = form.fields.get("model", "")
        if form.content is None or not model:
            raise InvalidArgument(
                "BAD_FORM", "Send a multipart form with a `file` and the `model` to ask."
            )
        shape = form.fields.get("response_format", "json")
        if shape not in FORMATS:
            raise refused("INVALID_VALUE", "response_format", f"must be one of {FORMATS}")
        for name, value in form.fields.items():
            if name not in _TAKEN and value:
                raise refused("UNSUPPORTED_PARAMETER", name, "is not supported; leave it out")
        channel: grpc.aio.Channel = self._channels("execution")
        call = calls.of(request, self._config.request_timeout_s)
        reader = Reader(channel, Medium("sound", form.content), param="file")

        async def read() -> pb.GenerateResponse:
            return await anext(reader.generate(pb.GenerateRequest(model=model), call))

        said = await unless_gone(request.receive, read())
        trace.of(request.scope).model = said.model
        if shape == "text":
            return PlainTextResponse(said.text + "\n")
        return JSONResponse({"text": said.text})
