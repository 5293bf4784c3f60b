"""Long blocking work in a thread: its progress as a stream, and its end with its caller."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from llmos.servers.storage.importer import Watch
from llmos.servers.storage.model import Progress

T = TypeVar("T")
_TICK_S = 0.1


async def watched(
    pool: ThreadPoolExecutor, work: Callable[[Watch], T]
) -> AsyncGenerator[Progress | T, None]:
    """Run `work` in `pool`; yield what its watch shows, then its result.

    When the caller goes away, the work stops at its next step before this returns.
    """
    watch = Watch()
    job = pool.submit(contextvars.copy_context().run, work, watch)  # whose work it is
    running = asyncio.wrap_future(job)
    try:
        last = None
        while not running.done():
            await asyncio.wait([running], timeout=_TICK_S)
            if last != (last := watch.progress):
                yield last
        yield running.result()
    finally:
        watch.cancel()
        if not job.cancel():
            await asyncio.wait([running])
        if running.done() and not running.cancelled():
            running.exception()  # when the caller is gone, nobody else fetches it
