"""What documents, leases and locks share: transactions in threads, and news of what changed."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection

from llmos.lib.errors import Unavailable
from llmos.servers.storage import caller
from llmos.servers.storage.caller import Caller
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.state.hub import Hub
from llmos.servers.storage.state.writer import Writer

T = TypeVar("T")
READERS = 4  # threads


class Store:
    """Small state's part of the database. Has its own threads: uploads never keep it waiting."""

    def __init__(self, database: Database) -> None:
        """Use `database`, whose only writers of small state are this store's."""
        self._database = database
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="state-reader")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="state-writer")
        self.hub = Hub()
        self._committing: Writer | None = None
        database.on_commit(self._committed)

    async def read(self, work: Callable[[Connection, str], T]) -> T:
        """Return what `work` reads, called with one consistent view and the caller's tenant."""

        def run() -> T:
            with self._database.read() as sql:
                return work(sql, caller.current().tenant)

        return await _run(self._readers, run)

    async def write(self, work: Callable[[Writer], T], tenant: str | None = None) -> T:
        """Return what `work` returns, durable. tenant: act for it, whatever the call's fence."""
        return await _run(self._writer, lambda: self._write(work, tenant))

    def close(self) -> None:
        """Wait for what runs in threads though its caller may be gone."""
        for threads in (self._writer, self._readers):
            threads.shutdown(wait=True, cancel_futures=True)

    def _write(self, work: Callable[[Writer], T], tenant: str | None) -> T:
        if tenant is not None:
            caller.become(Caller(tenant))  # in this thread's copy of the context
        with self._database.lock:
            try:
                with self._database.write() as sql:
                    writer = Writer(sql, caller.current().tenant)
                    result = work(writer)
                    writer.finish()
                    self._committing = writer
                return result
            finally:
                self._committing = None

    def _committed(self) -> None:
        """Tell what changed; called under the database's lock, so in the order of revisions."""
        writer = self._committing
        if writer is not None and (writer.documents or writer.locks):
            names = {"document": writer.documents, "lock": writer.locks}
            self.hub.tell(writer.tenant, names, writer.taken)


async def _run(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(threads, context.run, work)


def stopping() -> Unavailable:
    """Return the error for calls that wait while the server is about to stop."""
    return Unavailable("STOPPING", "Storage stops; ask again in a moment.", retry_after_s=0.5)
