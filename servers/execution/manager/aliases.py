"""Follows the aliases of models, so that what is loaded by alias is what the alias means."""

from __future__ import annotations

import asyncio
import logging

import grpc

from llmos.api.storage.v1 import aliases_pb2 as pb
from llmos.api.storage.v1 import aliases_pb2_grpc
from llmos.lib.rpc import from_rpc_error
from llmos.servers.execution.manager.core import Manager

_AGAIN_S = 1.0
log = logging.getLogger(__name__)


async def follow(channel: grpc.aio.Channel, manager: Manager) -> None:
    """Tell the manager of every move, for ever; `channel` goes to storage.

    Each watch begins with a look at the aliases in use: what moved while nobody watched is found.
    """
    stub = aliases_pb2_grpc.AliasesStub(channel)
    while True:
        try:
            async for answer in stub.WatchAliases(pb.WatchAliasesRequest()):
                move = answer.move
                if move.kind == pb.ALIAS_MOVE_KIND_UNSPECIFIED:
                    for key in manager.aliases():
                        await manager.moved(key)
                else:
                    await manager.moved(f"{move.model}@{move.alias}")
        except grpc.RpcError as exc:
            cause = str(from_rpc_error(exc))
            log.debug("watching aliases again in a moment", extra={"cause": cause})
        await asyncio.sleep(_AGAIN_S)
