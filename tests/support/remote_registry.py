"""Aliases and version leases over gRPC, so that one suite tests the store and the server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import TypeVar

import grpc

from llmos.api.storage.v1 import aliases_pb2 as pb
from llmos.api.storage.v1 import aliases_pb2_grpc
from llmos.lib.rpc import from_rpc_error
from llmos.servers.storage.registry.base import Aliases, VersionLeases
from llmos.servers.storage.registry.model import (
    Alias,
    AliasMove,
    AliasPage,
    MoveKind,
    MovePage,
    VersionLease,
)

T = TypeVar("T")


class RemoteAliases(Aliases):
    """Calls a storage server."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = aliases_pb2_grpc.AliasesStub(channel)

    async def set_alias(
        self, model: str, alias: str, version: int, expected: int | None = None
    ) -> tuple[Alias, int]:
        request = pb.SetAliasRequest(
            model=model, alias=alias, version=version, expected_revision=expected
        )
        answer = await _own(self.stub.SetAlias(request))
        return _alias(answer.alias), answer.previous_version

    async def rollback_alias(self, model: str, alias: str, expected: int) -> tuple[Alias, int]:
        request = pb.RollbackAliasRequest(model=model, alias=alias, expected_revision=expected)
        answer = await _own(self.stub.RollbackAlias(request))
        return _alias(answer.alias), answer.previous_version

    async def delete_alias(self, model: str, alias: str, expected: int | None = None) -> bool:
        request = pb.DeleteAliasRequest(model=model, alias=alias, expected_revision=expected)
        return (await _own(self.stub.DeleteAlias(request))).existed

    async def list_aliases(self, model: str, page_size: int, page_token: str) -> AliasPage:
        request = pb.ListAliasesRequest(model=model, page_size=page_size, page_token=page_token)
        answer = await _own(self.stub.ListAliases(request))
        return AliasPage([_alias(a) for a in answer.aliases], answer.next_page_token)

    async def list_moves(self, model: str, alias: str, page_size: int, page_token: str) -> MovePage:
        request = pb.ListAliasMovesRequest(
            model=model, alias=alias, page_size=page_size, page_token=page_token
        )
        answer = await _own(self.stub.ListAliasMoves(request))
        return MovePage([_move(m) for m in answer.moves], answer.next_page_token)

    async def watch_aliases(
        self, model: str, alias: str, after: int | None
    ) -> AsyncGenerator[AliasMove, None]:
        request = pb.WatchAliasesRequest(model=model, alias=alias, after_revision=after)
        call = self.stub.WatchAliases(request)
        try:
            async for answer in call:
                yield _move(answer.move)
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        finally:
            call.cancel()


class RemoteLeases(VersionLeases):
    """Calls a storage server."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = aliases_pb2_grpc.VersionLeasesStub(channel)

    async def acquire_lease(
        self, ref: str, holder: str, ttl_s: float, request_id: str = ""
    ) -> VersionLease:
        request = pb.AcquireVersionLeaseRequest(
            ref=ref, holder=holder, ttl_s=ttl_s, request_id=request_id
        )
        return _lease((await _own(self.stub.AcquireVersionLease(request))).lease)

    async def renew_lease(self, id: str) -> VersionLease:
        request = pb.RenewVersionLeaseRequest(id=id)
        return _lease((await _own(self.stub.RenewVersionLease(request))).lease)

    async def release_lease(self, id: str) -> bool:
        request = pb.ReleaseVersionLeaseRequest(id=id)
        return (await _own(self.stub.ReleaseVersionLease(request))).existed

    async def list_leases(self, ref: str) -> Sequence[VersionLease]:
        answer = await _own(self.stub.ListVersionLeases(pb.ListVersionLeasesRequest(ref=ref)))
        return [_lease(lease) for lease in answer.leases]


async def _own(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as exc:
        raise from_rpc_error(exc) from exc


def _alias(alias: pb.Alias) -> Alias:
    return Alias(alias.model, alias.alias, alias.version, alias.revision)


def _move(move: pb.AliasMove) -> AliasMove:
    return AliasMove(
        move.revision,
        move.model,
        move.alias,
        MoveKind(move.kind),
        move.version,
        move.previous_version,
        move.actor,
        move.unix_s,
    )


def _lease(lease: pb.VersionLease) -> VersionLease:
    return VersionLease(
        lease.id,
        lease.model,
        lease.version,
        lease.holder,
        lease.ttl_s,
        lease.remaining_s,
        lease.dataset,
    )
