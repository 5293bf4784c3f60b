"""Owns the blocks: which are held, in which tier, and what goes when room is needed.

Bytes in memory are buffers of the memory server on which the store holds a lease; those on disk
are files. What moves bytes is done one at a time, in a task that its caller's end does not stop.
Lookups that find all in memory wait for nothing. Knows neither gRPC nor engines.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from llmos.lib.call import background
from llmos.lib.errors import (
    FailedPrecondition,
    InvalidArgument,
    LLMOSError,
    ResourceExhausted,
)
from llmos.servers.memory.buffers import BufferStore
from llmos.servers.memory.prefix.catalog import Catalog
from llmos.servers.memory.prefix.disk import Disk
from llmos.servers.memory.prefix.run import Run, Shelf, Space, check_keys, check_space
from llmos.servers.memory.prefix.worth import Worth
from llmos.servers.memory.record import MAX_LEASE_S, PLAIN, Buffer

LESSEE = PLAIN + "prefixes"  # plain clients are called by an address or a hash, never by this
TICK_S = 60.0  # between two `tick`s: well under the longest lease
_CLOSE_S = 2.0  # for writing to disk when the server stops
_LABEL = "blocks of a prefix"

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """So many `blocks` in a run's buffer, from block `first` of it on."""

    run: Run
    first: int
    blocks: int


class PrefixStore:
    """All blocks of one memory server; recovers what an earlier one left."""

    def __init__(
        self,
        buffers: BufferStore,
        directory: Path,
        *,
        ram_budget: int,
        disk_budget: int = 0,
        disk_spare: int = 0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Recover from `directory`. Budgets are bytes; ram_budget 0 = off, and all is forgotten.

        Nothing is written to a file system with less than `disk_spare` bytes free.
        Raises FailedPrecondition READ_ONLY.
        """
        self.ram_budget, self.disk_budget = ram_budget, disk_budget if ram_budget else 0
        self.ram_bytes = self.disk_bytes = self.evictions = 0
        self._buffers, self._clock, self._wall = buffers, clock, wall
        self._catalog = Catalog(directory / "prefixes.db")
        self._disk = Disk(directory / "prefixes", disk_spare)
        self._worth = Worth()
        self._shelves: dict[Space, Shelf] = {}
        self._runs: set[Run] = set()
        self._moving = asyncio.Lock()
        self._recover()
        buffers.make_room = self.shrink

    async def find(self, space: Space, keys: list[bytes], held: int = 0) -> list[Part]:
        """Return the parts that have `keys` after the first `held`, up to one that nobody has.

        Raises InvalidArgument BAD_SPACE, BAD_KEYS.
        """
        check_space(space)
        check_keys(keys, held)
        shelf = self._shelves.get(space)
        if shelf is None:
            return []
        chain = list(_leading(shelf, keys))
        shelf.used = self._clock()
        self._use(shelf, dict.fromkeys(run for run, _ in chain))
        wanted = chain[held:]
        if any(not run.buffer for run, _ in wanted):
            runs = list(dict.fromkeys(run for run, _ in wanted))
            await asyncio.shield(background(self._page_in(runs)))
        parts: list[Part] = []
        for run, at in wanted:
            if not run.buffer:
                break
            last = parts[-1] if parts else None
            if last is not None and last.run is run and last.first + last.blocks == at:
                parts[-1] = last._replace(blocks=last.blocks + 1)
            else:
                parts.append(Part(run, at, 1))
        found = sum(part.blocks for part in parts)
        shelf.hits += found
        shelf.misses += len(keys) - held - found
        return parts

    async def put(
        self,
        space: Space,
        keys: list[bytes],
        buffer: tuple[str, bytes],
        block_bytes: int,
        depth: int = 0,
        cost_s: float = 0.0,
    ) -> int:
        """Take over blocks in a sealed buffer, (id, token); return how many are new.

        Raises InvalidArgument BAD_SPACE, BAD_KEYS, BAD_BLOCKS; NotFound NO_SUCH_BUFFER;
        FailedPrecondition NOT_SEALED; ResourceExhausted NO_ROOM.
        """
        check_space(space)
        check_keys(keys)
        if len(set(keys)) < len(keys):
            raise InvalidArgument("BAD_KEYS", "A key comes twice; each block has its own.")
        if not cost_s >= 0:
            cost_s = 0.0
        run = Run(0, space, keys, block_bytes, depth, cost_s, 0, buffer[0], buffer[1])
        return await asyncio.shield(background(self._take(run)))

    async def drop(self, model: str = "", tenant: str = "") -> tuple[int, int]:
        """Forget what matches; empty matches all. Return how many blocks and bytes went."""
        blocks = size = 0
        for run in list(self._runs):
            if model in ("", run.space.model) and tenant in ("", run.space.tenant):
                blocks += len(run.keys)
                size += run.size * (bool(run.buffer) + run.on_disk)
                self._forget(run)
        for shelf in [s for s in self._shelves.values() if not s.blocks]:
            del self._shelves[shelf.space]
        return blocks, size

    def shelves(self) -> list[Shelf]:
        """Return what is known of each space, by name."""
        return [self._shelves[space] for space in sorted(self._shelves)]

    def idle_s(self, shelf: Shelf) -> float:
        """Return seconds since blocks of a space were put or looked for."""
        return max(0.0, self._clock() - shelf.used)

    def shrink(self, size: int) -> None:
        """Let go of `size` bytes of memory at once, without time to write them to disk."""
        goal = max(0, self.ram_bytes - size)
        while self.ram_bytes > goal and (run := self._victim()) is not None:
            self._evicted(run)
            self._unbuffer(run)

    async def tick(self) -> None:
        """Keep the leases, and the budget; to be called every TICK_S."""
        self._buffers.renew(LESSEE, [])
        async with self._moving:
            await self._make_room(0, ())

    async def close(self) -> None:
        """Stop in good order: the best goes to disk as far as that is quick, and memory is free.

        (After a kill what is in memory stays there, for the next server.)
        """
        await self._moving.acquire()  # for ever: nothing else moves any more
        until = time.monotonic() + _CLOSE_S
        for run in sorted((r for r in self._runs if r.buffer), key=lambda r: r.worth, reverse=True):
            if run.buffer and self.disk_budget and not run.on_disk and time.monotonic() < until:
                await self._to_disk(run)
            if run.buffer:
                self._unbuffer(run)
        self._catalog.close()

    async def _take(self, run: Run) -> int:
        async with self._moving:
            shelf = self._shelves.get(run.space) or Shelf(run.space)
            new = [key for key in run.keys if key not in shelf.blocks]
            if not new:
                self._use(shelf, dict.fromkeys(shelf.blocks[key][0] for key in run.keys))
                return 0
            buffer = self._buffers.open(LESSEE, run.buffer, run.token, MAX_LEASE_S)
            try:
                run.size = buffer.record.size
                _check_buffer(run, buffer, shelf)
                if not await self._make_room(run.size, ()):
                    raise ResourceExhausted("NO_ROOM", self._no_room(run.size))
            except BaseException:
                if not any(other.buffer == run.buffer for other in self._runs):
                    self._buffers.free(LESSEE, run.buffer, run.token)
                raise
            run.used = self._wall()
            self._catalog.add(run)
            self._adopt(run)
            return len(new)

    def _no_room(self, size: int) -> str:
        if not self.ram_budget:
            return "The store of prefixes is off; set prefix_ram_fraction of the memory server."
        return (
            f"No room for {size:,} bytes of blocks in a budget of {self.ram_budget:,}; put fewer "
            "at a time or raise prefix_ram_fraction of the memory server."
        )

    async def _page_in(self, runs: list[Run]) -> None:
        """Bring runs into memory in their order, as far as there is room for them together."""
        keep: set[Run] = set()
        async with self._moving:
            for run in runs:
                if run.gone or not (run.buffer or await self._load(run, keep)):
                    return
                keep.add(run)

    async def _load(self, run: Run, keep: Collection[Run]) -> bool:
        if not await self._make_room(run.size, keep):
            return False
        try:
            buffer = await self._buffers.create(LESSEE, run.size, _LABEL, MAX_LEASE_S)
        except LLMOSError as exc:
            log.info("blocks not paged in", extra={"cause": exc.message})
            return False
        id, token = buffer.record.id, bytes.fromhex(buffer.record.token)
        path = self._buffers.path(buffer)
        whole = await asyncio.to_thread(self._disk.read, run.id, path, run.checksum)
        if run.gone or not whole:
            self._buffers.free(LESSEE, id, token)
            if not run.gone:
                log.warning("blocks on disk are damaged", extra={"run": run.id})
                self._forget(run)
            return False
        self._buffers.seal(LESSEE, id, token)
        run.buffer, run.token, run.used = id, token, self._wall()
        self.ram_bytes += run.size
        self._catalog.save(run)
        return True

    async def _make_room(self, size: int, keep: Collection[Run]) -> bool:
        """Evict runs from memory, but none of `keep`; False when that does not make the room."""
        if size > self.ram_budget:
            return False
        while self.ram_bytes + size > self.ram_budget:
            run = self._victim(keep)
            if run is None:
                return False
            self._evicted(run)
            if self.disk_budget and not run.on_disk:
                await self._to_disk(run)
            if run.buffer:  # `shrink` may have let go of it
                self._unbuffer(run)
        return True

    def _victim(self, keep: Collection[Run] = ()) -> Run | None:
        return self._worth.victim(run for run in self._runs if run.buffer and run not in keep)

    def _evicted(self, run: Run) -> None:
        self._worth.evicted(run)
        self.evictions += 1

    async def _to_disk(self, run: Run) -> None:
        """Copy a run to disk, when it is worth more than what is there or there is room."""
        while self.disk_bytes + run.size > self.disk_budget or self._disk.room() < run.size:
            other = self._worth.victim(run for run in self._runs if run.on_disk)
            if other is None or other.worth > run.worth:
                return
            self._undisk(other)
        path = self._buffers.path(self._buffers.open(LESSEE, run.buffer, run.token, MAX_LEASE_S))
        self.disk_bytes += run.size
        try:
            run.checksum = await asyncio.to_thread(self._disk.write, run.id, path)
        except OSError as exc:
            self.disk_bytes -= run.size
            log.warning("blocks not written to disk", extra={"cause": str(exc)})
            return
        if run.gone:
            self.disk_bytes -= run.size
            self._disk.remove(run.id)
            return
        run.on_disk = True

    def _unbuffer(self, run: Run) -> None:
        """Let go of a run's bytes in memory, and of the run if they are nowhere else."""
        if not run.on_disk:
            self._forget(run)
            return
        self._free(run)
        self._catalog.save(run)

    def _undisk(self, run: Run) -> None:
        """Let go of a run's file, and of the run if its bytes are nowhere else."""
        if not run.buffer:
            self._forget(run)
            return
        self._remove_file(run)
        self._catalog.save(run)

    def _forget(self, run: Run) -> None:
        run.gone = True
        self._catalog.remove(run)
        self._runs.discard(run)
        if run.buffer:
            self._free(run)
        if run.on_disk:
            self._remove_file(run)
        blocks = self._shelves[run.space].blocks
        for key in run.keys:
            if key in blocks and blocks[key][0] is run:
                del blocks[key]

    def _free(self, run: Run) -> None:
        self._buffers.free(LESSEE, run.buffer, run.token)
        self.ram_bytes -= run.size
        run.buffer, run.token = "", b""

    def _remove_file(self, run: Run) -> None:
        self._disk.remove(run.id)
        self.disk_bytes -= run.size
        run.on_disk = False

    def _adopt(self, run: Run) -> None:
        shelf = self._shelves.setdefault(run.space, Shelf(run.space))
        shelf.block_bytes, shelf.used = run.block_bytes, self._clock()
        if run.cost_s:
            shelf.seconds += run.cost_s
            shelf.bytes += run.block_bytes * len(run.keys)
        for i, key in enumerate(run.keys):
            shelf.blocks.setdefault(key, (run, i))
        self._runs.add(run)
        self.ram_bytes += run.size if run.buffer else 0
        self.disk_bytes += run.size if run.on_disk else 0
        self._use(shelf, (run,))

    def _use(self, shelf: Shelf, runs: Collection[Run]) -> None:
        now = self._wall()
        for run in runs:
            run.used = now
        self._worth.use(shelf, runs, self._shelves.values())

    def _recover(self) -> None:
        held = {b.record.id: b.record for b in self._buffers.buffers() if LESSEE in b.deadlines}
        known: set[int] = set()
        for run in list(self._catalog.runs()):
            record = held.get(run.buffer)
            if record is None or record.size != run.size:
                run.buffer, run.token = "", b""
            else:
                del held[run.buffer]
            run.on_disk = run.on_disk and self._disk.has(run.id, run.size)
            if run.buffer or run.on_disk:
                used = run.used
                self._adopt(run)
                run.used = used
                known.add(run.id)
            else:
                self._catalog.remove(run)
        for record in held.values():
            self._buffers.free(LESSEE, record.id, bytes.fromhex(record.token))
        self._disk.sweep(known)
        if not self.ram_budget:
            for run in list(self._runs):
                self._forget(run)
        elif known:
            log.info("blocks recovered", extra={"runs": len(known), "bytes": self.ram_bytes})


def _leading(shelf: Shelf, keys: list[bytes]) -> Iterator[tuple[Run, int]]:
    for key in keys:
        place = shelf.blocks.get(key)
        if place is None:
            return
        yield place


def _check_buffer(run: Run, buffer: Buffer, shelf: Shelf) -> None:
    """Raise FailedPrecondition NOT_SEALED, InvalidArgument BAD_BLOCKS."""
    total = run.block_bytes * len(run.keys)
    if not total <= run.size <= 2 * total:
        raise InvalidArgument(
            "BAD_BLOCKS",
            f"{len(run.keys):,} blocks of {run.block_bytes:,} bytes do not go into a buffer of "
            f"{run.size:,}, or leave half of it empty.",
        )
    if shelf.block_bytes not in (0, run.block_bytes):
        raise InvalidArgument(
            "BAD_BLOCKS",
            f"Blocks of this space have {shelf.block_bytes:,} bytes, not {run.block_bytes:,}; "
            "another layout has another name.",
        )
    if not buffer.record.sealed:
        raise FailedPrecondition("NOT_SEALED", "Seal the buffer before its blocks are put.")
