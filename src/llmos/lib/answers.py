"""What became of calls that must not run twice, by their request ids: the window of a server.

A client that lost the kernel in the middle of such a call asks again under the same request id,
without the request (see Open.request_id in port.proto): it gets the answer if the call has ended
here, waits if it still runs, and is told that the call may have run if nothing is known of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from llmos.api.kernel.v1 import port_pb2 as pb
from llmos.lib.errors import Unavailable

KEPT = 1_000  # answers
KEPT_BYTES = 16 << 20
KEPT_S = 300.0
ALONE_S = 30.0  # how long work goes on that nobody waits for: its client may come again

Outcome = tuple[bytes | None, pb.Status | None]  # reply and status of a call
Key = tuple[str, str, str]  # tenant, method, request id


@dataclass(slots=True, eq=False)
class _Entry:
    work: asyncio.Future[Outcome]
    waiters: int = 0
    ended_at: float = 0.0
    size: int = 0


class Answers:
    """A bounded window of calls: running ones, and those that ended lately, oldest first."""

    def __init__(self) -> None:
        """Start empty."""
        self._running: dict[Key, _Entry] = {}
        self._ended: OrderedDict[Key, _Entry] = OrderedDict()
        self._bytes = 0

    async def once(
        self,
        key: Key,
        start: Callable[[], Coroutine[Any, Any, Outcome]] | None,
        abandoned: Callable[[], bool],
    ) -> Outcome:
        """Return the outcome of the call `key`; `start` makes it unless it was made before.

        Cancelled, it cancels the work too, except when `abandoned`: then the client may come again
        for a while. Raises Unavailable KERNEL_LOST_MAY_HAVE_RUN without `start` for an unknown key.
        """
        self._tidy()
        entry = self._running.get(key) or self._ended.get(key)
        if entry is None:
            if start is None:
                raise Unavailable(
                    "KERNEL_LOST_MAY_HAVE_RUN",
                    "The kernel went away, and the server that answers now knows nothing of the "
                    "call; it may or may not have run: look before you repeat it.",
                )
            entry = self._running[key] = _Entry(asyncio.get_running_loop().create_task(start()))
            entry.work.add_done_callback(lambda work: self._done(key, work))
        entry.waiters += 1
        try:
            return await asyncio.shield(entry.work)
        except asyncio.CancelledError:
            if abandoned():
                loop = asyncio.get_running_loop()
                loop.call_later(ALONE_S, lambda: entry.waiters or entry.work.cancel())
            elif entry.waiters == 1:
                entry.work.cancel()
                await asyncio.wait({entry.work})
            raise
        finally:
            entry.waiters -= 1

    def _done(self, key: Key, work: asyncio.Future[Outcome]) -> None:
        entry = self._running.pop(key)
        if work.cancelled() or work.exception() is not None:
            return
        reply, status = work.result()
        if status is not None and status.code == 1:
            return  # cancelled before it had an outcome
        # The outcome alone: a task keeps its context, and with it all that the call was made of.
        entry.work = asyncio.get_running_loop().create_future()
        entry.work.set_result((reply, status))
        entry.ended_at = time.monotonic()
        entry.size = len(reply or b"") + (status.ByteSize() if status is not None else 0)
        self._ended[key] = entry
        self._bytes += entry.size
        self._tidy()

    def _tidy(self) -> None:
        oldest = time.monotonic() - KEPT_S
        while self._ended:
            key, entry = next(iter(self._ended.items()))
            few = len(self._ended) <= KEPT and self._bytes <= KEPT_BYTES
            if few and entry.ended_at >= oldest:
                return
            del self._ended[key]
            self._bytes -= entry.size

    def close(self) -> None:
        """Cancel what runs."""
        for entry in self._running.values():
            entry.work.cancel()
