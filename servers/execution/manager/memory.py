"""Residency grants from the memory server."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import grpc

from llmos.api.memory.v1 import residency_pb2 as pb
from llmos.api.memory.v1 import residency_pb2_grpc
from llmos.lib.errors import LLMOSError
from llmos.servers.execution.manager.model import Worker
from llmos.servers.execution.manager.peers import CALL_S, once, patient

log = logging.getLogger(__name__)


class MemoryGrants:
    """See seams.Grants."""

    def __init__(self, channel: grpc.aio.Channel, patience_s: float) -> None:
        """Call on `channel`; wait `patience_s` for a memory server that is away."""
        self._residency = residency_pb2_grpc.ResidencyStub(channel)
        self._patience_s = patience_s

    async def devices(self) -> list[str]:
        """See seams.Grants."""
        request = pb.ListDevicesRequest()
        answer = await patient(
            lambda: self._residency.ListDevices(request, timeout=CALL_S), self._patience_s
        )
        return [d.name for d in answer.devices]

    async def acquire(self, worker: Worker, bytes: int, *, dry_run: bool = False) -> Sequence[str]:
        """See seams.Grants."""
        request = pb.AcquireGrantRequest(
            id=worker.grant,
            device=worker.device,
            bytes=bytes,
            pinned=worker.pinned,
            rank=worker.rank,
            tenant=worker.tenant,
            reload_s=worker.load_s,
            dry_run=dry_run,
        )
        answer = await patient(
            lambda: self._residency.AcquireGrant(request, timeout=CALL_S), self._patience_s
        )
        return [] if answer.granted else list(answer.evict)

    async def release(self, grant: str) -> None:
        """See seams.Grants."""
        request = pb.ReleaseGrantRequest(id=grant)
        await once(self._residency.ReleaseGrant(request, timeout=CALL_S))

    async def leases(self) -> Mapping[str, int]:
        """Return how many held each version when it was reported last; none if memory is away."""
        request = pb.ListGrantsRequest()
        try:
            answer = await once(self._residency.ListGrants(request, timeout=CALL_S))
        except LLMOSError as exc:
            log.warning("holds are not known", extra={"cause": exc.message})
            return {}
        return {g.id.partition("#")[0]: g.leases for g in answer.grants}

    async def report(self, workers: Sequence[Worker]) -> None:
        """See seams.Grants."""
        grants = [
            pb.Grant(
                id=w.grant,
                device=w.device,
                bytes=w.granted_bytes,
                used_bytes=w.used_bytes,
                busy=w.running > 0,
                pinned=w.pinned,
                moving=w.moving,
                leases=w.leases,
                served=w.served,
                reload_s=w.load_s,
                rank=w.rank,
                tenant=w.tenant,
            )
            for w in workers
        ]
        request = pb.ReportGrantsRequest(grants=grants)
        await once(self._residency.ReportGrants(request, timeout=CALL_S))
