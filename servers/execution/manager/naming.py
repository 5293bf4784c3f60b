"""What plain names and aliases mean: the keys that workers export beside their ref."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from llmos.servers.execution.manager.leases import Leases
from llmos.servers.execution.manager.model import Ref, State, Worker
from llmos.servers.execution.manager.seams import Router
from llmos.servers.execution.manager.table import Table


class Names:
    """Moves names between the workers of a table; one move of a model's names at a time."""

    def __init__(
        self, table: Table, router: Router, leases: Leases, end: Callable[[Worker], object]
    ) -> None:
        """Take what is needed; `end` unloads a worker in the background."""
        self._table = table
        self._router = router
        self._leases = leases
        self._end = end
        self._moving: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def aliases(self) -> list[str]:
        """Return the aliases that workers answer to, `name@alias`."""
        return [k for w in self._table for k in w.keys if Ref.parse(k).alias]

    async def take(self, ref: str, key: str) -> None:
        """Let a plain name or an alias mean a version that is loaded.

        The one that it meant before ends, unless it has another name or alias.
        """
        async with self._moving[Ref.parse(ref).name]:
            for worker in self._table.ready(ref):
                if key not in worker.keys:
                    await self.configure(worker, [*worker.keys[1:], key], worker.pinned)
            await self._leave(key, [w for w in self._table if w.ref != ref])

    async def join(self, worker: Worker) -> bool:
        """Let a new worker answer to all that others of its version do; False: there are none."""
        async with self._moving[worker.name]:
            others = [w for w in self._table.ready(worker.ref) if w is not worker]
            if others and set(others[0].keys) != set(worker.keys):
                await self.configure(worker, others[0].keys[1:], others[0].pinned)
            return bool(others)

    async def drop(self, key: str) -> None:
        """Let an alias mean no worker."""
        async with self._moving[Ref.parse(key).name]:
            await self._leave(key, self._table)

    async def _leave(self, key: str, workers: Iterable[Worker]) -> None:
        for worker in workers:
            if key in worker.keys and worker.state is State.READY:
                rest = [k for k in worker.keys[1:] if k != key]
                await self.configure(worker, rest, worker.pinned)
                if not rest and not self._leases.count(worker.ref):
                    self._end(worker)

    async def configure(self, worker: Worker, keys: Sequence[str], pinned: bool) -> None:
        """Set a worker's keys beside its ref, and whether it may be evicted. Raises Unavailable.

        It is also told its options, as they are now.
        """
        await self._router.configure(worker, keys, pinned)
        worker.keys = [worker.ref, *keys]
        worker.pinned = pinned
