"""Freed buffers that the memory server gave their client again, until the next one is wanted.

Belongs to one event loop. A buffer in here is mapped and zeroed; what is not wanted within the
time the server keeps its offers is let go of.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import mmap
import os
from collections import deque

from llmos.api.memory.v1 import buffers_pb2 as pb

LARGEST = 8 << 20  # bytes; for larger ones the server makes no offer
ROOM = 32 << 20  # bytes of all that are kept
KEEP_S = 1.5  # less than the server keeps an offer

Kind = tuple[int, str, str]  # size, label, and who pays


class Pool:
    """Mapped buffers by kind."""

    def __init__(self, keep_s: float) -> None:
        """Keep nothing longer than KEEP_S or `keep_s`."""
        self._keep_s = min(keep_s, KEEP_S)
        self._free: dict[Kind, deque[tuple[float, pb.FreeBufferResponse, mmap.mmap]]] = {}
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def put(
        self, kind: Kind, offer: pb.FreeBufferResponse, memory: mmap.mmap
    ) -> list[pb.BufferHandle]:
        """Keep what is offered; its bytes become zeros.

        Returns what had to go for it, the oldest first; the server may free that.
        """
        first = ctypes.c_char.from_buffer(memory)
        ctypes.memset(ctypes.addressof(first), 0, len(memory))
        loop = asyncio.get_running_loop()
        entry = (loop.time() + self._keep_s, offer, memory)
        self._free.setdefault(kind, deque()).append(entry)
        self._bytes += len(memory)
        if self._timer is None:
            self._timer = loop.call_later(self._keep_s, self._expire)
        gone = []
        while self._bytes > ROOM:
            oldest = min(self._free, key=lambda kind: self._free[kind][0][0])
            gone.append(self._drop(oldest))
        return gone

    def take(self, kind: Kind) -> tuple[pb.BufferHandle, mmap.mmap] | None:
        """Return a zeroed buffer that is the caller's, and its memory; None if there is none."""
        while kept := self._free.get(kind):
            _, offer, memory = kept.pop()
            self._bytes -= len(memory)
            if not kept:
                del self._free[kind]
            # The name is checked, as it comes from another process: this removes a file.
            if os.path.basename(offer.claim) == f"{offer.again.id}.spare":
                with contextlib.suppress(OSError):  # the server was quicker
                    os.unlink(offer.claim)
                    return offer.again, memory
        return None

    def close(self) -> list[pb.BufferHandle]:
        """Let go of all; return the handles of what the server may free at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        handles = [offer.again for kept in self._free.values() for _, offer, _ in kept]
        self._free.clear()
        self._bytes = 0
        return handles

    def _expire(self) -> None:
        """Let go of what the server is about to take back."""
        loop = asyncio.get_running_loop()
        for kind, kept in [*self._free.items()]:
            while kept and kept[0][0] <= loop.time():
                self._drop(kind)
        due = min((kept[0][0] for kept in self._free.values()), default=None)
        self._timer = None if due is None else loop.call_at(due, self._expire)

    def _drop(self, kind: Kind) -> pb.BufferHandle:
        """Let go of the oldest of a kind."""
        kept = self._free[kind]
        _, offer, memory = kept.popleft()
        self._bytes -= len(memory)
        if not kept:
            del self._free[kind]
        return offer.again
