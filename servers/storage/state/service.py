"""The gRPC face of leases and locks: converts and delegates, nothing else."""

from __future__ import annotations

from typing import Any

from llmos.api.storage.v1 import locks_pb2 as pb
from llmos.api.storage.v1 import locks_pb2_grpc
from llmos.servers.storage.state.base import Leases, Locks
from llmos.servers.storage.state.model import Lease, Lock, Place


class LeasesService(locks_pb2_grpc.LeasesServicer):
    """Serves leases."""

    def __init__(self, leases: Leases) -> None:
        """Delegate to `leases`."""
        self._leases = leases

    async def GrantLease(
        self, request: pb.GrantLeaseRequest, context: Any
    ) -> pb.GrantLeaseResponse:
        """Make or extend a lease."""
        lease = await self._leases.grant(request.ttl_ms, request.id, request.owner)
        return pb.GrantLeaseResponse(lease=lease_to_proto(lease))

    async def RenewLease(
        self, request: pb.RenewLeaseRequest, context: Any
    ) -> pb.RenewLeaseResponse:
        """Give a lease its full time again."""
        return pb.RenewLeaseResponse(lease=lease_to_proto(await self._leases.renew(request.id)))

    async def RevokeLease(
        self, request: pb.RevokeLeaseRequest, context: Any
    ) -> pb.RevokeLeaseResponse:
        """End a lease."""
        return pb.RevokeLeaseResponse(existed=await self._leases.revoke(request.id))

    async def GetLease(self, request: pb.GetLeaseRequest, context: Any) -> pb.GetLeaseResponse:
        """Tell about a lease."""
        found = await self._leases.lease(request.id)
        return pb.GetLeaseResponse(
            lease=lease_to_proto(found.lease), documents=found.documents, locks=found.locks
        )

    async def ListLeases(
        self, request: pb.ListLeasesRequest, context: Any
    ) -> pb.ListLeasesResponse:
        """List leases."""
        found = await self._leases.leases()
        return pb.ListLeasesResponse(leases=[lease_to_proto(lease) for lease in found])


class LocksService(locks_pb2_grpc.LocksServicer):
    """Serves locks."""

    def __init__(self, locks: Locks) -> None:
        """Delegate to `locks`."""
        self._locks = locks

    async def AcquireLock(
        self, request: pb.AcquireLockRequest, context: Any
    ) -> pb.AcquireLockResponse:
        """Wait for a lock."""
        token = await self._locks.acquire(
            request.name,
            request.lease,
            wait_ms=request.wait_ms,
            owner=request.owner,
            request_id=request.request_id,
        )
        return pb.AcquireLockResponse(token=token)

    async def ReleaseLock(
        self, request: pb.ReleaseLockRequest, context: Any
    ) -> pb.ReleaseLockResponse:
        """Give a lock up."""
        return pb.ReleaseLockResponse(
            released=await self._locks.release(request.name, request.token)
        )

    async def GetLock(self, request: pb.GetLockRequest, context: Any) -> pb.GetLockResponse:
        """Tell about a lock."""
        return pb.GetLockResponse(lock=lock_to_proto(await self._locks.lock(request.name)))

    async def ListLocks(self, request: pb.ListLocksRequest, context: Any) -> pb.ListLocksResponse:
        """List locks."""
        found = await self._locks.locks(request.prefix)
        return pb.ListLocksResponse(locks=[lock_to_proto(lock) for lock in found])


def lease_to_proto(lease: Lease) -> pb.Lease:
    """Return the message for a lease."""
    return pb.Lease(id=lease.id, ttl_ms=lease.ttl_ms, left_ms=lease.left_ms, owner=lease.owner)


def lock_to_proto(lock: Lock) -> pb.Lock:
    """Return the message for a lock."""
    return pb.Lock(
        name=lock.name,
        holder=_place(lock.holder) if lock.holder else None,
        waiting=[_place(place) for place in lock.waiting],
    )


def _place(place: Place) -> pb.LockPlace:
    return pb.LockPlace(
        token=place.token, lease=place.lease, owner=place.owner, asked_unix_s=place.asked_unix_s
    )
