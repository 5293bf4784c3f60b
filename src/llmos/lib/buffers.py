"""The client side of shared-memory buffers: a handle in a message instead of bytes in a message.

    async with BufferClient(channel) as buffers:
        mapping = await buffers.create(4 << 20)
        mapping.array("float32", (1024, 1024))[:] = 1
        await other.Use(UseRequest(input=mapping.handle))     # there: await buffers.open(handle)

Leases are renewed while a mapping is held. Where the memory cannot be mapped (another host,
another container) `open` streams the bytes into private memory instead.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar

import grpc

from llmos.api.memory.v1 import buffers_pb2 as pb
from llmos.api.memory.v1 import buffers_pb2_grpc
from llmos.lib.call import background
from llmos.lib.errors import (
    DataLoss,
    FailedPrecondition,
    LLMOSError,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from llmos.lib.mapping import Mapping, map_file
from llmos.lib.rpc import from_rpc_error

__all__ = ["CLIENT_KEY", "BufferClient", "Mapping"]

CLIENT_KEY = "llmos-client"  # metadata by which the clients of one process or socket are told apart
_CALL_S = 10.0
_STREAM_S = 600.0
_RETRY_S = 0.1

R = TypeVar("R")
log = logging.getLogger(__name__)


class BufferClient:
    """Creates and opens buffers over a channel, and keeps their leases. Not for several loops."""

    def __init__(
        self, channel: grpc.aio.Channel, *, lease_s: int = 30, patience_s: float = 10.0
    ) -> None:
        """Prepare. lease_s: how long the buffers outlive this process if nobody sees it die.

        patience_s: how long a call waits for a memory server that is restarting.
        """
        self._stub: Any = buffers_pb2_grpc.BuffersStub(channel)
        self._metadata = ((CLIENT_KEY, uuid.uuid4().hex),)
        self._lease_s = lease_s
        self._patience_s = patience_s
        self._mappings: dict[str, list[Mapping]] = {}
        self._renewing: asyncio.Task[None] | None = None

    async def create(self, size: int, label: str = "") -> Mapping:
        """Return a new zeroed buffer, mapped read-write.

        Raises InvalidArgument BAD_SIZE, ResourceExhausted NO_ROOM, FailedPrecondition OTHER_HOST.
        """
        request = pb.CreateBufferRequest(
            size=size, label=label, lease_s=self._lease_s, request_id=uuid.uuid4().hex
        )
        created = await self._call(self._stub.CreateBuffer, request)
        try:
            memory = map_file(created.path, size, write=True) if created.path else None
            if memory is None:
                raise FailedPrecondition(
                    "OTHER_HOST",
                    "Buffers can be created only on the memory server's host, where they can be "
                    "mapped; send the bytes in a message instead.",
                )
        except BaseException:  # also when cancelled: nobody else knows the handle
            await self._release(created.handle)
            raise
        return self._keep(Mapping(created.handle, memory, writable=True))

    async def open(self, handle: pb.BufferHandle, *, write: bool = False) -> Mapping:
        """Map a buffer that somebody else made; read-only unless `write`.

        Raises NotFound NO_SUCH_BUFFER; when asked to write to what cannot be written to from here
        FailedPrecondition SEALED or OTHER_HOST, PermissionDenied READ_ONLY.
        """
        request = pb.OpenBufferRequest(handle=handle, lease_s=self._lease_s)
        opened = await self._call(self._stub.OpenBuffer, request)
        try:
            if write and opened.sealed:
                raise FailedPrecondition("SEALED", f"Buffer {handle.id} is sealed: only read it.")
            if write and opened.read_only:
                raise PermissionDenied(
                    "READ_ONLY", f"This handle of buffer {handle.id} is only to read by."
                )
            memory = map_file(opened.path, handle.size, write=write) if opened.path else None
            if memory is not None:
                return self._keep(Mapping(handle, memory, writable=write))
            if write:
                raise FailedPrecondition(
                    "OTHER_HOST", f"Buffer {handle.id} is on another host: only read it."
                )
            data = await self._read(handle)
        except BaseException:  # also when cancelled: the lease that was taken is given back
            await self._release(handle)
            raise
        await self._release(handle)
        return Mapping(handle, data, writable=False)

    async def reader(self, handle: pb.BufferHandle) -> pb.BufferHandle:
        """Return a handle of the same buffer by which it can only be read.

        Raises NotFound NO_SUCH_BUFFER.
        """
        request = pb.DuplicateBufferRequest(handle=handle)
        answer = await self._call(self._stub.DuplicateBuffer, request)
        duplicate: pb.BufferHandle = answer.handle
        return duplicate

    async def seal(self, mapping: Mapping) -> None:
        """Make a buffer of this process read-only for ever; `view` is from now on, too.

        Raises NotFound NO_SUCH_BUFFER, PermissionDenied NOT_OWNER or READ_ONLY.
        """
        await self._call(self._stub.SealBuffer, pb.SealBufferRequest(handle=mapping.handle))
        mapping.freeze()

    async def free(self, mapping: Mapping) -> None:
        """Unmap, and drop the lease with the last mapping of a buffer. Twice is fine."""
        held = self._mappings.get(mapping.handle.id, [])
        mapping.close()
        if mapping in held:
            held.remove(mapping)
            await self._release(mapping.handle)

    async def close(self) -> None:
        """Free everything and stop renewing."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
            self._renewing = None
        for mapping in [m for held in self._mappings.values() for m in held]:
            await self.free(mapping)

    async def __aenter__(self) -> BufferClient:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    def _keep(self, mapping: Mapping) -> Mapping:
        self._mappings.setdefault(mapping.handle.id, []).append(mapping)
        if self._renewing is None or self._renewing.done():
            # It outlives the call that may be handled right now.
            self._renewing = background(self._renew())
        return mapping

    async def _release(self, handle: pb.BufferHandle) -> None:
        """Drop our lease unless mappings of it are left, even if our caller is cancelled."""
        if self._mappings.get(handle.id):
            return
        self._mappings.pop(handle.id, None)
        request = pb.FreeBufferRequest(handle=handle)
        await asyncio.shield(background(self._call(self._stub.FreeBuffer, request)))

    async def _read(self, handle: pb.BufferHandle) -> bytearray:
        data = bytearray()  # grows: the size in a handle is only what its sender says
        try:
            request = pb.ReadBufferRequest(handle=handle)
            stream = self._stub.ReadBuffer(request, timeout=_STREAM_S, metadata=self._metadata)
            async for piece in stream:
                data += piece.data
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc
        if len(data) != handle.size:
            raise DataLoss(
                "TRUNCATED", f"Buffer {handle.id} gave {len(data):,} of {handle.size:,} bytes."
            )
        return data

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            request = pb.RenewLeasesRequest(ids=list(self._mappings))
            if not request.ids:
                continue
            try:
                for id in (await self._call(self._stub.RenewLeases, request)).missing:
                    await self._lease_again(id)
            except LLMOSError as exc:  # the next round may do better, and nothing is lost before
                log.warning("buffer leases not renewed", extra={"cause": exc.message})

    async def _lease_again(self, id: str) -> None:
        """Take a lease that ran out (this process was stopped for a while), if others kept it."""
        held = self._mappings.get(id)
        if not held:
            return
        request = pb.OpenBufferRequest(handle=held[0].handle, lease_s=self._lease_s)
        try:
            await self._call(self._stub.OpenBuffer, request)
        except NotFound:
            for mapping in self._mappings.pop(id, []):
                mapping.lost = True
            log.warning("a buffer was reclaimed while it was mapped here", extra={"buffer": id})

    async def _call(self, method: Callable[..., Awaitable[R]], request: Any) -> R:
        """Call; all methods of the service may be repeated, so wait out a restart."""
        until = time.monotonic() + self._patience_s
        while True:
            try:
                return await method(request, timeout=_CALL_S, metadata=self._metadata)
            except grpc.RpcError as exc:
                error = from_rpc_error(exc)
                if not isinstance(error, Unavailable) or time.monotonic() > until:
                    raise error from exc
            await asyncio.sleep(_RETRY_S)
