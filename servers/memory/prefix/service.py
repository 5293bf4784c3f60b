"""The gRPC face of the prefix store: converts and delegates."""

from __future__ import annotations

from typing import Any

from llmos.api.memory.v1 import buffers_pb2, prefix_pb2, prefix_pb2_grpc
from llmos.lib import call
from llmos.lib.errors import PermissionDenied
from llmos.lib.host import host_id
from llmos.servers.memory.prefix.run import Run, Space
from llmos.servers.memory.prefix.store import Part, PrefixStore

OWN = "local"  # the tenant of the OS's own servers
_HOST = host_id()


class PrefixesService(prefix_pb2_grpc.PrefixesServicer):
    """Prefixes over a PrefixStore."""

    def __init__(self, store: PrefixStore) -> None:
        """Serve `store`."""
        self._store = store

    async def GetBlocks(
        self, request: prefix_pb2.GetBlocksRequest, context: Any
    ) -> prefix_pb2.GetBlocksResponse:
        """See the proto."""
        space = _space(request.space, context)
        parts = await self._store.find(space, list(request.keys), request.held)
        return prefix_pb2.GetBlocksResponse(
            runs=[_run(part) for part in parts],
            blocks=sum(part.blocks for part in parts),
            wanted=bool(self._store.ram_budget),
        )

    async def PutBlocks(
        self, request: prefix_pb2.PutBlocksRequest, context: Any
    ) -> prefix_pb2.PutBlocksResponse:
        """See the proto."""
        stored = await self._store.put(
            _space(request.space, context),
            list(request.keys),
            (request.handle.id, request.handle.token),
            request.block_bytes,
            request.depth,
            request.cost_s,
        )
        return prefix_pb2.PutBlocksResponse(stored=stored)

    async def DropBlocks(
        self, request: prefix_pb2.DropBlocksRequest, context: Any
    ) -> prefix_pb2.DropBlocksResponse:
        """See the proto."""
        caller = call.tenant(context)
        tenant = request.tenant if caller == OWN else _tenant(request.tenant, caller)
        blocks, size = await self._store.drop(request.model, tenant)
        return prefix_pb2.DropBlocksResponse(blocks=blocks, bytes=size)

    async def ListSpaces(
        self, request: prefix_pb2.ListSpacesRequest, context: Any
    ) -> prefix_pb2.ListSpacesResponse:
        """See the proto."""
        caller, store = call.tenant(context), self._store
        response = prefix_pb2.ListSpacesResponse(
            ram_bytes=store.ram_bytes,
            ram_budget=store.ram_budget,
            disk_bytes=store.disk_bytes,
            disk_budget=store.disk_budget,
            evictions=store.evictions,
        )
        for shelf in store.shelves():
            if caller not in (OWN, shelf.space.tenant):
                continue
            in_ram = sum(bool(run.buffer) for run, _ in shelf.blocks.values())
            response.spaces.add(
                space=prefix_pb2.Space(**shelf.space._asdict()),
                ram_blocks=in_ram,
                disk_blocks=len(shelf.blocks) - in_ram,
                block_bytes=shelf.block_bytes,
                hits=shelf.hits,
                misses=shelf.misses,
                idle_s=store.idle_s(shelf),
            )
        return response


def _space(space: prefix_pb2.Space, context: Any) -> Space:
    caller = call.tenant(context)
    return Space(space.model, space.layout, _tenant(space.tenant, caller))


def _tenant(named: str, caller: str) -> str:
    """Return whose blocks are meant. Raises PermissionDenied NOT_YOUR_TENANT."""
    if named in ("", caller) or caller == OWN:
        return named or caller
    raise PermissionDenied(
        "NOT_YOUR_TENANT", "Blocks of another tenant are out of reach; leave the tenant empty."
    )


def _run(part: Part) -> prefix_pb2.BlockRun:
    run: Run = part.run
    handle = buffers_pb2.BufferHandle(id=run.buffer, token=run.token, host=_HOST, size=run.size)
    return prefix_pb2.BlockRun(
        handle=handle,
        offset=part.first * run.block_bytes,
        blocks=part.blocks,
        block_bytes=run.block_bytes,
    )
