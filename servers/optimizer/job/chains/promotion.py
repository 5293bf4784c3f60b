"""Moves aliases to a version, watches how calls on it end, and takes the move back."""

from __future__ import annotations

import asyncio
import time

import grpc

from llmos.api.kernel.v1 import admin_pb2, admin_pb2_grpc
from llmos.api.optimizer.v1 import jobs_pb2
from llmos.api.storage.v1 import aliases_pb2 as pb
from llmos.api.storage.v1 import aliases_pb2_grpc
from llmos.lib.errors import FailedPrecondition
from llmos.lib.rpc import from_rpc_error
from llmos.servers.optimizer.job.context import JobContext
from llmos.servers.optimizer.job.storage import patiently

_LOOK_S = 0.5
_MAX_FAILED = 0.01


class Promoter:
    """Moves the canary first, if there is one, then the alias."""

    def __init__(self, context: JobContext, promotion: jobs_pb2.Promotion) -> None:
        """Move nothing yet."""
        self._context, self._promotion = context, promotion
        storage = context.channel("storage")
        self._aliases: aliases_pb2_grpc.AliasesAsyncStub = aliases_pb2_grpc.AliasesStub(storage)

    async def run(self, ref: str) -> None:
        """Do it. Raises FailedPrecondition ROLLED_BACK when calls on the version fail."""
        for alias in filter(None, (self._promotion.canary, self._promotion.alias)):
            self._context.tell(f"moves {alias} to {ref}", 0.92)
            revision = await self._move(ref, alias)
            if self._promotion.watch_s:
                self._context.tell(f"watches calls on {ref}", 0.95)
                if why := await self._watch(ref):
                    await self._back(ref, alias, revision)
                    raise FailedPrecondition(
                        "ROLLED_BACK", f"{alias} was moved to {ref} and back again: {why}."
                    )

    async def _move(self, ref: str, alias: str) -> int:
        model, _, version = ref.partition("@")

        async def call() -> pb.SetAliasResponse:
            request = pb.SetAliasRequest(model=model, alias=alias, version=int(version))
            return await self._aliases.SetAlias(request, timeout=60)

        return int((await patiently(call)).alias.revision)

    async def _back(self, ref: str, alias: str, revision: int) -> None:
        model = ref.partition("@")[0]

        async def call() -> None:
            request = pb.RollbackAliasRequest(model=model, alias=alias, expected_revision=revision)
            try:
                await self._aliases.RollbackAlias(request, timeout=60)
            except grpc.RpcError as exc:
                if from_rpc_error(exc).reason != "NOTHING_BEFORE":
                    raise
                gone = pb.DeleteAliasRequest(model=model, alias=alias, expected_revision=revision)
                await self._aliases.DeleteAlias(gone, timeout=60)

        await patiently(call)

    async def _watch(self, ref: str) -> str:
        """Return what is wrong with the calls on a version's workers, as the kernel counts them."""
        until = time.monotonic() + self._promotion.watch_s
        limit = self._promotion.max_failed or _MAX_FAILED
        stub: admin_pb2_grpc.AdminAsyncStub = admin_pb2_grpc.AdminStub(
            self._context.channel("kernel")
        )
        first: dict[int, tuple[int, int]] = {}
        last: dict[int, tuple[int, int]] = {}

        async def look() -> admin_pb2.ListPortsResponse:
            return await stub.ListPorts(admin_pb2.ListPortsRequest(), timeout=10)

        began = True
        while True:
            for port in (await patiently(look)).ports:
                if any(ref in export.keys for export in port.exports):
                    now = (int(port.served), int(port.failed))
                    first.setdefault(port.port, now if began else (0, 0))
                    last[port.port] = now
            began = False
            served = sum(last[p][0] - first[p][0] for p in last)
            failed = sum(last[p][1] - first[p][1] for p in last)
            if served and failed / served > limit:
                return f"{failed} of {served} calls failed, at most {limit:.1%} may"
            if time.monotonic() > until:
                return ""
            await asyncio.sleep(_LOOK_S)
