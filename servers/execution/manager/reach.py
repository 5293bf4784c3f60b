"""Whether calls get to a worker, and waiting until none are left."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from llmos.lib.errors import LLMOSError
from llmos.servers.execution.manager.model import State, Worker
from llmos.servers.execution.manager.seams import Router

_ATTACH_S = 5.0  # a port that lost its kernel is back within a second

log = logging.getLogger(__name__)


async def comes_back(router: Router, workers: Sequence[Worker], key: str) -> bool:
    """Return whether calls for `key` reach one of these workers within a moment."""
    deadline = time.monotonic() + _ATTACH_S
    while time.monotonic() < deadline:
        workers = [w for w in workers if w.alive() and w.state is State.READY]
        if not workers:
            return False
        for worker in workers:
            if await router.serves(worker, key):
                return worker.state is State.READY
        await asyncio.sleep(0.05)
    return False


async def drain(
    router: Router, worker: Worker, seconds: float, progress: Callable[[], None]
) -> None:
    """Give the worker no new calls, and wait until those it has have ended, so long at most."""
    deadline = time.monotonic() + seconds
    try:
        while worker.alive() and await router.drain(worker):
            if time.monotonic() > deadline:
                log.warning("calls do not end", extra={"worker": worker.id})
                return
            progress()
            await asyncio.sleep(0.1)
    except LLMOSError as exc:  # no kernel now: SIGTERM drains as well, for a shorter time
        log.warning("cannot drain", extra={"worker": worker.id, "cause": exc.message})
