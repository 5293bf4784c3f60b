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
import mmap
import time
import uuid
from collections.abc import Awaitable, Callable, Hashable
from types import TracebackType
from typing import Any, TypeVar

import grpc

from llmos.api.memory.v1 import buffers_pb2 as pb
from llmos.api.memory.v1 import buffers_pb2_grpc
from llmos.lib.bufferpool import LARGEST, Kind, Pool
from llmos.lib.call import background
from llmos.lib.errors import (
    DataLoss,
    FailedPrecondition,
    LLMOSError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from llmos.lib.handlers import current
from llmos.lib.mapping import Mapping, map_file
from llmos.lib.rpc import from_rpc_error

__all__ = ["CLIENT_KEY", "BufferClient", "Mapping"]

CLIENT_KEY = "llmos-client"  # metadata by which the clients of one process or socket are told apart
_CALL_S = 10.0
_STREAM_S = 600.0
_RETRY_S = 0.1

R = TypeVar("R")
T = TypeVar("T", bound=Hashable)
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
        self._kinds: dict[str, Kind] = {}  # of the buffers that were created here
        self._looked_at: set[str] = set()  # whose mappings were freed before their views were gone
        self._pool = Pool(lease_s / 3)  # after which leases are renewed
        self._freeing: dict[str, asyncio.Task[None]] = {}  # by id
        self._returning: dict[Kind, asyncio.Task[None]] = {}  # the last of those that may come back
        self._closed = False
        self._renewing: asyncio.Task[None] | None = None

    async def create(self, size: int, label: str = "") -> Mapping:
        """Return a new zeroed buffer, mapped read-write.

        One of the size and label of what was freed here lately costs no call: see `bufferpool`.
        Raises InvalidArgument BAD_SIZE, ResourceExhausted NO_ROOM or QUOTA, FailedPrecondition
        OTHER_HOST.
        """
        kind = (size, label, _payer())
        known = self._pool.take(kind)
        if known is None and (returning := self._returning.get(kind)) is not None:
            await asyncio.wait({returning})  # takes as long as making one, and saves the pages
            known = self._pool.take(kind)
        if known is not None:
            self._kinds[known[0].id] = kind
            return self._keep(Mapping(*known, writable=True))
        try:
            return await self._create(kind)
        except ResourceExhausted:
            if not self._freeing:
                raise
        await self.settled()
        return await self._create(kind)

    async def _create(self, kind: Kind) -> Mapping:
        size, label, _ = kind
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
            self._release(created.handle)
            await self._told(created.handle.id)
            raise
        self._kinds[created.handle.id] = kind
        return self._keep(Mapping(created.handle, memory, writable=True))

    async def open(self, handle: pb.BufferHandle, *, write: bool = False) -> Mapping:
        """Map a buffer that somebody else made; read-only unless `write`.

        Raises NotFound NO_SUCH_BUFFER; when asked to write to what cannot be written to from here
        FailedPrecondition SEALED or OTHER_HOST, PermissionDenied READ_ONLY.
        """
        await self._told(handle.id)  # or what was freed would end the lease that is taken now
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
            self._release(handle)
            await self._told(handle.id)
            raise
        self._release(handle)
        await self._told(handle.id)
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
        """Unmap, and drop the lease with the last mapping of a buffer. Twice is fine.

        Returns when the server is being told; `settled` waits for it. A server that cannot be told
        sees the lease run out. (A child that this process forked meanwhile must not go on using
        the memory: it may become that of a next buffer.)
        """
        id = mapping.handle.id
        held = self._mappings.get(id, [])
        writable, memory = mapping.writable, mapping.take()
        if mapping in held:
            held.remove(mapping)
            if memory is None:
                self._looked_at.add(id)
            self._release(mapping.handle, memory if writable else None)

    async def settled(self) -> None:
        """Wait until the server knows of all that was freed."""
        while self._freeing:
            await asyncio.wait({*self._freeing.values()})

    async def exists(self, id: str) -> bool:
        """Return whether somebody still has a lease on a buffer."""
        listed = await self._call(self._stub.ListBuffers, pb.ListBuffersRequest())
        return any(info.id == id for info in listed.buffers)

    async def close(self) -> None:
        """Free everything and stop renewing."""
        self._closed = True
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
            self._renewing = None
        for mapping in [m for held in self._mappings.values() for m in held]:
            await self.free(mapping)
        await self.settled()
        for handle in self._pool.close():
            self._release(handle)
        await self.settled()

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

    def _release(self, handle: pb.BufferHandle, memory: mmap.mmap | None = None) -> None:
        """Drop our lease unless mappings of it are left, whatever becomes of our caller.

        memory: what was mapped to be written to, if nobody looks at it any more.
        """
        id = handle.id
        if self._mappings.get(id):
            return
        self._mappings.pop(id, None)
        kind = self._kinds.pop(id, None)
        request = pb.FreeBufferRequest(handle=handle, unmapped=id not in self._looked_at)
        self._looked_at.discard(id)
        if memory is None or self._closed or len(memory) > LARGEST:
            kind = None
        request.again = request.unmapped and kind is not None
        task = background(self._free(request, kind, memory, self._freeing.get(id)))
        self._freeing[id] = task
        task.add_done_callback(lambda task: _forget(self._freeing, id, task))
        if kind is not None:
            self._returning[kind] = task
            task.add_done_callback(lambda task: _forget(self._returning, kind, task))

    async def _told(self, id: str) -> None:
        """Wait until the server knows that a buffer was freed, if it was."""
        if (task := self._freeing.get(id)) is not None:
            await asyncio.wait({task})

    async def _free(
        self,
        request: pb.FreeBufferRequest,
        kind: Kind | None,
        memory: mmap.mmap | None,
        before: asyncio.Task[None] | None,
    ) -> None:
        if before is not None:
            await asyncio.wait({before})
        try:
            freed = await self._call(self._stub.FreeBuffer, request)
        except LLMOSError as exc:
            log.warning("a buffer was not freed, its lease runs out", extra={"cause": exc.message})
            return
        if kind is not None and memory is not None and freed.HasField("again"):
            for handle in self._pool.put(kind, freed, memory):
                self._release(handle)

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
            self._kinds.pop(id, None)
            self._looked_at.discard(id)
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


def _forget(tasks: dict[T, asyncio.Task[None]], key: T, task: asyncio.Task[None]) -> None:
    if tasks.get(key) is task:
        del tasks[key]


def _payer() -> str:
    """Return the tenant whose call this task serves: buffers that it makes are counted for him."""
    served = current.get()
    return "" if served is None or served.ended else served.open.tenant
