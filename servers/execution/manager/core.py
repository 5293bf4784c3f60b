"""The manager: owns the table of workers, and what plain model names mean."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from llmos.lib.call import background
from llmos.lib.errors import Aborted, FailedPrecondition, LLMOSError, NotFound
from llmos.lib.publish import Tell, nobody
from llmos.servers.execution.config import ExecutionConfig
from llmos.servers.execution.manager.accounts import Accounts
from llmos.servers.execution.manager.crashes import SOON_S
from llmos.servers.execution.manager.leases import Leases
from llmos.servers.execution.manager.listing import Row, rows
from llmos.servers.execution.manager.model import NOBODY, Asker, Plan, Ref, State, Version, Worker
from llmos.servers.execution.manager.options import Options, Wishes
from llmos.servers.execution.manager.reach import comes_back, drain
from llmos.servers.execution.manager.seams import Catalog, Forge, Grants, Router
from llmos.servers.execution.manager.starting import Starter

_STOP_S = 15.0  # a worker lets running calls end for 10 s after SIGTERM

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
        self._workers: dict[str, Worker] = {}
        self._leases = Leases()
        self._accounts = Accounts(self._workers, grants, router, self._leases)
        self._starter = Starter(
            config,
            catalog,
            grants,
            router,
            forge,
            self._evict,
            self._accounts.report,
            progress,
            lambda: [w.pid for w in self._workers.values() if w.pid],
        )
        self._wishes = Wishes()
        self._loads: dict[str, asyncio.Task[Worker]] = {}
        self._endings: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, str] = {}
        self._naming: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._open = asyncio.Event()
        self._reporter: asyncio.Task[None] | None = None

    def open(self, adopted: Sequence[Worker]) -> None:
        """Start answering, with the workers that an earlier manager has left."""
        for worker in adopted:
            self._workers[worker.ref] = worker
            self._wishes.adopt(worker.ref, worker.options)
            self._watch(worker)
        self._open.set()
        self._reporter = background(self._accounts.keep(self._starter.crashes))

    async def close(self) -> None:
        """Give up what is half done. Ready workers go on; the next manager adopts them."""
        tasks: list[asyncio.Task[Any]] = [*self._loads.values(), *self._endings.values()]
        if self._reporter is not None:
            tasks.append(self._reporter)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in self._workers.values():
            if worker.process is not None:
                worker.process.close()

    # What callers ask for.

    async def load(
        self,
        ref: str,
        pin: bool | None = None,
        asker: Asker = NOBODY,
        options: Options | None = None,
    ) -> Worker:
        """Return a ready worker for a reference. pin: whether others may evict it; None = as it is.

        options: how it is to run from now on; None = as it does, or by the configuration.

        A plain name means its newest version from now on, an alias what storage says now. Raises
        InvalidArgument BAD_NAME, and what storage, memory and engines raise.
        """
        key = Ref.parse(ref).moves
        await self._open.wait()
        version = await self._catalog.resolve(ref)
        if options is not None:
            loaded = version.ref in self._workers
            cores = len(os.sched_getaffinity(0))
            self._wishes.give(version.ref, options, loaded=loaded, cores=cores)
        worker = await self._ensure(version, key, bool(pin), asker)
        if key:
            await self._take_key(worker, key)
        if pin is not None and pin != worker.pinned:
            await self._configure(worker, worker.keys[1:], pinned=pin)
            await self._grants.acquire(worker, worker.granted_bytes)
        return worker

    async def plan(self, ref: str) -> Plan:
        """Return what loading would need and what would have to go. Raises as `load`."""
        await self._open.wait()
        version = await self._catalog.resolve(ref)
        worker = self._workers.get(version.ref)
        if worker is not None and worker.alive():
            return Plan(version.ref, worker.device, 0, ())
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
        holder = next((w for w in self._workers.values() if key in w.keys and w.alive()), None)
        if holder is not None and holder.state is State.READY:
            if await comes_back(self._router, holder, key):
                return
            if holder.process is not None and holder.state is State.READY and holder.alive():
                log.error("killing a worker that lost the kernel", extra={"worker": holder.ref})
                await holder.process.kill()
                self._bury(holder)
        # Again when somebody unloads it at once: the answer must be true when it is sent.
        while (await self.load(key, asker=asker)).state is not State.READY:
            await asyncio.sleep(0)

    async def moved(self, key: str) -> None:
        """The alias `key` was moved or removed: let its calls go where it points now.

        Its old version answers until the new one is ready, and goes on when that fails to load.
        """
        if not any(key in worker.keys for worker in self._workers.values()):
            return  # nobody called it by this name: its next call finds out
        try:
            await self.load(key)
        except NotFound:
            await self._drop_key(key)
        except LLMOSError as exc:
            log.warning("an alias stays where it was", extra={"alias": key, "cause": exc.message})

    def aliases(self) -> list[str]:
        """Return the aliases that workers answer to, `name@alias`."""
        return [k for w in self._workers.values() for k in w.keys if Ref.parse(k).alias]

    async def unload(self, ref: str, *, force: bool = False) -> bool:
        """End a model's worker after its running calls; False when it was not loaded.

        Raises FailedPrecondition HELD when clients hold it, unless `force`.

        A plain name means the version that has the name now, else the newest that is loaded. An
        alias means the version that was called by it.
        """
        wanted = Ref.parse(ref)
        await self._open.wait()
        candidates = [
            w
            for w in self._workers.values()
            if w.name == wanted.name
            and wanted.version in (0, w.version)
            and (not wanted.alias or ref in w.keys)
        ]
        if not candidates:
            return False
        worker = max(candidates, key=lambda w: (wanted.name in w.keys, w.version))
        if (loading := self._loads.get(worker.ref)) is not None:
            await asyncio.wait({loading})
        if self._workers.get(worker.ref) is not worker:
            return False
        if (holders := self._leases.count(worker.ref)) and not force:
            raise FailedPrecondition(
                "HELD",
                f"{worker.ref} is held by {holders} client(s); wait until they are done, or force.",
            )
        self._leases.revoke(worker.ref)
        self._wishes.forget(worker.ref)
        await asyncio.shield(self._end(worker))
        return True

    async def rows(self) -> list[Row]:
        """Return all versions in storage and all workers, by name and version."""
        await self._open.wait()
        versions = await self._catalog.versions()
        return rows(versions, [*self._workers.values()], self._why_failed)

    def _why_failed(self, ref: str) -> str:
        return self._starter.crashes.reason(ref) or self._failures.get(ref, "")

    # Loading.

    async def _ensure(self, version: Version, key: str, pin: bool, asker: Asker) -> Worker:
        ref = version.ref
        while True:
            if (ending := self._endings.get(ref)) is not None:
                await asyncio.wait({ending})
                continue
            worker = self._workers.get(ref)
            if worker is not None and worker.state is State.READY:
                if worker.alive():
                    return worker
                self._bury(worker)  # the news of its death is still on the way
                continue
            if (task := self._loads.get(ref)) is None:
                # In the background: it is shared by all who wait, and outlives their calls.
                task = self._loads[ref] = background(self._load(version, key, pin, asker))
                task.add_done_callback(lambda _: self._loads.pop(ref))
            return await asyncio.shield(task)

    async def _load(self, version: Version, key: str, pin: bool, asker: Asker) -> Worker:
        worker = Worker(version.name, version.version, task=version.task, pinned=pin)
        worker.rank, worker.tenant = asker
        worker.options = self._wishes.of(worker.ref)
        self._workers[worker.ref] = worker
        keys = [key] if key and self._holder(key) is None else []
        began = time.monotonic()
        try:
            await self._starter.start(worker, version, keys)
        except LLMOSError as exc:
            self._failures[worker.ref] = exc.message
            log.warning("cannot load", extra={"worker": worker.ref, "cause": exc.message})
            self._tell("model.failed", model=worker.ref, cause=exc.message)
            raise
        finally:
            if worker.state is not State.READY:
                del self._workers[worker.ref]
        self._failures.pop(worker.ref, None)
        self._watch(worker)
        seconds = round(time.monotonic() - began, 3)
        log.info("loaded", extra={"worker": worker.ref, "pid": worker.pid, "seconds": seconds})
        self._tell(
            "model.loaded",
            model=worker.ref,
            engine=worker.engine,
            device=worker.device,
            granted_bytes=worker.granted_bytes,
            pid=worker.pid,
            seconds=seconds,
        )
        return worker

    # Names.

    def _holder(self, key: str) -> Worker | None:
        """Return the worker that a plain name or an alias means."""
        workers = self._workers.values()
        return next((w for w in workers if key in w.keys and w.state is State.READY), None)

    async def _take_key(self, worker: Worker, key: str) -> None:
        """Let a plain name or an alias mean `worker`.

        The one that it meant before ends, unless it has another name or alias.
        """
        async with self._naming[worker.name]:
            if key not in worker.keys:
                await self._configure(worker, [*worker.keys[1:], key], worker.pinned)
            await self._leave(key, [w for w in self._workers.values() if w is not worker])

    async def _drop_key(self, key: str) -> None:
        """Let an alias mean no worker."""
        async with self._naming[Ref.parse(key).name]:
            await self._leave(key, [*self._workers.values()])

    async def _leave(self, key: str, workers: Sequence[Worker]) -> None:
        for worker in workers:
            if key in worker.keys and worker.state is State.READY:
                rest = [k for k in worker.keys[1:] if k != key]
                await self._configure(worker, rest, worker.pinned)
                if not rest and not self._leases.count(worker.ref):
                    self._end(worker)

    async def _configure(self, worker: Worker, keys: Sequence[str], pinned: bool) -> None:
        await self._router.configure(worker, keys, pinned)
        worker.keys = [worker.ref, *keys]
        worker.pinned = pinned

    # Ending.

    def _watch(self, worker: Worker) -> None:
        if worker.process is not None:
            worker.process.exited.add_done_callback(lambda _: self._bury(worker))

    def hung(self, ref: str, pid: int) -> None:
        """Kill a worker that the kernel finds hung; the next call for its model loads it again."""
        worker = self._workers.get(ref)
        if worker is None or worker.process is None or worker.pid != pid:
            log.warning("a worker that is not ours hangs", extra={"worker": ref, "pid": pid})
            return
        worker.hung = f"hung: no work done in {self._config.worker_stall_s:g} s, with calls to do"
        worker.process.signal(signal.SIGKILL)

    def _bury(self, worker: Worker) -> None:
        """Forget a worker that died on its own."""
        if self._workers.get(worker.ref) is worker and worker.state is State.READY:
            del self._workers[worker.ref]
            self._finish(worker, self._mourn(worker))

    async def _mourn(self, worker: Worker) -> None:
        status = await self._forge.exit_status(worker.pid)
        cause = worker.hung or self._starter.cause(worker.ref, status)
        lived = time.monotonic() - worker.ready_at
        log.error("a worker died", extra={"worker": worker.ref, "pid": worker.pid, "cause": cause})
        self._tell("model.failed", model=worker.ref, cause=cause)
        if worker.hung or lived < SOON_S:
            self._starter.crashes.add(worker.ref, cause)
        await self._accounts.release(worker.grant)

    def _end(self, worker: Worker) -> asyncio.Task[None]:
        """Unload in the background; return the task."""
        if worker.state is State.UNLOADING:
            return self._endings[worker.ref]
        worker.state = State.UNLOADING
        return self._finish(worker, self._unload(worker))

    async def _unload(self, worker: Worker) -> None:
        await drain(self._router, worker, self._config.drain_s, self._progress)
        if worker.process is not None:
            await worker.process.end(_STOP_S)
        del self._workers[worker.ref]
        await self._accounts.release(worker.grant)
        log.info("unloaded", extra={"worker": worker.ref})
        self._tell("model.unloaded", model=worker.ref)

    def _finish(self, worker: Worker, work: Awaitable[None]) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                await work
            finally:
                self._endings.pop(worker.ref, None)

        task = self._endings[worker.ref] = background(run())
        return task

    async def _evict(self, grant: str) -> None:
        worker = next((w for w in self._workers.values() if w.grant == grant), None)
        if worker is None:
            await self._accounts.release(grant)
        elif worker.state is State.LOADING or self._leases.count(worker.ref):
            await asyncio.sleep(0.1)  # it will be reported so; ask again
        else:
            await asyncio.shield(self._end(worker))
