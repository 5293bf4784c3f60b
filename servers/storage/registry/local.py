"""Aliases and version leases in this process's database."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import TypeVar

from sqlalchemy import Connection

from llmos.lib.errors import LLMOSError, OutOfRange, Unavailable
from llmos.servers.storage.data import catalog
from llmos.servers.storage.db.clock import BootClock
from llmos.servers.storage.db.engine import Database
from llmos.servers.storage.names import check_alias, check_name
from llmos.servers.storage.registry import history, moves, refs
from llmos.servers.storage.registry.base import Aliases, VersionLeases
from llmos.servers.storage.registry.leases import Leases, no_such_lease
from llmos.servers.storage.registry.model import (
    Alias,
    AliasMove,
    AliasPage,
    MovePage,
    VersionLease,
)

T = TypeVar("T")
log = logging.getLogger(__name__)
_DATASET = "dataset:"
_BATCH = 500  # moves that a watch reads at a time
_OTHERS_S = 1.0  # how soon a watch sees what another process wrote to the same PostgreSQL


class LocalAliases(Aliases):
    """Implements Aliases. Nothing of it blocks the event loop."""

    def __init__(self, database: Database) -> None:
        """Keep them in `database`, which lives longer."""
        self._db = database
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._stopping = False
        database.on_commit(self._wake)

    def stop(self) -> None:
        """End all watches: the server is about to stop."""
        self._stopping = True
        self._wake()

    async def set_alias(
        self, model: str, alias: str, version: int, expected: int | None = None
    ) -> tuple[Alias, int]:
        """See Aliases."""
        _check(model, alias)
        return await self._write(lambda sql: moves.point(sql, model, alias, version, expected))

    async def rollback_alias(self, model: str, alias: str, expected: int) -> tuple[Alias, int]:
        """See Aliases."""
        _check(model, alias)
        return await self._write(lambda sql: moves.rollback(sql, model, alias, expected))

    async def delete_alias(self, model: str, alias: str, expected: int | None = None) -> bool:
        """See Aliases."""
        _check(model, alias)
        return await self._write(lambda sql: moves.remove(sql, model, alias, expected))

    async def list_aliases(self, model: str, page_size: int, page_token: str) -> AliasPage:
        """See Aliases."""
        if model:
            check_name(model)
        return await self._read(lambda sql: history.alias_page(sql, model, page_size, page_token))

    async def list_moves(self, model: str, alias: str, page_size: int, page_token: str) -> MovePage:
        """See Aliases."""
        _check(model, alias)
        return await self._read(
            lambda sql: history.move_page(sql, model, alias, page_size, page_token)
        )

    async def watch_aliases(
        self, model: str, alias: str, after: int | None
    ) -> AsyncGenerator[AliasMove, None]:
        """See Aliases."""
        if model:
            check_name(model)
        if alias:
            check_alias(alias)
        head = await self._read(moves.head)
        seen = head if after is None else after
        if seen > head:
            raise OutOfRange(
                "BAD_REVISION",
                f"There is no revision {seen} yet, the newest is {head}: list the aliases and "
                "watch from now on.",
            )
        with self._news() as news:
            yield AliasMove(seen)
            while not self._stopping:
                news.clear()
                start = seen
                found = await self._read(
                    lambda sql, start=start: history.moves_after(  # type: ignore[misc]
                        sql, model, alias, start, _BATCH
                    )
                )
                for move in found:
                    yield move
                    seen = move.revision
                if len(found) < _BATCH:
                    await self._until(news)
        raise Unavailable(
            "STOPPING", "The storage server stops: watch again, after the last revision seen."
        )

    @contextlib.contextmanager
    def _news(self) -> Iterator[asyncio.Event]:
        """Give an event that is set after every write."""
        waiter = (asyncio.get_running_loop(), asyncio.Event())
        self._waiting.add(waiter)
        try:
            yield waiter[1]
        finally:
            self._waiting.discard(waiter)

    async def _until(self, news: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if self._db.is_sqlite else _OTHERS_S):
                await news.wait()

    def _wake(self) -> None:
        for loop, event in tuple(self._waiting):
            loop.call_soon_threadsafe(event.set)

    async def _write(self, change: Callable[[Connection], T]) -> T:
        return await asyncio.to_thread(_run, self._db.write, change)

    async def _read(self, look: Callable[[Connection], T]) -> T:
        return await asyncio.to_thread(_run, self._db.read, look)


class LocalLeases(VersionLeases):
    """Implements VersionLeases. Nothing of it blocks the event loop."""

    def __init__(self, database: Database, clock: BootClock | None = None) -> None:
        """Keep them in `database`, which lives longer; take the time from `clock`."""
        self._db = database
        clock = clock or BootClock()
        self._leases = Leases(clock)
        self._on_datasets = Leases(clock, datasets=True)

    def begin(self) -> None:
        """Start the time of all anew, before the server serves: nobody could renew meanwhile."""
        with self._db.read() as sql:
            there = self._leases.any(sql) or self._on_datasets.any(sql)
        if not there:
            return
        try:
            with self._db.write() as sql:
                self._leases.renew_all(sql)
                self._on_datasets.renew_all(sql)
        except LLMOSError as exc:  # a full disk: what is there can be read all the same
            log.warning("leases were not renewed", extra={"cause": exc.message})

    async def acquire_lease(
        self, ref: str, holder: str, ttl_s: float, request_id: str = ""
    ) -> VersionLease:
        """See VersionLeases."""

        def acquire(sql: Connection) -> VersionLease:
            leases, version = self._find(sql, ref)
            return leases.acquire(sql, version, holder, ttl_s, request_id)

        return await asyncio.to_thread(_run, self._db.write, acquire)

    async def renew_lease(self, id: str) -> VersionLease:
        """See VersionLeases."""

        def renew(sql: Connection) -> VersionLease:
            found = self._leases.renew(sql, id) or self._on_datasets.renew(sql, id)
            if found is None:
                raise no_such_lease(id)
            return found

        return await asyncio.to_thread(_run, self._db.write, renew)

    async def release_lease(self, id: str) -> bool:
        """See VersionLeases."""
        return await asyncio.to_thread(
            _run,
            self._db.write,
            lambda sql: self._leases.release(sql, id) or self._on_datasets.release(sql, id),
        )

    async def list_leases(self, ref: str) -> Sequence[VersionLease]:
        """See VersionLeases."""

        def listed(sql: Connection) -> list[VersionLease]:
            if not ref:
                return self._leases.listed(sql) + self._on_datasets.listed(sql)
            leases, version = self._find(sql, ref)
            return leases.listed(sql, version)

        return await asyncio.to_thread(_run, self._db.read, listed)

    def _find(self, sql: Connection, ref: str) -> tuple[Leases, tuple[str, int]]:
        if ref.startswith(_DATASET):
            return self._on_datasets, catalog.find(sql, ref.removeprefix(_DATASET))
        return self._leases, refs.find(sql, ref)


def _run(
    transaction: Callable[[], contextlib.AbstractContextManager[Connection]],
    work: Callable[[Connection], T],
) -> T:
    with transaction() as sql:
        return work(sql)


def _check(model: str, alias: str) -> None:
    check_name(model)
    check_alias(alias)
