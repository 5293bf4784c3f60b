"""Loads of single workers: each is made once, however many wait for it."""

from __future__ import annotations

import asyncio
import logging
import time

from llmos.lib.call import background
from llmos.lib.errors import LLMOSError
from llmos.lib.publish import Tell
from llmos.servers.execution.manager.endings import Endings
from llmos.servers.execution.manager.model import Asker, State, Version, Worker
from llmos.servers.execution.manager.options import Wishes
from llmos.servers.execution.manager.starting import Starter
from llmos.servers.execution.manager.table import Table

log = logging.getLogger(__name__)


class Loads:
    """Puts ready workers into a table; owns the tasks that make them, and why some failed."""

    def __init__(
        self, table: Table, starter: Starter, endings: Endings, wishes: Wishes, tell: Tell
    ) -> None:
        """Take what is needed; see Manager."""
        self._table = table
        self._starter = starter
        self._endings = endings
        self._wishes = wishes
        self._tell = tell
        self.running: dict[str, asyncio.Task[Worker]] = {}  # by worker
        self.failures: dict[str, str] = {}  # by ref

    async def one(
        self, version: Version, replica: int, key: str, pin: bool, asker: Asker
    ) -> Worker:
        """Return a version's ready worker, loading it first if need be.

        key: a name that it is to have unless another has it. Raises as Starter.start.
        """
        new = Worker(version.name, version.version, replica, task=version.task, pinned=pin)
        new.rank, new.tenant = asker
        while True:
            if (ending := self._endings.running.get(new.id)) is not None:
                await asyncio.wait({ending})
                continue
            worker = self._table.get(new.id)
            if worker is not None and worker.state is State.READY:
                if worker.alive():
                    return worker
                self._endings.bury(worker)  # the news of its death is still on the way
                continue
            if (task := self.running.get(new.id)) is None:
                # In the background: it is shared by all who wait, and outlives their calls.
                task = self.running[new.id] = background(self._load(new, version, key))
                task.add_done_callback(lambda _: self.running.pop(new.id))
            return await asyncio.shield(task)

    async def _load(self, worker: Worker, version: Version, key: str) -> Worker:
        worker.options = self._wishes.of(worker.ref)
        self._table.add(worker)
        keys = [key] if key and self._table.holder(key) is None else []
        began = time.monotonic()
        try:
            await self._starter.start(worker, version, keys)
        except LLMOSError as exc:
            if exc.reason != "CRASH_LOOP":  # for some seconds: meanwhile the crashes are told
                self.failures[worker.ref] = exc.message
            log.warning("cannot load", extra={"worker": worker.id, "cause": exc.message})
            self._tell("model.failed", model=worker.ref, cause=exc.message)
            raise
        finally:
            if worker.state is not State.READY:
                self._table.remove(worker)
        self.failures.pop(worker.ref, None)
        self._endings.watch(worker)
        seconds = round(time.monotonic() - began, 3)
        log.info("loaded", extra={"worker": worker.id, "pid": worker.pid, "seconds": seconds})
        self._tell(
            "model.loaded",
            model=worker.ref,
            instance=worker.replica,
            engine=worker.engine,
            device=worker.device,
            granted_bytes=worker.granted_bytes,
            pid=worker.pid,
            seconds=seconds,
        )
        return worker
