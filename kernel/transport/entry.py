"""The generic entry: any gRPC stub, pointed at the kernel, reaches every exported service.

Nothing of a message is parsed here; bytes go to the core as the calls of the kernel's own port.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.kernel.transport.hub import HOST, OwnPort
from llmos.lib import rpc
from llmos.lib.channel import apply_metadata
from llmos.lib.errors import Cancelled, Internal, LLMOSError
from llmos.lib.methods import UNKNOWN, Method
from llmos.lib.session import make_status, metadata_from_wire
from llmos.lib.stream import ClientStream

_GONE = make_status(Cancelled("CANCELLED", "The client cancelled the call or went away."))


class Entry(grpc.GenericRpcHandler):
    """Takes every method path that no other handler of the gRPC server takes."""

    def __init__(self, port: OwnPort) -> None:
        """Make the calls through `port`."""
        self._port = port
        self._services = port._hub.core.scheduler.services

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a call."""
        path: str = handler_call_details.method
        method = self._method(path)
        if method is not UNKNOWN and not method.client_streaming and not method.server_streaming:

            async def unary(request: bytes, context: Any) -> bytes:
                return await self._unary(path, request, context)

            return grpc.unary_unary_rpc_method_handler(unary)

        async def stream(requests: AsyncIterator[bytes], context: Any) -> None:
            await self._stream(path, method, requests, context)

        return grpc.stream_stream_rpc_method_handler(stream)

    def _method(self, path: str) -> Method:
        service = self._services.get(path[1:].rpartition("/")[0])
        return service.methods.get(path, UNKNOWN) if service is not None else UNKNOWN

    def _open(self, path: str, context: Any) -> ClientStream:
        peer: str = context.peer()
        opened = pb.Open(method=path, caller=f"grpc:{peer}")
        if peer.startswith("unix:"):
            opened.caller_host = HOST
        remaining = context.time_remaining()
        if remaining is not None:
            opened.timeout_us = max(1, int(remaining * 1e6))
        apply_metadata(opened, context.invocation_metadata() or ())
        return self._port.session.call(opened, idempotent=False)

    async def _unary(self, path: str, request: bytes, context: Any) -> bytes:
        try:
            stream = self._open(path, context)
        except LLMOSError as err:
            await rpc.abort(context, err)
        try:
            sent = stream.start(request, half_close=True)
            if sent < len(request):
                await _until_ended(stream.send_rest(request, sent, half_close=True))
            await stream.wait()
        finally:
            stream.cancel(_GONE)
        if stream.headers is not None:
            await context.send_initial_metadata(metadata_from_wire(stream.headers.metadata))
        reply = await stream.receive()
        await _finish(stream, context)
        if reply is None:
            await rpc.abort(context, Internal("NO_REPLY", "The server ended without a reply."))
        assert reply is not None
        return reply

    async def _stream(
        self, path: str, method: Method, requests: AsyncIterator[bytes], context: Any
    ) -> None:
        try:
            stream = self._open(path, context)
        except LLMOSError as err:
            await rpc.abort(context, err)
        feeding = asyncio.get_running_loop().create_task(self._feed(stream, method, requests))
        try:
            await stream.started()
            if stream.headers is not None:
                # At once: they tell that something is ready though its first message may be long
                # in coming, e.g. that a subscription misses nothing any more.
                headers = metadata_from_wire(stream.headers.metadata)
                await context.send_initial_metadata(headers)
            while (message := await stream.receive()) is not None:
                await context.write(message)
            await stream.wait()
            await _finish(stream, context)
        finally:
            feeding.cancel()
            stream.cancel(_GONE)

    async def _feed(
        self, stream: ClientStream, method: Method, requests: AsyncIterator[bytes]
    ) -> None:
        one = method is not UNKNOWN and not method.client_streaming
        started = False
        async for message in requests:
            if started:
                await _until_ended(stream.send(message))
                continue
            started = True
            sent = stream.start(message, half_close=one)
            if sent < len(message):
                await _until_ended(stream.send_rest(message, sent, half_close=one))
            if one:
                return
        if not started:
            stream.start(None, half_close=True)
        elif not one:
            stream.half_close()


async def _until_ended(sending: Any) -> None:
    try:
        await sending
    except Cancelled:
        return  # the call has ended; its status says why


async def _finish(stream: ClientStream, context: Any) -> None:
    status = stream.status
    if status is None:
        return
    trailers = metadata_from_wire(status.trailers)
    if status.code:
        code = rpc.CODES.get(status.code, grpc.StatusCode.UNKNOWN)
        await context.abort(code, status.message, trailers)
    elif trailers:
        context.set_trailing_metadata(trailers)
