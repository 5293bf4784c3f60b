"""The manager: owns the table of workers, and what plain model names mean."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from llmos.lib import log as logs
from llmos.lib.call import background
from llmos.lib.errors import Aborted, FailedPrecondition, LLMOSError, NotFound
from llmos.lib.publish import Tell, nobody
from llmos.servers.execution.config import ExecutionConfig
from llmos.servers.execution.manager.accounts import Accounts
from llmos.servers.execution.manager.crashes import CrashLog, oom_kills
from llmos.servers.execution.manager.endings import Endings
from llmos.servers.execution.manager.instances import Instances
from llmos.servers.execution.manager.leases import Leases
from llmos.servers.execution.manager.listing import Row, rows
from llmos.servers.execution.manager.loading import Loads
from llmos.servers.execution.manager.logs import keep_level
from llmos.servers.execution.manager.model import NOBODY, Asker, Plan, Ref, State, Version, Worker
from llmos.servers.execution.manager.naming import Names
from llmos.servers.execution.manager.options import Options, Wishes
from llmos.servers.execution.manager.reach import comes_back
from llmos.servers.execution.manager.seams import Catalog, Forge, Grants, Router
from llmos.servers.execution.manager.starting import Starter
from llmos.servers.execution.manager.table import Table

log = logging.getLogger(__name__)


class Manager:
    """Loads, unloads, adopts and lists. All methods are for the event loop's thread."""

    def __init__(
        self,
        config: ExecutionConfig,
        catalog: Catalog,
        grants: Grants,
        router: Router,
        forge: Forge,
        *,
        progress: Callable[[], None] = lambda: None,
        tell: Tell = nobody,
    ) -> None:
        """Prepare; `open` must be called before anything is answered.

        progress: called while what takes long goes on. tell: told of loads, ends and failures.
        """
        self._config = config
        self._catalog = catalog
        self._grants = grants
        self._router = router
        self._forge = forge
        self._progress = progress
        self._tell = tell
        self._table = table = Table()
        self._leases = leases = Leases()
        self._crashes = crashes = CrashLog(time.monotonic, oom_kills)
        self._accounts = accounts = Accounts(table, grants, router, leases)
        self._endings = endings = Endings(
            config,
            table,
            router,
            forge,
            leases,
            accounts,
            crashes,
            tell,
            progress,
            lambda ref: self._instances.refill(ref),
        )
        self._names = Names(table, router, leases, endings.end)
        self._starter = Starter(
            config,
            catalog,
            grants,
            router,
            forge,
            crashes,
            endings.evict,
            accounts.report,
            progress,
            table,
        )
        self._wishes = wishes = Wishes()
        self._loads = loads = Loads(table, self._starter, endings, wishes, tell)
        self._instances = Instances(table, catalog, wishes, loads, self._names, endings)
        self._turns = itertools.count()
        self._open = asyncio.Event()
        self._reporter: asyncio.Task[None] | None = None

    def open(self, adopted: Sequence[Worker], held: Mapping[str, int] | None = None) -> None:
        """Start answering, with the workers that an earlier manager has left.

        held: how many clients held each version then; they come back by themselves.
        """
        self._leases.expect(held or {})
        for worker in adopted:
            self._table.add(worker)
            self._wishes.adopt(worker.ref, worker.options)
            self._endings.watch(worker)
        for worker in adopted:
            self._instances.refill(worker.ref)
        self._open.set()
        self._reporter = background(self._accounts.keep(self._crashes))

    async def close(self) -> None:
        """Give up what is half done. Ready workers go on; the next manager adopts them."""
        tasks: list[asyncio.Task[Any]] = [*self._instances.filling.values()]
        tasks += [*self._loads.running.values(), *self._endings.running.values()]
        if self._reporter is not None:
            tasks.append(self._reporter)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in self._table:
            if worker.process is not None:
                worker.process.close()

    # What callers ask for.

    async def load(
        self,
        ref: str,
        pin: bool | None = None,
        asker: Asker = NOBODY,
        options: Options | None = None,
        *,
        whole: bool = False,
    ) -> Worker:
        """Return a ready worker for a reference. pin: whether others may evict it; None = as it is.

        options: how it is to run from now on; None = as it does, or by the configuration. whole:
        wait until the version has all its workers, or leave those out that were to be new.

        A plain name means its newest version from now on, an alias what storage says now. Raises
        InvalidArgument BAD_NAME, and what storage, memory and engines raise.
        """
        key = Ref.parse(ref).moves
        await self._open.wait()
        version = await self._catalog.resolve(ref)
        before, wish = self._table.of(version.ref), self._wishes.of(version.ref)
        if options is not None:
            cores = len(os.sched_getaffinity(0))
            self._wishes.give(version.ref, options, loaded=bool(before), cores=cores)
        try:
            worker = await self._some(version, key, bool(pin), asker, whole)
        except LLMOSError:
            if options is not None:
                self._wishes.set(version.ref, wish)
            for new in self._table.ready(version.ref):
                if new not in before:
                    self._endings.end(new)
            raise
        if options is not None:
            await self._tell_options(version.ref)
        if key:
            await self._names.take(version.ref, key)
        if pin is not None:
            for one in self._table.ready(version.ref):
                if pin != one.pinned:
                    await self._names.configure(one, one.keys[1:], pinned=pin)
                    await self._grants.acquire(one, one.granted_bytes)
        return worker

    async def _some(
        self, version: Version, key: str, pin: bool, asker: Asker, whole: bool
    ) -> Worker:
        """Return one of a version's workers, ready; see `load`."""
        if whole:
            await self._instances.wanted(version)  # what cannot be is refused before it is begun
        ready = self._table.ready(version.ref)
        worker = ready[0] if ready else await self._loads.one(version, 0, key, pin, asker)
        holder = self._table.holder(key)
        if whole or (holder is not None and holder.ref != version.ref):
            # The name moves only when the new version is as strong as it is to be.
            await self._instances.complete(version)
        elif not ready:
            self._instances.recall(version.ref)
            self._instances.refill(version.ref)
        return worker

    async def _tell_options(self, ref: str) -> None:
        """Let a version's workers know them, for the next manager."""
        options = self._wishes.of(ref)
        for worker in self._table.ready(ref):
            if worker.options != options:
                worker.options = options
                await self._names.configure(worker, worker.keys[1:], worker.pinned)

    def next_of(self, worker: Worker) -> Worker:
        """Return one of the workers of its version, in turn; for calls without a kernel."""
        ready = self._table.ready(worker.ref) or [worker]
        return ready[next(self._turns) % len(ready)]

    async def plan(self, ref: str) -> Plan:
        """Return what loading would need and what would have to go. Raises as `load`."""
        await self._open.wait()
        version = await self._catalog.resolve(ref)
        if ready := self._table.ready(version.ref):
            return Plan(version.ref, ready[0].device, 0, ())
        worker = Worker(version.name, version.version, task=version.task)
        needed, evict = await self._starter.plan(worker, version)
        return Plan(version.ref, worker.device, needed, evict)

    async def hold(self, ref: str, asker: Asker = NOBODY) -> AsyncIterator[Worker]:
        """Keep a model loaded while this is iterated; yields its worker whenever it has a new one.

        Raises as `load`; Aborted UNLOADED when it was unloaded by force.
        """
        version = await self._catalog.resolve(ref)
        with self._leases.hold(version.ref) as revoked:
            while not revoked.is_set():
                worker = await self.load(ref, asker=asker)
                if worker.ref != version.ref:
                    worker = await self.load(version.ref, asker=asker)  # the name moved on
                if worker.state is not State.READY or worker.process is None:
                    continue
                yield worker
                gone = asyncio.ensure_future(revoked.wait())
                ends = (gone, asyncio.shield(worker.process.exited))
                try:
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    gone.cancel()
        raise Aborted("UNLOADED", f"{version.ref} was unloaded by force; call again to load it.")

    async def fault(self, key: str, asker: Asker = NOBODY) -> None:
        """Make `key` hot; the kernel has just found that it is not. Raises as `load`."""
        Ref.parse(key)
        await self._open.wait()
        holders = [w for w in self._table if key in w.keys and w.alive() and w.state is State.READY]
        if holders:
            if await comes_back(self._router, holders, key):
                return
            await asyncio.gather(*map(self._endings.lost, holders))
        # Again when somebody unloads it at once: the answer must be true when it is sent.
        while (await self.load(key, asker=asker)).state is not State.READY:
            await asyncio.sleep(0)

    async def moved(self, key: str) -> None:
        """The alias `key` was moved or removed: let its calls go where it points now.

        Its old version answers until the new one is ready, and goes on when that fails to load.
        """
        if not any(key in worker.keys for worker in self._table):
            return  # nobody called it by this name: its next call finds out
        try:
            await self.load(key)
        except NotFound:
            await self._names.drop(key)
        except LLMOSError as exc:
            log.warning("an alias stays where it was", extra={"alias": key, "cause": exc.message})

    def aliases(self) -> list[str]:
        """Return the aliases that workers answer to, `name@alias`."""
        return self._names.aliases()

    def needed(self) -> set[tuple[str, str]]:
        """Return the versions that storage has to keep: those in workers; see VersionHolds."""
        drafts = {(worker.draft, "") for worker in self._table if worker.draft}
        return drafts | {(worker.ref, "") for worker in self._table}

    async def unload(self, ref: str, *, force: bool = False) -> bool:
        """End a model's workers after their running calls; False when it was not loaded.

        Raises FailedPrecondition HELD when clients hold it, unless `force`.

        A plain name means the version that has the name now, else the newest that is loaded. An
        alias means the version that was called by it.
        """
        wanted = Ref.parse(ref)
        await self._open.wait()
        candidates = [
            w
            for w in self._table
            if w.name == wanted.name
            and wanted.version in (0, w.version)
            and (not wanted.alias or ref in w.keys)
        ]
        if not candidates:
            return False
        found = max(candidates, key=lambda w: (wanted.name in w.keys, w.version)).ref
        self._instances.stop(found)
        workers = self._table.of(found)
        if loading := [t for w in workers if (t := self._loads.running.get(w.id))]:
            await asyncio.wait(loading)
        workers = [w for w in workers if w in self._table]
        if not workers:
            return False
        if (holders := self._leases.count(found)) and not force:
            raise FailedPrecondition(
                "HELD",
                f"{found} is held by {holders} client(s); wait until they are done, or force.",
            )
        self._leases.revoke(found)
        self._wishes.forget(found)
        await asyncio.gather(*(asyncio.shield(self._endings.end(w)) for w in workers))
        await self._catalog.settle()
        return True

    async def rows(self) -> list[Row]:
        """Return all versions in storage and all workers, by name and version."""
        await self._open.wait()
        versions = await self._catalog.versions()
        return rows(versions, [*self._table], self._why_failed)

    def _why_failed(self, ref: str) -> str:
        return self._crashes.reason(ref) or self._loads.failures.get(ref, "")

    async def log(self, level: str) -> None:
        """Write other levels of logs from now on, as lib.log reads them: here and in all workers.

        Raises ValueError.
        """
        logs.show(level)
        self._forge.log(level)
        ready = [w for w in self._table if w.state is State.READY]
        await asyncio.gather(*(keep_level(w, self._router) for w in ready))

    def hung(self, name: str, pid: int) -> None:
        """Kill a worker that the kernel finds hung; the next call for its model loads it again."""
        self._endings.hung(name, pid)
