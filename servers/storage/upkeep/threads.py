"""Between the event loop and blocking generators and readers in threads."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import queue
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import TypeVar, cast

from llmos.lib.errors import Cancelled

T = TypeVar("T")
R = TypeVar("R")
_QUEUE = 16  # pieces on their way


class Pipe(io.RawIOBase):
    """Bytes from the event loop to a thread that reads a file."""

    def __init__(self) -> None:
        """Start empty."""
        self._pieces: queue.Queue[bytes] = queue.Queue(_QUEUE)
        self._left = b""
        self._ended = self._stopped = False

    def offer(self, piece: bytes) -> bool:
        """Put a piece (empty = the end); False when there is no room for it now."""
        try:
            self._pieces.put_nowait(piece)
        except queue.Full:
            return False
        return True

    def stop(self) -> None:
        """Make the reader fail with Cancelled."""
        self._stopped = True

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Return exactly `size` bytes, fewer at the end only."""
        want = math.inf if size is None or size < 0 else size
        parts: list[bytes] = []
        while want > 0 and not self._ended:
            if not self._left:
                self._fill()
                continue
            part = self._left if want >= len(self._left) else self._left[: int(want)]
            self._left = self._left[len(part) :]
            parts.append(part)
            want -= len(part)
        return b"".join(parts)

    def _fill(self) -> None:
        while True:
            if self._stopped:
                raise Cancelled("CANCELLED", "The restore was given up; nothing was changed.")
            with contextlib.suppress(queue.Empty):
                self._left = self._pieces.get(timeout=0.2)
                self._ended = not self._left
                return


def with_result(work: Generator[T, None, R]) -> Iterator[T | R]:
    """Yield what `work` yields, and then what it returns."""
    yield (yield from work)


async def in_thread(work: Iterator[T]) -> AsyncGenerator[T, None]:
    """Run a generator's steps in threads, one after the other; it is closed in the end."""
    end = object()
    step = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, work, end))
            got = await asyncio.shield(step)
            if got is end:
                return
            yield cast(T, got)
    finally:
        if step is not None and not step.done():
            await asyncio.wait([step])
        if isinstance(work, Generator):
            await asyncio.to_thread(work.close)
