"""Tells callers how models are and then what changes, for WatchModels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from llmos.servers.execution.manager.listing import Row
from llmos.servers.execution.manager.model import Ref

_POLL_S = 1.0  # what others did in storage shows after so long; our own changes at once


class Changes:
    """Compares what is with what was, whenever something happens. One per manager."""

    def __init__(self, rows: Callable[[], Awaitable[Sequence[Row]]]) -> None:
        """`rows` lists all versions with their states."""
        self._rows = rows
        self._happened: set[asyncio.Event] = set()

    def happened(self) -> None:
        """Look again, now."""
        for event in self._happened:
            event.set()

    async def of(self, model: str) -> AsyncIterator[tuple[Row, bool]]:
        """Yield every model as it is, then each change as (row, it was deleted), for ever.

        model: only this one; "" = all. Raises InvalidArgument BAD_NAME, and as `rows`.
        """
        ref = Ref.parse(model) if model else None
        known: dict[str, tuple[object, Row]] = {}
        event = asyncio.Event()
        self._happened.add(event)
        try:
            while True:
                event.clear()
                found = {row.version.ref: row for row in await self._rows() if _meant(row, ref)}
                for name, row in found.items():
                    shows = _shown(row)
                    if name not in known or known[name][0] != shows:
                        known[name] = shows, row
                        yield row, False
                for name in known.keys() - found.keys():
                    yield known.pop(name)[1], True
                try:
                    await asyncio.wait_for(event.wait(), _POLL_S)
                except TimeoutError:
                    continue
        finally:
            self._happened.discard(event)


def _meant(row: Row, ref: Ref | None) -> bool:
    if ref is None:
        return True
    if ref.alias and (row.worker is None or str(ref) not in row.worker.keys):
        return False
    return row.version.name == ref.name and ref.version in (0, row.version.version)


def _shown(row: Row) -> object:
    """Return what makes a row different from before; not the memory it uses just now."""
    about = [(w.pid, w.state, w.device, w.granted_bytes, tuple(w.keys)) for w in row.workers]
    return (row.state, row.reason, row.is_default, row.engine, about)
