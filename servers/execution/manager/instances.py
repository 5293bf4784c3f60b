"""How many workers a version has: as many as were asked for, also after one has died."""

from __future__ import annotations

import asyncio
import logging

from llmos.lib.call import background
from llmos.lib.errors import InvalidArgument, LLMOSError, Unavailable
from llmos.servers.execution.engine.serving.declared import instances
from llmos.servers.execution.manager.endings import Endings
from llmos.servers.execution.manager.loading import Loads
from llmos.servers.execution.manager.model import Asker, Version
from llmos.servers.execution.manager.naming import Names
from llmos.servers.execution.manager.options import Wishes
from llmos.servers.execution.manager.seams import Catalog
from llmos.servers.execution.manager.table import Table

_FIRST_PAUSE_S, _MAX_PAUSE_S = 1.0, 30.0  # between tries to replace a worker that died

log = logging.getLogger(__name__)


class Instances:
    """Starts and ends the workers of a version beside its first; owns the tasks that do so."""

    def __init__(
        self,
        table: Table,
        catalog: Catalog,
        wishes: Wishes,
        loads: Loads,
        names: Names,
        endings: Endings,
    ) -> None:
        """Take what is needed; see Manager."""
        self._table = table
        self._catalog = catalog
        self._wishes = wishes
        self._loads = loads
        self._names = names
        self._endings = endings
        self.filling: dict[str, asyncio.Task[None]] = {}  # by ref

    async def wanted(self, version: Version) -> int:
        """Return how many workers a version is to have.

        Raises InvalidArgument BAD_OPTION when it keeps state and is to have several; Unavailable
        LOAD_FAILED when its serving.toml is wrong; and what storage raises.
        """
        asked = self._wishes.of(version.ref)
        own = instances(await self._catalog.fetch(version), dict(asked.serving))
        if asked.instances > 1 and own.stateful:
            raise InvalidArgument(
                "BAD_OPTION",
                f"{version.ref} keeps state between the calls of a sequence, which have to meet "
                "the same worker; it can have one instance only.",
            )
        return asked.instances or own.count

    async def complete(self, version: Version) -> None:
        """Start what is missing, and end what is too much. Raises as Loads.one."""
        wanted = await self.wanted(version)
        self.recall(version.ref)
        surplus = [w for w in self._table.of(version.ref) if w.replica >= wanted]
        await asyncio.gather(*(asyncio.shield(self._endings.end(w)) for w in surplus))
        await self._start(version, wanted)

    def recall(self, ref: str) -> None:
        """Let those start again that had to make room for others."""
        evicted = self._endings.evicted
        evicted -= {grant for grant in evicted if grant.partition("#")[0] == ref}

    def refill(self, ref: str) -> None:
        """Start what is missing of a version, in the background, while one of its workers lives."""
        if ref not in self.filling and self._table.ready(ref):
            task = self.filling[ref] = background(self._refill(ref))
            task.add_done_callback(lambda _: self.filling.pop(ref))

    def stop(self, ref: str) -> None:
        """Start no more; what loads already is not stopped."""
        if (task := self.filling.get(ref)) is not None:
            task.cancel()

    async def _refill(self, ref: str) -> None:
        pause = _FIRST_PAUSE_S
        while self._table.ready(ref):
            try:
                version = await self._catalog.resolve(ref)
                await self._start(version, await self.wanted(version))
                return
            except Unavailable as exc:  # also a crash loop, which says how long
                log.warning("an instance is missing", extra={"model": ref, "cause": exc.message})
                await asyncio.sleep(min(exc.retry_after_s or pause, _MAX_PAUSE_S))
                pause = min(pause * 2, _MAX_PAUSE_S)
            except LLMOSError as exc:  # no room, or the version is gone: until the next load
                log.warning("an instance stays away", extra={"model": ref, "cause": exc.message})
                return

    async def _start(self, version: Version, wanted: int) -> None:
        """Start what is missing, again when one dies meanwhile. Raises the first that fails."""
        ref = version.ref
        while ready := self._table.ready(ref):
            there = {w.replica for w in ready}
            missing = [
                n
                for n in range(wanted)
                if n not in there and f"{ref}#{n}" not in self._endings.evicted
            ]
            if not missing:
                return
            first = ready[0]
            asker = Asker(first.rank, first.tenant)
            made = await asyncio.gather(
                *(self._loads.one(version, n, "", first.pinned, asker) for n in missing),
                return_exceptions=True,
            )
            for one in made:
                if isinstance(one, BaseException):
                    raise one
                if not await self._names.join(one):  # all the others ended meanwhile
                    self._endings.end(one)
