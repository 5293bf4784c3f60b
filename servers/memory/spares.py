"""Files made ahead: what is asked for again and again is there when it is asked for.

Allocating and clearing 4 MiB of shared memory takes longer than all else of creating and filling a
buffer, and giving them back takes long, too. Both happen here in a thread, beside the answer. A
spare was never handed out, so nobody has an old mapping of it; it is not counted in the budget of
buffers, and is gone when its size was not asked for during `KEEP_S`.
"""

from __future__ import annotations

import secrets
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from llmos.servers.memory.shm import Directory

SMALLEST, LARGEST = 64 << 10, 8 << 20  # bytes: smaller ones take no time, larger ones too much room
SIZES = 2  # spares at a time
KEEP_S = 2.0
_PAUSE_S = 0.01  # first the answer is to reach who asked: clearing takes a core for milliseconds
_LATER = 1 << 20  # bytes; smaller files are removed at once


@dataclass
class _Spare:
    id: str
    asked: float
    made: Future[None] | None = None


class Spares:
    """The spares of one directory. For one thread, but for what it hands to its own."""

    def __init__(self, directory: Directory) -> None:
        """Start without any; no thread is started before it is needed."""
        self._dir = directory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spares")
        self._of: dict[int, _Spare] = {}

    def take(self, size: int, now: float) -> str:
        """Return the id of a zeroed file of `size` bytes that is the caller's now; "" = none."""
        if not SMALLEST <= size <= LARGEST:
            return ""
        spare = self._of.get(size)
        if spare is None:
            self._of[size] = _Spare(secrets.token_hex(16), now)
            while len(self._of) > SIZES:
                self._remove(min(self._of, key=lambda s: self._of[s].asked))
            return ""
        spare.asked = now
        if spare.made is None:  # asked for the second time: there will be a third
            self._make(size, spare)
            return ""
        if not spare.made.done():
            return ""
        taken = "" if spare.made.exception() else spare.id
        spare.id = secrets.token_hex(16)
        self._make(size, spare)
        return taken

    def remove(self, id: str, size: int) -> None:
        """Remove a buffer's files; those of a large one soon, but its record at once."""
        self._dir.forget(id)
        if size <= _LATER:
            self._dir.file(id).unlink(missing_ok=True)
        else:
            self._thread.submit(self._dir.file(id).unlink, missing_ok=True)

    def expire(self, now: float) -> None:
        """Give up what was not asked for lately."""
        for size in [s for s, spare in self._of.items() if spare.asked + KEEP_S <= now]:
            self._remove(size)

    def drop(self) -> None:
        """Give up all, and wait until what was removed is gone: room is wanted."""
        for size in [*self._of]:
            self._remove(size)
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Leave no file and no thread behind."""
        self.drop()
        self._thread.shutdown()

    def _make(self, size: int, spare: _Spare) -> None:
        spare.made = self._thread.submit(self._fill, spare.id, size)

    def _fill(self, id: str, size: int) -> None:
        time.sleep(_PAUSE_S)
        self._dir.allocate(id, size, clear=True)

    def _remove(self, size: int) -> None:
        spare = self._of.pop(size)
        if spare.made is not None:  # in the same thread, so after it was made
            self._thread.submit(self._dir.file(spare.id).unlink, missing_ok=True)
