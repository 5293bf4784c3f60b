"""The gRPC face of upkeep: converts and delegates, nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from llmos.api.storage.v1 import maintenance_pb2 as pb
from llmos.api.storage.v1 import maintenance_pb2_grpc
from llmos.lib.call import progress, same_host
from llmos.servers.storage.direct import reachable
from llmos.servers.storage.upkeep.base import Finding, Maintenance, Step, Summary

_PIECE = 256 << 10  # bytes of one message: under the kernel's frame limit


class MaintenanceService(maintenance_pb2_grpc.MaintenanceServicer):
    """Serves upkeep."""

    def __init__(self, maintenance: Maintenance, address: str = "") -> None:
        """Delegate to `maintenance`; address: of this server's own gRPC port."""
        self._maintenance = maintenance
        self._address = address

    async def Df(self, request: pb.DfRequest, context: Any) -> pb.DfResponse:
        """Tell what takes how much."""
        space = dataclasses.asdict(await self._maintenance.df())
        scrubbed = space.pop("scrubbed")
        return pb.DfResponse(
            **space,
            scrubbed_unix_s=scrubbed,
            direct_address=reachable(self._address, same_host(context)),
        )

    async def Fsck(self, request: pb.FsckRequest, context: Any) -> AsyncIterator[pb.FsckResponse]:
        """Check."""
        work = self._maintenance.fsck(request.repair, request.quick)
        async with aclosing(work) as steps:
            async for step in steps:
                if isinstance(step, Step):
                    yield pb.FsckResponse(progress=to_progress(step))
                elif isinstance(step, Finding):
                    yield pb.FsckResponse(finding=to_finding(step))
                else:
                    yield pb.FsckResponse(summary=_summary(step))

    async def CollectGarbage(
        self, request: pb.CollectGarbageRequest, context: Any
    ) -> pb.CollectGarbageResponse:
        """Collect."""
        grace = request.grace_s if request.HasField("grace_s") else None
        done = await self._maintenance.collect(grace)
        return pb.CollectGarbageResponse(**dataclasses.asdict(done))

    async def Scrub(
        self, request: pb.ScrubRequest, context: Any
    ) -> AsyncIterator[pb.ScrubResponse]:
        """Check again."""
        work = self._maintenance.scrub(request.bytes_per_s, request.older_than_s)
        async with aclosing(work) as steps:
            async for step in steps:
                if isinstance(step, Step):
                    yield pb.ScrubResponse(progress=to_progress(step))
                else:
                    yield pb.ScrubResponse(finding=to_finding(step))

    async def Backup(
        self, request: pb.BackupRequest, context: Any
    ) -> AsyncIterator[pb.BackupResponse]:
        """Stream the store."""
        async with aclosing(self._maintenance.backup()) as steps:
            async for step in steps:
                if isinstance(step, Step):
                    yield pb.BackupResponse(progress=to_progress(step))
                    continue
                for i in range(0, len(step), _PIECE):
                    yield pb.BackupResponse(data=step[i : i + _PIECE])

    async def Restore(
        self, request_iterator: AsyncIterator[pb.RestoreRequest], context: Any
    ) -> pb.RestoreResponse:
        """Fill the store."""

        async def pieces() -> AsyncIterator[bytes]:
            async for request in request_iterator:
                if request.data:
                    yield request.data
                progress(context)

        done = await self._maintenance.restore(pieces())
        return pb.RestoreResponse(blobs=done.blobs, rows=done.rows, made_unix_s=done.made)

    async def Rekey(
        self, request: pb.RekeyRequest, context: Any
    ) -> AsyncIterator[pb.RekeyResponse]:
        """Change keys."""
        async with aclosing(self._maintenance.rekey()) as steps:
            async for step in steps:
                yield pb.RekeyResponse(
                    progress=to_progress(step.step), rewrapped=step.rewrapped, sealed=step.sealed
                )


def to_progress(step: Step) -> pb.Progress:
    """Return the message."""
    return pb.Progress(stage=step.stage, done_bytes=step.done_bytes, total_bytes=step.total_bytes)


def to_finding(finding: Finding) -> pb.Finding:
    """Return the message."""
    return pb.Finding(
        kind=pb.Finding.Kind.ValueType(finding.kind),
        subject=finding.subject,
        what=finding.what,
        done=finding.done,
        harms=finding.harms,
    )


def _summary(found: Summary) -> pb.FsckSummary:
    return pb.FsckSummary(**dataclasses.asdict(found))
