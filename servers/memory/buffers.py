"""Owns the buffers and their leases. Knows neither gRPC nor the kernel.

A *lessee* is who holds a lease: `<instance>` or `<instance>/<client>` for a process that the
kernel vouches for, `grpc:...` for anybody else. A buffer lives as long as it has a lease.
Everything but `create` of a large buffer runs to its end without yielding, so one event loop needs
no locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator

from llmos.lib.errors import (
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
)
from llmos.servers.memory.accounts import Accounts
from llmos.servers.memory.offers import KEEP_S, Offers
from llmos.servers.memory.record import Buffer, Record, Rights, lease_time, process_of
from llmos.servers.memory.shm import Directory, charge
from llmos.servers.memory.spares import Spares

_MAX_LABEL = 256
_INLINE = 4 << 20  # allocating up to this takes about a millisecond: no thread

log = logging.getLogger(__name__)


class BufferStore:
    """All buffers in one directory, which it recovers when it is made."""

    def __init__(
        self,
        directory: Directory,
        *,
        budget: int = 0,
        max_size: int = 0,
        quota: int = 0,
        clock: Callable[[], float] = time.monotonic,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Recover. Bytes: budget (0 = half of the file system), max_size, quota of a tenant.

        progress: called on the event loop while a large buffer is being allocated.

        Recovered leases get their full time again: nobody could renew them while we were away.
        """
        self._dir = directory
        self._spares = Spares(directory)
        self._offers = Offers(directory)
        self._clock = clock
        self._progress = progress
        self.accounts = Accounts(budget or directory.total() // 2, max_size, quota)
        self._buffers: dict[str, Buffer] = {}
        self._held: dict[str, set[str]] = {}  # lessee -> ids
        self._requests: dict[tuple[str, str], str] = {}
        self._creating: dict[tuple[str, str], asyncio.Task[Buffer]] = {}
        # Called with so many bytes when the budget is spent: somebody may have some to give up.
        self.make_room: Callable[[int], None] = lambda over: None
        for record in directory.load():
            self._adopt(record)
        if self._buffers:
            log.info(
                "recovered", extra={"buffers": len(self._buffers), "bytes": self.accounts.used}
            )

    async def create(
        self,
        lessee: str,
        size: int,
        label: str = "",
        lease_s: float = 0,
        request: str = "",
        *,
        tenant: str = "",
    ) -> Buffer:
        """Make a zeroed buffer with a lease of `lessee`, or return the one `request` made before.

        Goes on when cancelled, so that a retry finds what was made.
        Raises InvalidArgument BAD_SIZE, ResourceExhausted NO_ROOM, QUOTA.
        """
        key = (lessee, request)
        if request and (known := self._requests.get(key)):
            return self._again(self._buffers[known], lessee, size, lease_s)
        if request and (running := self._creating.get(key)):
            return self._again(await asyncio.shield(running), lessee, size, lease_s)
        self._budget(size, tenant)
        spare = self._spares.take(size, self._clock())
        if not spare:
            self._space(size)
        record = Record(
            id=spare or secrets.token_hex(16),
            token=secrets.token_hex(16),
            size=size,
            creator=lessee,
            label=label[:_MAX_LABEL],
            created=self._clock(),
            request=request,
            tenant=tenant,
            leases={lessee: lease_time(lease_s)},
        )
        self.accounts.charge(record)
        if spare:
            with self._refund(record):
                return self._commit(record)
        if size <= _INLINE:
            with self._refund(record):
                self._dir.allocate(record.id, size)
                return self._commit(record)
        task = asyncio.ensure_future(self._create_large(record))
        if request:
            self._creating[key] = task
            task.add_done_callback(lambda _: self._creating.pop(key, None))
        task.add_done_callback(lambda t: t.cancelled() or t.exception())  # seen, though cancelled
        return await asyncio.shield(task)

    async def _create_large(self, record: Record) -> Buffer:
        with self._refund(record):
            loop = asyncio.get_running_loop()

            def tick() -> None:
                loop.call_soon_threadsafe(self._progress)

            await asyncio.to_thread(self._dir.allocate, record.id, record.size, tick)
            return self._commit(record)

    def _commit(self, record: Record) -> Buffer:
        try:
            self._dir.save(record, first=True)
        except BaseException:  # whatever stopped it, no half-made buffer stays
            self._dir.remove(record.id)
            raise
        self.accounts.charge(record, -1)  # `_adopt` counts it for good
        return self._adopt(record)

    @contextlib.contextmanager
    def _refund(self, record: Record) -> Iterator[None]:
        try:
            yield
        except BaseException:  # also when cancelled: what was not made is not charged
            self.accounts.charge(record, -1)
            raise

    def _again(self, buffer: Buffer, lessee: str, size: int, lease_s: float) -> Buffer:
        if buffer.record.size != size:
            raise InvalidArgument(
                "BAD_SIZE",
                f"This request_id made a buffer of {buffer.record.size:,} bytes before, not of "
                f"{size:,}; use a new request_id for a new buffer.",
            )
        self._lease(buffer, lessee, lease_s)
        return buffer

    def open(self, lessee: str, id: str, token: bytes, lease_s: float = 0) -> Buffer:
        """Give `lessee` a lease. Raises NotFound NO_SUCH_BUFFER."""
        buffer = self._find(id, token)
        self._lease(buffer, lessee, lease_s)
        return buffer

    def reader(self, id: str, token: bytes) -> Record:
        """Return the record of a buffer that is to be read only. Raises NotFound NO_SUCH_BUFFER."""
        return self._find(id, token).record

    def seal(self, lessee: str, id: str, token: bytes) -> None:
        """Make it read-only for ever.

        Raises NotFound NO_SUCH_BUFFER, PermissionDenied NOT_OWNER, READ_ONLY.
        """
        record = self._find(id, token).record
        if record.rights(token) is not Rights.ALL:
            raise PermissionDenied("READ_ONLY", f"This handle of buffer {id} is only to read by.")
        if process_of(lessee) != record.owner:
            raise PermissionDenied(
                "NOT_OWNER", f"Buffer {id} may be sealed only by the process that created it."
            )
        if not record.sealed:
            self._dir.seal(id)
            record.sealed = True
            self._save(record)

    def renew(self, lessee: str, ids: list[str]) -> list[str]:
        """Start the lessee's leases anew (all when `ids` is empty); return what is gone."""
        held = self._held.get(lessee, set())
        now = self._clock()
        for id in held if not ids else held.intersection(ids):
            buffer = self._buffers[id]
            buffer.deadlines[lessee] = now + buffer.record.leases[lessee]
        return [id for id in ids if id not in held]

    def free(
        self, lessee: str, id: str, token: bytes, *, unmapped: bool = False, again: bool = False
    ) -> Buffer | None:
        """Drop the lessee's lease, if there is one.

        unmapped: the lessee sees its bytes no more. again: return, where that may be, a new buffer
        of the lessee made of its memory; see `offers`.
        """
        buffer = self._buffers.get(id)
        if buffer is None or lessee not in buffer.deadlines or not buffer.record.rights(token):
            return None
        if unmapped and again and self._offers.fits(buffer, lessee, self.accounts.budget):
            return self._offer(buffer, lessee)
        if unmapped and lessee in buffer.record.strangers:
            buffer.record.strangers.remove(lessee)
        self._drop(buffer, lessee)
        return None

    def _offer(self, old: Buffer, lessee: str) -> Buffer | None:
        now = self._clock()
        record = dataclasses.replace(
            old.record,
            id=secrets.token_hex(16),
            token=secrets.token_hex(16),
            created=now,
            request="",
            offered=True,
            leases={**old.record.leases},
        )
        self._forget(old, lessee)
        try:
            self._dir.offer(old.record.id, record)
        except ResourceExhausted as exc:  # what was asked was to free it, and that is done
            log.warning("freed memory not offered", extra={"cause": exc.message})
            return None
        buffer = self._adopt(record)
        self._offers.add(buffer, now)
        return buffer

    def read(self, id: str, token: bytes, offset: int = 0, length: int = 0) -> Iterator[bytes]:
        """Yield its bytes in pieces of at most PIECE; length 0 = to the end.

        The first step opens it; it may be freed after that.
        Raises NotFound NO_SUCH_BUFFER, OutOfRange BAD_RANGE; DataLoss TRUNCATED when a writer
        has cut the file.
        """
        buffer = self._find(id, token)
        size = buffer.record.size
        if offset + length > size:
            raise OutOfRange(
                "BAD_RANGE", f"Buffer {id} has {size:,} bytes; {offset:,} + {length:,} is past it."
            )
        end = offset + length if length else size
        with buffer.reading():
            yield from self._dir.read(id, offset, end)

    def buffers(self) -> list[Buffer]:
        """Return all buffers, oldest first, but not what is offered and not taken."""
        offered = self._offers.waiting()
        return [buffer for id, buffer in self._buffers.items() if id not in offered]

    def path(self, buffer: Buffer) -> str:
        """Return the file to map."""
        return str(self._dir.file(buffer.record.id))

    def claim(self, buffer: Buffer) -> str:
        """Return the file to remove for taking what was offered."""
        return self._dir.marker(buffer.record.id)

    def age(self, buffer: Buffer) -> float:
        """Return seconds since it was created."""
        return max(0.0, self._clock() - buffer.record.created)

    def lessees(self) -> list[str]:
        """Return everybody who holds a lease."""
        return list(self._held)

    def expire(self, *, spare: Callable[[str], bool] = lambda lessee: False) -> int:
        """Drop the leases that ran out, but not of lessees to `spare`; return how many."""
        now = self._clock()
        self._spares.expire(now)
        self._take_back(now - KEEP_S)
        over = [
            (buffer, lessee)
            for buffer in self._buffers.values()
            for lessee, deadline in buffer.deadlines.items()
            if deadline <= now and not spare(lessee)
        ]
        for buffer, lessee in over:
            self._drop(buffer, lessee)
        return len(over)

    def extend(self, lessee: str, seconds: float) -> None:
        """Let no lease of `lessee` end within `seconds`."""
        until = self._clock() + seconds
        for id in self._held.get(lessee, ()):
            deadlines = self._buffers[id].deadlines
            deadlines[lessee] = max(deadlines[lessee], until)

    def drop_process(self, process: str) -> int:
        """Drop all leases of a process that died; return how many."""
        gone = [lessee for lessee in self._held if process_of(lessee) == process]
        pairs = [(self._buffers[id], lessee) for lessee in gone for id in self._held[lessee]]
        for buffer, lessee in pairs:
            self._drop(buffer, lessee)
        return len(pairs)

    def close(self) -> None:
        """Let go of the directory; the buffers stay."""
        self._spares.close()
        self._dir.close()

    def _budget(self, size: int, tenant: str) -> None:
        self.accounts.check_size(size)
        if self.accounts.over(size) > 0 or self.accounts.over_quota(size, tenant) > 0:
            self._take_back(math.inf)
        if (over := self.accounts.over(size)) > 0:
            self.make_room(over)
        self.accounts.check(size, tenant)

    def _take_back(self, before: float) -> None:
        for buffer in self._offers.take_back(before):
            for lessee in [*buffer.deadlines]:
                self._drop(buffer, lessee)

    def _space(self, size: int) -> None:
        if self._dir.room() < charge(size):
            self._take_back(math.inf)
            self._spares.drop()
        if (room := self._dir.room()) < charge(size):
            raise ResourceExhausted(
                "NO_ROOM",
                f"No room for {size:,} bytes: shared memory has {room:,} free; free buffers or "
                "stop something else that uses memory.",
            )

    def _find(self, id: str, token: bytes) -> Buffer:
        buffer = self._buffers.get(id)
        if buffer is None or buffer.record.rights(token) is None:
            raise NotFound(
                "NO_SUCH_BUFFER",
                f"There is no buffer {id[:64]!r} with that token: it was freed, or its leases ran "
                "out; ask its sender for a new one.",
            )
        return buffer

    def _lease(self, buffer: Buffer, lessee: str, lease_s: float) -> None:
        record = buffer.record
        leases, time_s = record.leases, lease_time(lease_s)
        known = lessee == record.creator or lessee in record.strangers
        if not known:
            record.strangers.append(lessee)
        if leases.get(lessee) != time_s or not known:
            leases[lessee] = time_s
            self._save(record)
        buffer.deadlines[lessee] = self._clock() + time_s
        self._held.setdefault(lessee, set()).add(record.id)

    def _save(self, record: Record) -> None:
        try:
            self._dir.save(record)
        except ResourceExhausted as exc:
            # What was asked needs no room, so it must not fail for want of it. Only a restart
            # before the next change would see the older leases, and these run out by themselves.
            log.warning("record not saved", extra={"buffer": record.id, "cause": exc.message})

    def _adopt(self, record: Record) -> Buffer:
        now = self._clock()
        buffer = Buffer(record, {lessee: now + s for lessee, s in record.leases.items()})
        self._buffers[record.id] = buffer
        self.accounts.charge(record)
        for lessee in record.leases:
            self._held.setdefault(lessee, set()).add(record.id)
        if record.request:
            self._requests[(record.creator, record.request)] = record.id
        return buffer

    def _drop(self, buffer: Buffer, lessee: str) -> None:
        record = buffer.record
        self._forget(buffer, lessee)
        if record.leases:
            self._save(record)
        else:
            self._offers.forget(record.id)
            self._spares.remove(record.id, record.size)

    def _forget(self, buffer: Buffer, lessee: str) -> None:
        """Take a lease out of the books, and with the last one the buffer."""
        record = buffer.record
        del buffer.deadlines[lessee], record.leases[lessee]
        self._held[lessee].discard(record.id)
        if not self._held[lessee]:
            del self._held[lessee]
        if not record.leases:
            del self._buffers[record.id]
            self.accounts.charge(record, -1)
            self._requests.pop((record.creator, record.request), None)
