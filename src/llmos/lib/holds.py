"""Keeps versions in storage from being deleted, by leases that are renewed as long as needed.

holds = VersionHolds(channel, "execution on box7", lambda: [("smollm2@1", "")])
keeping = asyncio.create_task(holds.keep())
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import grpc

from llmos.api.storage.v1 import aliases_pb2 as pb
from llmos.api.storage.v1 import aliases_pb2_grpc
from llmos.lib.errors import LLMOSError, NotFound
from llmos.lib.rpc import from_rpc_error

TTL_S = 300.0
_CALL_S = 5.0
_AGAIN_S = 2.0  # until what failed is tried again
_LONGEST = 90  # characters of a name: it is part of request ids, which have 256
T = TypeVar("T")
Need = tuple[str, str]  # a version, as VersionLeases takes it, and for whom ("" = for the server)
log = logging.getLogger(__name__)


class VersionHolds:
    """The leases of one server. A server of the same name goes on with them after a crash.

    Belongs to one event loop. What storage does not grant while it is away, or its disk is full,
    is taken later: nobody waits for a lease.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        name: str,
        needed: Callable[[], Iterable[Need]],
        *,
        ttl_s: float = TTL_S,
    ) -> None:
        """Call storage on `channel`. name: for people, and nobody else's."""
        self._stub: aliases_pb2_grpc.VersionLeasesAsyncStub = aliases_pb2_grpc.VersionLeasesStub(
            channel
        )
        self._name = name[:_LONGEST]
        self._needed = needed
        self._ttl_s = ttl_s
        self._held: dict[Need, str] = {}  # leases
        self._due: dict[Need, float] = {}  # when they are to be renewed; monotonic
        self._lock = asyncio.Lock()
        self._news = asyncio.Event()
        self._failing = False
        self._known = False  # what an earlier process of this name has left

    async def hold(self, ref: str, who: str = "") -> None:
        """Take a lease now, before `keep` finds out that it is needed. Raises NotFound."""
        async with self._lock:
            try:
                await self._take((ref, who))
            except NotFound:
                raise
            except LLMOSError as exc:
                self._failed(exc)

    def changed(self) -> None:
        """Look soon at what is needed."""
        self._news.set()

    async def keep(self) -> None:
        """Hold what is needed and nothing else, for ever."""
        while True:
            self._news.clear()
            await self.settle()
            wait_s = _AGAIN_S if self._failing else self._ttl_s / 3
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()

    async def settle(self) -> None:
        """Take, renew and give back what is due; returns when done, or when storage refuses."""
        try:
            async with self._lock:
                self._known = self._known or await self._find()
                await self._round(set(self._needed()))
            self._failing = False
        except LLMOSError as exc:
            self._failed(exc)

    async def _find(self) -> bool:
        """Find the leases that an earlier process of this name has left."""
        request = pb.ListVersionLeasesRequest()
        for lease in (await _own(self._stub.ListVersionLeases(request, timeout=_CALL_S))).leases:
            who, mine = self._who(lease.holder)
            if mine:
                ref = f"{'dataset:' if lease.dataset else ''}{lease.model}@{lease.version}"
                self._held.setdefault((ref, who), lease.id)
                self._due.setdefault((ref, who), 0.0)
        return True

    async def _round(self, needed: set[Need]) -> None:
        for need in self._held.keys() - needed:
            request = pb.ReleaseVersionLeaseRequest(id=self._held[need])
            await _own(self._stub.ReleaseVersionLease(request, timeout=_CALL_S))
            del self._held[need], self._due[need]
        for need in sorted(needed):
            try:
                if need not in self._held:
                    await self._take(need)
                elif time.monotonic() >= self._due[need]:
                    await self._renew(need)
            except NotFound as exc:
                log.warning("what is in use was deleted", extra={"cause": exc.message})

    async def _take(self, need: Need) -> None:
        if need in self._held:
            return
        ref, _ = need
        holder = self._holder(need)
        request = pb.AcquireVersionLeaseRequest(
            ref=ref, holder=holder, ttl_s=self._ttl_s, request_id=f"{holder}/{ref}"
        )
        asked = time.monotonic()
        lease = (await _own(self._stub.AcquireVersionLease(request, timeout=_CALL_S))).lease
        self._held[need] = lease.id
        # The lease may be an earlier one, with less time left than it began with.
        self._due[need] = asked + lease.remaining_s - self._ttl_s * 2 / 3

    async def _renew(self, need: Need) -> None:
        request = pb.RenewVersionLeaseRequest(id=self._held[need])
        asked = time.monotonic()
        try:
            await _own(self._stub.RenewVersionLease(request, timeout=_CALL_S))
            self._due[need] = asked + self._ttl_s / 3
        except NotFound:  # somebody released it, or nobody could renew it for too long
            del self._held[need], self._due[need]
            await self._take(need)

    def _holder(self, need: Need) -> str:
        return f"{need[1]}, {self._name}" if need[1] else self._name

    def _who(self, holder: str) -> tuple[str, bool]:
        if holder == self._name:
            return "", True
        return holder.removesuffix(f", {self._name}"), holder.endswith(f", {self._name}")

    def _failed(self, exc: LLMOSError) -> None:
        if not self._failing:
            log.warning("a lease on a version has to wait", extra={"cause": exc.message})
        self._failing = True


async def _own(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.RpcError as exc:
        raise from_rpc_error(exc) from exc
