"""Keeps the memory server's books right: what workers use, who is busy, who is held."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from llmos.lib.errors import LLMOSError
from llmos.servers.execution.manager.crashes import WINDOW_S, CrashLog
from llmos.servers.execution.manager.leases import Leases
from llmos.servers.execution.manager.measuring import used_bytes
from llmos.servers.execution.manager.model import State, Worker
from llmos.servers.execution.manager.seams import Grants, Router
from llmos.servers.execution.manager.table import Table

_REPORT_S = 5.0
_FRESH_S = 0.05  # a report is news for so long: several loads that wait share it
_FIRST_CALL_S = 1.0  # the call that a model was loaded for reaches it within this time

log = logging.getLogger(__name__)


class Accounts:
    """Reports the workers of a table that the manager owns."""

    def __init__(self, table: Table, grants: Grants, router: Router, leases: Leases) -> None:
        """Look at `table` whenever something is to be reported."""
        self._table = table
        self._grants = grants
        self._router = router
        self._leases = leases
        self._reported = -_FRESH_S
        self._reporting = asyncio.Lock()

    async def release(self, grant: str) -> None:
        """Give room back."""
        try:
            await self._grants.release(grant)
        except LLMOSError as exc:  # memory is away: what is not reported is dropped there
            log.warning("cannot release", extra={"grant": grant, "cause": exc.message})

    async def report(self) -> None:
        """Tell memory who holds what, and who is busy, unless that was done a moment ago."""
        async with self._reporting:
            if time.monotonic() - self._reported < _FRESH_S:
                return
            try:
                for name, load in (await self._router.loads()).items():
                    if (worker := self._table.get(name)) is not None:
                        worker.running, worker.served = load.running, load.served
                await self._grants.report(list(self._of(self._table)))
                self._reported = time.monotonic()
            except LLMOSError as exc:
                log.warning("cannot report grants", extra={"cause": exc.message})

    def _of(self, workers: Iterable[Worker]) -> Iterable[Worker]:
        """Yield those that hold something, with what is known of them now."""
        now = time.monotonic()
        for worker in workers:
            worker.leases = self._leases.count(worker.ref)
            fresh = not worker.served and now - worker.ready_at < _FIRST_CALL_S
            worker.moving = worker.state is not State.READY or fresh
            if worker.granted_bytes:
                yield worker

    async def keep(self, crashes: CrashLog) -> None:
        """Measure and report, for ever."""
        while True:
            for worker in self._table:
                if worker.pid:
                    worker.used_bytes = await asyncio.to_thread(
                        used_bytes, worker.pid, worker.device
                    )
                if time.monotonic() - worker.ready_at > WINDOW_S:
                    crashes.lived(worker.id)
            await self.report()
            await asyncio.sleep(_REPORT_S)
