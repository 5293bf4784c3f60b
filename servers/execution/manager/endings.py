"""How workers end: asked to, on their own, hung, or to make room."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable

from llmos.lib.call import background
from llmos.lib.publish import Tell
from llmos.servers.execution.config import ExecutionConfig
from llmos.servers.execution.manager.accounts import Accounts
from llmos.servers.execution.manager.crashes import SOON_S, CrashLog, how_it_ended
from llmos.servers.execution.manager.leases import Leases
from llmos.servers.execution.manager.model import State, Worker
from llmos.servers.execution.manager.reach import drain
from llmos.servers.execution.manager.seams import Forge, Router
from llmos.servers.execution.manager.table import Table

_STOP_S = 15.0  # a worker lets running calls end for 10 s after SIGTERM

log = logging.getLogger(__name__)


class Endings:
    """Takes workers out of a table, and what they held back; owns the tasks that do so."""

    def __init__(
        self,
        config: ExecutionConfig,
        table: Table,
        router: Router,
        forge: Forge,
        leases: Leases,
        accounts: Accounts,
        crashes: CrashLog,
        tell: Tell,
        progress: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        """Take what is needed; see Manager. lost: told the ref when a worker died on its own."""
        self._config = config
        self._table = table
        self._router = router
        self._forge = forge
        self._leases = leases
        self._accounts = accounts
        self._crashes = crashes
        self._tell = tell
        self._progress = progress
        self._lost = lost
        self.running: dict[str, asyncio.Task[None]] = {}  # by worker
        self.evicted: set[str] = set()  # grants of workers whose version has others

    def watch(self, worker: Worker) -> None:
        """Notice when a ready worker dies."""
        if worker.process is not None:
            worker.process.exited.add_done_callback(lambda _: self.bury(worker))

    def hung(self, name: str, pid: int) -> None:
        """Kill a worker that the kernel finds hung; the next call for its model loads it again."""
        worker = self._table.get(name)
        if worker is None or worker.process is None or worker.pid != pid:
            log.warning("a worker that is not ours hangs", extra={"worker": name, "pid": pid})
            return
        worker.hung = f"hung: no work done in {self._config.worker_stall_s:g} s, with calls to do"
        worker.process.signal(signal.SIGKILL)

    async def lost(self, worker: Worker) -> None:
        """Kill a worker that the kernel does not know any more."""
        if worker.process is not None and worker.state is State.READY and worker.alive():
            log.error("killing a worker that lost the kernel", extra={"worker": worker.id})
            await worker.process.kill()
            self.bury(worker)

    def bury(self, worker: Worker) -> None:
        """Forget a worker that died on its own."""
        if worker in self._table and worker.state is State.READY:
            self._table.remove(worker)
            self._finish(worker, self._mourn(worker))

    async def _mourn(self, worker: Worker) -> None:
        status = await self._forge.exit_status(worker.pid)
        cause = worker.hung or how_it_ended(self._config.state_dir, worker.id, status)
        lived = time.monotonic() - worker.ready_at
        log.error("a worker died", extra={"worker": worker.id, "pid": worker.pid, "cause": cause})
        self._tell("model.failed", model=worker.ref, cause=cause)
        if worker.hung or lived < SOON_S:
            self._crashes.add(worker.id, cause, None if worker.hung else status)
        await self._accounts.release(worker.grant)
        self._lost(worker.ref)

    def end(self, worker: Worker) -> asyncio.Task[None]:
        """Unload in the background, after the running calls; return the task."""
        if worker.state is State.UNLOADING:
            return self.running[worker.id]
        worker.state = State.UNLOADING
        return self._finish(worker, self._unload(worker))

    async def _unload(self, worker: Worker) -> None:
        await drain(self._router, worker, self._config.drain_s, self._progress)
        if worker.process is not None:
            await worker.process.end(_STOP_S)
        self._table.remove(worker)
        await self._accounts.release(worker.grant)
        log.info("unloaded", extra={"worker": worker.id})
        if not self._table.of(worker.ref):
            self._tell("model.unloaded", model=worker.ref)

    def _finish(self, worker: Worker, work: Awaitable[None]) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                await work
            finally:
                self.running.pop(worker.id, None)

        task = self.running[worker.id] = background(run())
        return task

    async def evict(self, grant: str) -> None:
        """End the holder of a grant, which memory wants back."""
        worker = next((w for w in self._table if w.grant == grant), None)
        if worker is None:
            await self._accounts.release(grant)
        elif worker.state is State.LOADING or self._leases.count(worker.ref):
            await asyncio.sleep(0.1)  # it will be reported so; ask again
        else:
            if len(self._table.ready(worker.ref)) > 1:
                self.evicted.add(grant)
            await asyncio.shield(self.end(worker))
