"""Shared memory regions: names that a tenant gave to parts of buffers of the memory server.

The manager keeps them (`Regions`); a worker asks it for those that a request names (`Lookup`).
Nothing is opened but buffers and what the operator allowed (`segments`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from llmos.api.inference import open_inference_pb2 as pb
from llmos.api.inference import open_inference_pb2_grpc
from llmos.api.memory.v1.buffers_pb2 import BufferHandle
from llmos.lib.bufferkey import handle_of
from llmos.lib.buffers import BufferClient
from llmos.lib.errors import (
    AlreadyExists,
    DataLoss,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
)
from llmos.lib.rpc import from_rpc_error
from llmos.servers.execution.oip import segments

MOST = 1024
_CALL_S = 10.0
Region = pb.SystemSharedMemoryStatusResponse.RegionStatus


class Regions:
    """The regions of all tenants, in the manager. They are gone with it: register them again."""

    def __init__(self, buffers: Callable[[], BufferClient], allowed: str = "") -> None:
        """Start with none; `buffers` reaches the memory server. allowed: as `shm_allow`."""
        self._buffers = buffers
        self._allowed = allowed
        self._client: BufferClient | None = None
        self._of: dict[str, dict[str, Region]] = {}

    def listed(self, tenant: str, name: str) -> dict[str, Region]:
        """Return a tenant's region, or all of them. Raises NotFound NO_SUCH_REGION."""
        mine = self._of.get(tenant, {})
        if not name:
            return dict(mine)
        if name not in mine:
            raise missing(name)
        return {name: mine[name]}

    async def register(self, tenant: str, request: pb.SystemSharedMemoryRegisterRequest) -> None:
        """Name a part of a buffer; the same again is OK. Raises as the proto says."""
        if not request.name or not request.byte_size:
            raise InvalidArgument("BAD_REGION", "A region needs a name, and a size over 0.")
        segment = segments.name_of(request.key)
        if segment and segments.is_allowed(segment, self._allowed):
            segments.check(segment, request.offset, request.byte_size)
            self._keep(tenant, request)
            return
        handle = handle_of(request.key)
        if request.offset + request.byte_size > handle.size:
            raise OutOfRange(
                "BAD_RANGE",
                f"{request.byte_size:,} bytes from byte {request.offset:,} do not fit in the "
                f"buffer's {handle.size:,} bytes.",
            )
        self._room(tenant, request)
        await self._probe(handle)
        self._keep(tenant, request)

    def _keep(self, tenant: str, request: pb.SystemSharedMemoryRegisterRequest) -> None:
        region = self._room(tenant, request)
        self._of.setdefault(tenant, {})[request.name] = region

    def _room(self, tenant: str, request: pb.SystemSharedMemoryRegisterRequest) -> Region:
        """Return the region to keep. Raises REGION_EXISTS, TOO_MANY_REGIONS."""
        region = Region(
            name=request.name,
            key=request.key,
            offset=request.offset,
            byte_size=request.byte_size,
        )
        mine = self._of.get(tenant, {})
        if request.name in mine and mine[request.name] != region:
            raise AlreadyExists(
                "REGION_EXISTS",
                f"Region {request.name!r} is another part of memory; unregister it first.",
            )
        if request.name not in mine and len(mine) >= MOST:
            raise ResourceExhausted(
                "TOO_MANY_REGIONS", f"{MOST:,} regions are registered; unregister some."
            )
        return region

    def unregister(self, tenant: str, name: str) -> None:
        """Forget a region, or all of a tenant."""
        if name:
            self._of.get(tenant, {}).pop(name, None)
        else:
            self._of.pop(tenant, None)

    async def close(self) -> None:
        """Let go of the memory server."""
        if self._client is not None:
            await self._client.close()

    async def _probe(self, handle: BufferHandle) -> None:
        """Open the buffer once: it is there, the token is right, and the size is not a lie."""
        if self._client is None:
            self._client = self._buffers()
        try:
            await self._client.free(await self._client.open(handle))
        except DataLoss as exc:
            raise InvalidArgument(
                "BAD_REGION", f"Buffer {handle.id} has not the {handle.size:,} bytes of the key."
            ) from exc


class Lookup:
    """A worker's view of the regions of whoever calls it: it inherits the caller's tenant."""

    def __init__(self, channel: grpc.aio.Channel | None) -> None:
        """Ask over the kernel's channel; None without a kernel."""
        self._stub: Any = None
        if channel is not None:
            self._stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)

    async def find(self, name: str) -> Region:
        """Return a region. Raises NotFound NO_SUCH_REGION."""
        if self._stub is None:
            raise missing(name)
        request = pb.SystemSharedMemoryStatusRequest(name=name)
        try:
            answer = await self._stub.SystemSharedMemoryStatus(request, timeout=_CALL_S)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc) from exc
        found: Region = answer.regions[name]
        return found


def missing(name: str) -> NotFound:
    """Return the error for a region that is not registered."""
    return NotFound(
        "NO_SUCH_REGION",
        f"No shared memory region {name[:60]!r} is registered; register it "
        "(SystemSharedMemoryRegister) with the key of a buffer.",
    )
