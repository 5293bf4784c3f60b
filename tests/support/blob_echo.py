"""A servicer with all arities (on storage's Blobs) whose behaviour the port tests steer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from llmos.api.storage.v1 import registry_pb2 as pb
from llmos.api.storage.v1 import registry_pb2_grpc
from llmos.lib import call
from llmos.lib.errors import NotFound


class BlobEcho(registry_pb2_grpc.BlobsServicer):
    """StatBlobs: one reply; ReadBlob: a stream; WriteBlob: takes a stream."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()
        self.calls = 0
        self.hold: asyncio.Event | None = None
        self.die_after: int | None = None
        self.died = asyncio.Event()
        self.metadata: dict[str, Any] = {}
        self.sent = 0

    async def StatBlobs(self, request: Any, context: Any) -> pb.StatBlobsResponse:
        self.calls += 1
        self.started.set()
        self.metadata = dict(context.invocation_metadata() or ())
        if request.sha256[:1] == ["missing"]:
            raise NotFound("NO_SUCH_BLOB", "It is not there; write it first.")
        if request.sha256[:1] == ["sleep"] or self.hold is not None:
            try:
                await (self.hold.wait() if self.hold else asyncio.sleep(60))
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if request.sha256[:1] == ["metadata"]:
            await context.send_initial_metadata((("x-first", "1"),))
            context.set_trailing_metadata((("x-last-bin", b"\x00\xff"),))
        return pb.StatBlobsResponse(sizes=[len(s) for s in request.sha256])

    async def ReadBlob(self, request: Any, context: Any) -> AsyncIterator[pb.ReadBlobResponse]:
        """Yield `length` pieces of `offset` bytes; resumable, one log byte a piece."""
        self.calls += 1
        self.started.set()
        first = len(call.resume_log(context))
        if request.sha256 == "headers":
            await context.send_initial_metadata((("x-first", "1"),))
            await asyncio.sleep(60)
        try:
            for i in range(first, request.length):
                if self.die_after is not None and i == self.die_after:
                    self.died.set()
                    await asyncio.sleep(60)
                call.append_resume_log(context, b".")
                self.sent += 1
                yield pb.ReadBlobResponse(data=i.to_bytes(4, "big") + b"x" * request.offset)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def WriteBlob(self, request_iterator: Any, context: Any) -> pb.WriteBlobResponse:
        size = 0
        async for request in request_iterator:
            size += len(request.data)
        return pb.WriteBlobResponse(size=size)
