"""Small state as a whole: documents, leases and locks over one database."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from llmos.lib.errors import InvalidArgument, LLMOSError
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.state.documents import BEAT_S, LocalDocuments
from llmos.servers.storage.state.leases import LocalLeases
from llmos.servers.storage.state.locks import LocalLocks
from llmos.servers.storage.state.store import Store

log = logging.getLogger(__name__)
TIDY_S = 10.0


class LocalState:
    """Owns `documents`, `leases` and `locks`, and the work that no call asks for (`keep`)."""

    def __init__(
        self,
        database: Database,
        *,
        history_revisions: int = 10_000,
        history_bytes: int = 256 << 20,
        beat_s: float = BEAT_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Use `database`. history_*: how much of the past is kept for watches and old reads.

        Raises InvalidArgument BAD_CONFIG.
        """
        if history_revisions < 1 or history_bytes < 0:
            raise InvalidArgument(
                "BAD_CONFIG",
                "[storage] history_revisions must be at least 1, history_bytes not negative.",
            )
        self._store = Store(database)
        self._history = history_revisions, history_bytes
        self.documents = LocalDocuments(self._store, beat_s=beat_s)
        self.leases = LocalLeases(self._store, database, now)
        self.locks = LocalLocks(self._store)

    async def keep(self) -> None:
        """End leases and forget old history, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.leases.keep())
            group.create_task(self._tidy())

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY_S)
            try:
                await self.documents.tidy(*self._history)
            except LLMOSError as exc:  # e.g. a full disk: the next time may find it better
                log.warning("cannot forget old history", extra={"cause": str(exc)})

    def close(self) -> None:
        """Wait for what runs in threads. Calls must have ended or been cancelled."""
        self._store.close()

    def stop(self) -> None:
        """End the calls that wait (STOPPING); what they wait for is kept."""
        self._store.hub.stop()
