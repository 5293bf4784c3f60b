"""/llmos/v1: the gRPC APIs of the OS as JSON over HTTP, each call of `admin_calls` an endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from llmos.lib.errors import InvalidArgument, LLMOSError
from llmos.lib.rpc import from_rpc_error
from llmos.lib.values import as_value, from_text, from_value
from llmos.servers.gateway import body, errors, trace
from llmos.servers.gateway.admin_calls import CALLS, QUICK_S, Call
from llmos.servers.gateway.admin_feed import Feed
from llmos.servers.gateway.admin_guard import Guard
from llmos.servers.gateway.config import GatewayConfig
from llmos.servers.gateway.keys import Keys
from llmos.servers.gateway.stream import unless_gone

PREFIX = "/llmos/v1"
Channels = Callable[[str], grpc.aio.Channel]
Json = dict[str, Any]
# The live picture: what of it fails is missing from it, with the error in its place.
_PICTURE = ("kernel/stats", "kernel/ports", "kernel/services", "kernel/tenants", "processes")


class Admin:
    """The endpoints over the channels of a server. They raise LLMOSError and HTTPException."""

    def __init__(self, channels: Channels, config: GatewayConfig, keys: Keys | None = None) -> None:
        """Call on the channel that `channels` returns for a server's name; it may raise."""
        self._channels = channels
        self._config = config
        self._guard = Guard(config.admin, config.admin_hosts, keys)
        self._by_path = {call.path: call for call in CALLS}

    def routes(self) -> list[BaseRoute]:
        """Return the routes; those without parameters first, as the first that fits is taken."""
        plain = sorted(CALLS, key=lambda call: "{" in call.path)
        return [
            Route(PREFIX, self.about, methods=["GET"]),
            Route(f"{PREFIX}/system", self.system, methods=["GET"]),
            *(Route(PREFIX + c.path, self._endpoint(c), methods=[c.verb]) for c in plain),
        ]

    async def about(self, request: Request) -> JSONResponse:
        """List the endpoints with the RPC behind each."""
        self._guard.check(request)
        rows = [{"path": f"{c.verb} {PREFIX}{c.path}", "rpc": c.rpc} for c in CALLS]
        return JSONResponse({"endpoints": [{"path": f"GET {PREFIX}/system", "rpc": ""}, *rows]})

    async def system(self, request: Request) -> JSONResponse:
        """Answer the live picture in one: the kernel, its ports and queues, and the processes."""
        self._guard.check(request)
        work = asyncio.gather(*(self._part(request, name) for name in _PICTURE))

        async def parts() -> list[Json]:
            return await work

        picture: Json = {"errors": {}}
        for name, part in zip(_PICTURE, await unless_gone(request.receive, parts()), strict=True):
            short = name.rpartition("/")[2]
            if "error" in part:
                picture["errors"][short] = part["error"]
                picture[short] = None
            else:
                picture[short] = part if short == "stats" else part.get(short)
        return JSONResponse(picture)

    async def _part(self, request: Request, name: str) -> Json:
        call = self._by_path[f"/{name}"]
        try:
            return as_value(await self._unary(request, call, call.request(), QUICK_S / 3))
        except LLMOSError as exc:
            return errors.body(exc)

    def _endpoint(self, call: Call) -> Callable[[Request], Any]:
        async def answer(request: Request) -> ASGIApp:
            self._guard.check(request)
            message = await self._message(request, call)
            if call.streams:
                return await Feed.open(request.receive, self._stream(request, call, message))
            work = self._unary(request, call, message, call.timeout_s)
            return JSONResponse(as_value(await unless_gone(request.receive, work)))

        return answer

    async def _message(self, request: Request, call: Call) -> Message:
        """Return the request's message: path parameters over the query's or body's members."""
        path = {name: [text] for name, text in request.path_params.items()}
        if call.verb == "GET":
            query = {name: request.query_params.getlist(name) for name in request.query_params}
            return from_text(call.request, {**query, **path})
        config = self._config
        raw = await body.read(request, config.max_body_bytes, config.body_timeout_s)
        try:
            members = json.loads(raw or b"{}")
        except (ValueError, RecursionError) as exc:
            raise InvalidArgument("BAD_JSON", f"The body is not JSON: {exc}.") from exc
        if not isinstance(members, dict):
            raise InvalidArgument("BAD_JSON", "The body must be a JSON object.")
        return from_value(call.request, {**members, **request.path_params})

    async def _unary(
        self, request: Request, call: Call, message: Message, timeout_s: float
    ) -> Message:
        channel = self._channels(call.server)
        rpc = channel.unary_unary(
            f"/{call.rpc}", type(message).SerializeToString, call.response.FromString
        )
        try:
            with trace.of(request.scope).calling():
                answer = await rpc(message, timeout=timeout_s, metadata=self._metadata(request))
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from None
        assert isinstance(answer, Message)
        return answer

    async def _stream(
        self, request: Request, call: Call, message: Message
    ) -> AsyncGenerator[Json, None]:
        channel = self._channels(call.server)
        rpc = channel.unary_stream(
            f"/{call.rpc}", type(message).SerializeToString, call.response.FromString
        )(message, timeout=call.timeout_s, metadata=self._metadata(request))
        try:
            async for answer in rpc:
                yield _readable(as_value(answer), answer)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from None
        finally:
            rpc.cancel()  # does nothing to a call that has ended

    def _metadata(self, request: Request) -> tuple[tuple[str, str], ...]:
        note = trace.of(request.scope)
        own = (("llmos-class", "interactive"), ("x-request-id", note.request_id))
        return (*own, *note.passed_on)


def _readable(value: Json, answer: Message) -> Json:
    """Show the payload of an event, which is JSON by custom, as what it says."""
    payload = getattr(answer, "payload", None)
    if isinstance(payload, bytes):
        try:
            value["payload"] = json.loads(payload)
        except ValueError:
            value["payload"] = payload.decode(errors="replace")
    return value
