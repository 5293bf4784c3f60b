"""Aliases, VersionLeases: converts messages and delegates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from llmos.api.storage.v1 import aliases_pb2 as pb
from llmos.api.storage.v1 import aliases_pb2_grpc
from llmos.lib.publish import Tell, nobody
from llmos.servers.storage.registry.base import Aliases, VersionLeases
from llmos.servers.storage.registry.model import Alias, AliasMove, VersionLease


class AliasesService(aliases_pb2_grpc.AliasesServicer):
    """Serves aliases."""

    def __init__(self, aliases: Aliases, tell: Tell = nobody) -> None:
        """Delegate to `aliases`; tell of moves (event alias.moved)."""
        self._aliases = aliases
        self._tell = tell

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.SetAliasResponse:
        """Point an alias."""
        expected = request.expected_revision if request.HasField("expected_revision") else None
        alias, previous = await self._aliases.set_alias(
            request.model, request.alias, request.version, expected
        )
        if previous != alias.version:
            self._moved(alias.model, alias.alias, alias.version, previous)
        return pb.SetAliasResponse(alias=alias_to_proto(alias), previous_version=previous)

    async def RollbackAlias(
        self, request: pb.RollbackAliasRequest, context: Any
    ) -> pb.RollbackAliasResponse:
        """Take back a move."""
        alias, previous = await self._aliases.rollback_alias(
            request.model, request.alias, request.expected_revision
        )
        self._moved(alias.model, alias.alias, alias.version, previous)
        return pb.RollbackAliasResponse(alias=alias_to_proto(alias), previous_version=previous)

    async def DeleteAlias(
        self, request: pb.DeleteAliasRequest, context: Any
    ) -> pb.DeleteAliasResponse:
        """Remove an alias."""
        expected = request.expected_revision if request.HasField("expected_revision") else None
        existed = await self._aliases.delete_alias(request.model, request.alias, expected)
        if existed:
            self._moved(request.model, request.alias, 0, 0)
        return pb.DeleteAliasResponse(existed=existed)

    async def ListAliases(
        self, request: pb.ListAliasesRequest, context: Any
    ) -> pb.ListAliasesResponse:
        """List a page."""
        page = await self._aliases.list_aliases(
            request.model, request.page_size, request.page_token
        )
        return pb.ListAliasesResponse(
            aliases=[alias_to_proto(alias) for alias in page.aliases],
            next_page_token=page.next_token,
        )

    async def ListAliasMoves(
        self, request: pb.ListAliasMovesRequest, context: Any
    ) -> pb.ListAliasMovesResponse:
        """List a page of the history."""
        page = await self._aliases.list_moves(
            request.model, request.alias, request.page_size, request.page_token
        )
        return pb.ListAliasMovesResponse(
            moves=[move_to_proto(move) for move in page.moves], next_page_token=page.next_token
        )

    async def WatchAliases(
        self, request: pb.WatchAliasesRequest, context: Any
    ) -> AsyncIterator[pb.WatchAliasesResponse]:
        """Stream moves."""
        after = request.after_revision if request.HasField("after_revision") else None
        watch = self._aliases.watch_aliases(request.model, request.alias, after)
        async with aclosing(watch) as moves:
            async for move in moves:
                yield pb.WatchAliasesResponse(move=move_to_proto(move))

    def _moved(self, model: str, alias: str, version: int, previous: int) -> None:
        self._tell(
            "alias.moved",
            alias=f"{model}@{alias}",
            version=version,
            previous_version=previous,
        )


class VersionLeasesService(aliases_pb2_grpc.VersionLeasesServicer):
    """Serves leases on versions."""

    def __init__(self, leases: VersionLeases) -> None:
        """Delegate to `leases`."""
        self._leases = leases

    async def AcquireVersionLease(
        self, request: pb.AcquireVersionLeaseRequest, context: Any
    ) -> pb.AcquireVersionLeaseResponse:
        """Take a lease."""
        lease = await self._leases.acquire_lease(
            request.ref, request.holder, request.ttl_s, request.request_id
        )
        return pb.AcquireVersionLeaseResponse(lease=lease_to_proto(lease))

    async def RenewVersionLease(
        self, request: pb.RenewVersionLeaseRequest, context: Any
    ) -> pb.RenewVersionLeaseResponse:
        """Start its time anew."""
        lease = await self._leases.renew_lease(request.id)
        return pb.RenewVersionLeaseResponse(lease=lease_to_proto(lease))

    async def ReleaseVersionLease(
        self, request: pb.ReleaseVersionLeaseRequest, context: Any
    ) -> pb.ReleaseVersionLeaseResponse:
        """Give a lease back."""
        existed = await self._leases.release_lease(request.id)
        return pb.ReleaseVersionLeaseResponse(existed=existed)

    async def ListVersionLeases(
        self, request: pb.ListVersionLeasesRequest, context: Any
    ) -> pb.ListVersionLeasesResponse:
        """List leases."""
        found = await self._leases.list_leases(request.ref)
        return pb.ListVersionLeasesResponse(leases=[lease_to_proto(lease) for lease in found])


def alias_to_proto(alias: Alias) -> pb.Alias:
    """Return the message for an alias."""
    return pb.Alias(
        model=alias.model, alias=alias.alias, version=alias.version, revision=alias.revision
    )


def move_to_proto(move: AliasMove) -> pb.AliasMove:
    """Return the message for a move."""
    return pb.AliasMove(
        revision=move.revision,
        model=move.model,
        alias=move.alias,
        kind=pb.AliasMoveKind.ValueType(move.kind),
        version=move.version,
        previous_version=move.previous_version,
        actor=move.actor,
        unix_s=move.unix_s,
    )


def lease_to_proto(lease: VersionLease) -> pb.VersionLease:
    """Return the message for a lease."""
    return pb.VersionLease(
        id=lease.id,
        model=lease.model,
        version=lease.version,
        holder=lease.holder,
        ttl_s=lease.ttl_s,
        remaining_s=lease.remaining_s,
        dataset=lease.dataset,
    )
