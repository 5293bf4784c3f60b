"""The worker's way to the store of prefixes: blocks come and go as buffers of the memory server."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from llmos.api.execution.v1.zygote_pb2 import WorkerOrder
from llmos.api.memory.v1 import prefix_pb2 as pb
from llmos.api.memory.v1 import prefix_pb2_grpc
from llmos.lib.buffers import BufferClient, Mapping
from llmos.lib.call import background
from llmos.lib.errors import LLMOSError
from llmos.lib.rpc import from_rpc_error
from llmos.servers.execution.engine.prefix import Fill

_FIND_S = 2.0  # computing is not slower than this by much
_PUT_S = 10.0
_PAUSE_S = 5.0  # without a store for so long after it failed
_PENDING = 256 << 20  # bytes that wait to be put

log = logging.getLogger(__name__)


def digest_of(order: WorkerOrder) -> str:
    """Return what a model's keys and values depend on of its files; "" when it is not known."""
    files = sorted((file.name, file.sha256) for file in order.files)
    if not all(sha256 for _, sha256 in files):
        return ""
    return hashlib.sha256(repr(files).encode()).hexdigest()


@dataclass(frozen=True)
class _Offer:
    tenant: str
    keys: Sequence[bytes]
    depth: int
    cost_s: float
    data: bytearray


class WorkerPrefixes:
    """See engine.prefix.Prefixes. Belongs to the event loop on which it is made."""

    def __init__(
        self, channel: grpc.aio.Channel, model: str, layout: str, block_bytes: int
    ) -> None:
        """Reach the store over `channel`. model, layout: as Space of prefix.proto."""
        self._stub: Any = prefix_pb2_grpc.PrefixesStub(channel)
        self._buffers = BufferClient(channel, patience_s=1.0)
        self._model, self._layout, self._block_bytes = model, layout, block_bytes
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._pending = 0  # bytes
        self._paused_until = 0.0
        self._offers: asyncio.Queue[_Offer] = asyncio.Queue()
        self._putting = background(self._put_all())
        self._freeing: set[asyncio.Task[None]] = set()

    @property
    def wanted(self) -> bool:
        """See Prefixes."""
        return self._pending < _PENDING and time.monotonic() >= self._paused_until

    async def find(self, tenant: str, keys: Sequence[bytes], held: int = 0) -> Sequence[memoryview]:
        """See Prefixes."""
        if len(keys) <= held or time.monotonic() < self._paused_until:
            return []
        request = pb.GetBlocksRequest(space=self._space(tenant), keys=keys, held=held)
        try:
            answer = await self._stub.GetBlocks(request, timeout=_FIND_S)
        except grpc.RpcError as exc:
            self._pause(from_rpc_error(exc))
            return []
        if not answer.wanted:
            self._paused_until = time.monotonic() + _PAUSE_S
        runs = [run for run in answer.runs if run.block_bytes == self._block_bytes]
        mappings = await asyncio.gather(
            *(self._buffers.open(run.handle) for run in runs), return_exceptions=True
        )
        blocks: list[memoryview] = []
        broken = False
        for run, mapping in zip(runs, mappings, strict=True):
            if isinstance(mapping, Mapping):
                if not broken:
                    blocks += _cut(mapping.view, run)
                # The views keep the memory; the lease has done its work.
                task = background(self._free(mapping))
                self._freeing.add(task)
                task.add_done_callback(self._freeing.discard)
            elif isinstance(mapping, LLMOSError):
                broken = True  # evicted a moment ago: what follows is of no use
            else:
                raise mapping
        return blocks

    def offer(
        self, tenant: str, keys: Sequence[bytes], depth: int, cost_s: float, fill: Fill
    ) -> None:
        """See Prefixes."""
        size = len(keys) * self._block_bytes
        if not self.wanted:
            return
        with self._lock:
            self._pending += size
        data = bytearray(size)
        with memoryview(data) as view:
            fill(view)
        offer = _Offer(tenant, keys, depth, cost_s, data)
        try:
            self._loop.call_soon_threadsafe(self._offers.put_nowait, offer)
        except RuntimeError:  # that is how asyncio says that the loop is closed: the worker ends
            self._done(offer)

    async def close(self) -> None:
        """Stop; what waits to be put is lost."""
        self._putting.cancel()
        await asyncio.gather(self._putting, *self._freeing, return_exceptions=True)
        await self._buffers.close()

    async def _put_all(self) -> None:
        while True:
            offer = await self._offers.get()
            try:
                if time.monotonic() >= self._paused_until:
                    await self._put(offer)
            except LLMOSError as exc:
                self._pause(exc)
            except grpc.RpcError as exc:
                self._pause(from_rpc_error(exc))
            finally:
                self._done(offer)

    async def _put(self, offer: _Offer) -> None:
        mapping = await self._buffers.create(len(offer.data), "blocks of a prefix")
        try:
            await asyncio.to_thread(_copy, mapping.view, offer.data)
            await self._buffers.seal(mapping)
            request = pb.PutBlocksRequest(
                space=self._space(offer.tenant),
                keys=offer.keys,
                handle=mapping.handle,
                block_bytes=self._block_bytes,
                depth=offer.depth,
                cost_s=offer.cost_s,
            )
            await self._stub.PutBlocks(request, timeout=_PUT_S)
        finally:
            await self._free(mapping)

    async def _free(self, mapping: Mapping) -> None:
        try:
            await self._buffers.free(mapping)
        except LLMOSError as exc:  # the memory server is away: the lease runs out by itself
            log.info("a lease was not dropped", extra={"cause": exc.message})

    def _space(self, tenant: str) -> pb.Space:
        return pb.Space(model=self._model, layout=self._layout, tenant=tenant)

    def _pause(self, error: LLMOSError) -> None:
        self._paused_until = time.monotonic() + _PAUSE_S
        log.info("without the store of prefixes for a moment", extra={"cause": error.message})

    def _done(self, offer: _Offer) -> None:
        with self._lock:
            self._pending -= len(offer.data)


def _cut(view: memoryview, run: pb.BlockRun) -> list[memoryview]:
    starts = range(run.offset, run.offset + run.blocks * run.block_bytes, run.block_bytes)
    return [view[at : at + run.block_bytes] for at in starts]


def _copy(target: memoryview, data: bytearray) -> None:
    target[:] = data
