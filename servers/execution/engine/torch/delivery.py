"""Carries pieces from the compute thread to the readers on their event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from llmos.lib.errors import LLMOSError
from llmos.servers.execution.engine.base import Piece

BACKLOG = 64  # pieces a reader may be behind before its sequence pauses


class Outlet:
    """One reader's queue. `sent` is written by the compute thread, all else by the event loop."""

    def __init__(self, on_drained: Callable[[], None]) -> None:
        """Belong to the running event loop; `on_drained` is called after a full queue is read."""
        self.loop = asyncio.get_running_loop()
        self.sent = 0
        self._taken = 0
        self._items: list[Piece | LLMOSError] = []
        self._ready = asyncio.Event()
        self._on_drained = on_drained

    @property
    def full(self) -> bool:
        """Say whether the reader is so far behind that its sequence has to wait."""
        return self.sent - self._taken >= BACKLOG

    def put(self, item: Piece | LLMOSError) -> None:
        """Add an item; on the event loop only."""
        self._items.append(item)
        self._ready.set()

    async def get(self) -> Piece:
        """Wait and return all that has come, as one piece; raises the error that came."""
        await self._ready.wait()
        items, self._items, was_full = self._items, [], self.full
        self._ready.clear()
        self._taken += len(items)
        if was_full:
            self._on_drained()
        pieces: list[Piece] = []
        for item in items:
            if isinstance(item, Piece):
                pieces.append(item)
            elif not pieces:
                raise item
            else:
                self.put(item)  # after what came before it
        return _joined(pieces)


def deliver(items: Sequence[tuple[Outlet, Piece | LLMOSError]]) -> list[Outlet]:
    """Hand over what one step made, waking each event loop once; for the compute thread.

    Returns the outlets whose event loop is closed: nobody will ever read them.
    """
    loops: dict[asyncio.AbstractEventLoop, list[tuple[Outlet, Piece | LLMOSError]]] = {}
    for outlet, item in items:
        outlet.sent += 1
        loops.setdefault(outlet.loop, []).append((outlet, item))
    lost: list[Outlet] = []
    for loop, batch in loops.items():
        try:
            loop.call_soon_threadsafe(_put_all, batch)
        except RuntimeError:  # that is how asyncio says that the loop is closed
            lost += [outlet for outlet, _ in batch]
    return lost


def _put_all(items: Sequence[tuple[Outlet, Piece | LLMOSError]]) -> None:
    for outlet, item in items:
        outlet.put(item)


def _joined(pieces: Sequence[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    text = "".join(piece.text for piece in pieces)
    return replace(
        pieces[-1],
        text=text,
        tokens=[t for piece in pieces for t in piece.tokens],
        logprobs=[p for piece in pieces for p in piece.logprobs],
        prompt_logprobs=[p for piece in pieces for p in piece.prompt_logprobs],
    )
