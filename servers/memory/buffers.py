"""Owns the buffers and their leases. Knows neither gRPC nor the kernel.

A *lessee* is who holds a lease: `<instance>` or `<instance>/<client>` for a process that the
kernel vouches for, `grpc:...` for anybody else. A buffer lives as long as it has a lease.
Everything but `create` of a large buffer runs to its end without yielding, so one event loop needs
no locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator

from llmos.lib.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
)
from llmos.servers.memory.record import Buffer, Record, Rights, lease_time, process_of
from llmos.servers.memory.shm import Directory, charge
from llmos.servers.memory.spares import Spares

PIECE = 256 << 10
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
        self._clock = clock
        self._progress = progress
        self.budget = budget or directory.total() // 2
        self.max_size = min(max_size or self.budget, self.budget)
        self._buffers: dict[str, Buffer] = {}
        self._held: dict[str, set[str]] = {}  # lessee -> ids
        self._requests: dict[tuple[str, str], str] = {}
        self._creating: dict[tuple[str, str], asyncio.Task[Buffer]] = {}
        self.quota = min(quota or self.budget, self.budget)
        self._used = 0  # with what is being allocated
        # Called with so many bytes when the budget is spent: somebody may have some to give up.
        self.make_room: Callable[[int], None] = lambda over: None
        self._used_by: Counter[str] = Counter()  # the same, by tenant
        for record in directory.load():
            self._adopt(record)
        if self._buffers:
            log.info("recovered", extra={"buffers": len(self._buffers), "bytes": self._used})

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
        self._charge(record, charge(size))
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
        self._charge(record, -charge(record.size))  # `_adopt` counts it for good
        return self._adopt(record)

    @contextlib.contextmanager
    def _refund(self, record: Record) -> Iterator[None]:
        try:
            yield
        except BaseException:  # also when cancelled: what was not made is not charged
            self._charge(record, -charge(record.size))
            raise

    def _charge(self, record: Record, size: int) -> None:
        self._used += size
        self._used_by[record.tenant] += size
        if not self._used_by[record.tenant]:
            del self._used_by[record.tenant]

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

    def free(self, lessee: str, id: str, token: bytes) -> None:
        """Drop the lessee's lease, if there is one."""
        buffer = self._buffers.get(id)
        if buffer is not None and lessee in buffer.deadlines and buffer.record.rights(token):
            self._drop(buffer, lessee)

    def read(self, id: str, token: bytes, offset: int = 0, length: int = 0) -> Iterator[bytes]:
        """Yield its bytes in pieces of at most PIECE; length 0 = to the end.

        The first step opens it; it may be freed after that.
        Raises NotFound NO_SUCH_BUFFER, OutOfRange BAD_RANGE; DataLoss TRUNCATED when a writer
        has cut the file.
        """
        size = self._find(id, token).record.size
        if offset + length > size:
            raise OutOfRange(
                "BAD_RANGE", f"Buffer {id} has {size:,} bytes; {offset:,} + {length:,} is past it."
            )
        end = offset + length if length else size
        with self._dir.file(id).open("rb", buffering=0) as file:
            while offset < end:
                # Memory, not a disk: reading here is quicker than handing it to a thread.
                data = os.pread(file.fileno(), min(PIECE, end - offset), offset)
                if not data:
                    raise DataLoss("TRUNCATED", f"Buffer {id} was cut by a process writing to it.")
                offset += len(data)
                yield data

    def buffers(self) -> list[Buffer]:
        """Return all buffers, oldest first."""
        return list(self._buffers.values())

    def path(self, buffer: Buffer) -> str:
        """Return the file to map."""
        return str(self._dir.file(buffer.record.id))

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
        if not 0 < size <= self.max_size:
            raise InvalidArgument(
                "BAD_SIZE",
                f"A buffer must have 1 to {self.max_size:,} bytes, not {size:,}; the limit is "
                "max_buffer_bytes of the memory server.",
            )
        if (over := self._used + charge(size) - self.budget) > 0:
            self.make_room(over)
        if self._used + charge(size) > self.budget:
            raise ResourceExhausted(
                "NO_ROOM",
                f"No room for {size:,} bytes: buffers use {self._used:,} of their budget of "
                f"{self.budget:,}; free some or raise buffer_bytes of the memory server.",
            )
        if self._used_by[tenant] + charge(size) > self.quota:
            raise ResourceExhausted(
                "QUOTA",
                f"No room for {size:,} bytes: buffers of tenant {tenant!r} use "
                f"{self._used_by[tenant]:,} of the {self.quota:,} bytes that a tenant may have; "
                "free some or raise tenant_buffer_bytes of the memory server.",
            )

    def _space(self, size: int) -> None:
        if self._dir.room() < charge(size):
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
        leases, time_s = buffer.record.leases, lease_time(lease_s)
        if leases.get(lessee) != time_s:
            leases[lessee] = time_s
            self._save(buffer.record)
        buffer.deadlines[lessee] = self._clock() + time_s
        self._held.setdefault(lessee, set()).add(buffer.record.id)

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
        self._charge(record, charge(record.size))
        for lessee in record.leases:
            self._held.setdefault(lessee, set()).add(record.id)
        if record.request:
            self._requests[(record.creator, record.request)] = record.id
        return buffer

    def _drop(self, buffer: Buffer, lessee: str) -> None:
        record = buffer.record
        del buffer.deadlines[lessee], record.leases[lessee]
        self._held[lessee].discard(record.id)
        if not self._held[lessee]:
            del self._held[lessee]
        if record.leases:
            self._save(record)
            return
        del self._buffers[record.id]
        self._charge(record, -charge(record.size))
        self._requests.pop((record.creator, record.request), None)
        self._spares.remove(record.id, record.size)
