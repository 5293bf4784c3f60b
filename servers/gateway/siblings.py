"""Several gateway processes on one port: the first one starts the others and starts them again.

All listen by SO_REUSEPORT, so the system spreads connections over those that live. When the first
one dies, init starts another, and the others answer until it listens; then they drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

log = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_HEALTHY_S = 10.0  # who lived so long is started again without a pause
_ORPHANED_S = 20.0  # how long to go on without a first process
_LOOK_S = 0.1


class Siblings:
    """The further processes, each ended with this one. Owns them until `run` is cancelled."""

    def __init__(self, count: int, flags: Sequence[str], drain_s: float) -> None:
        """Start `count` processes by this one's own flags and `flags`; to stop, they may drain."""
        self._numbers = range(1, count + 1)
        self._flags = list(flags)
        self._drain_s = drain_s

    async def run(self) -> None:
        """Keep them running until cancelled; then end them."""
        async with asyncio.TaskGroup() as group:
            for number in self._numbers:
                group.create_task(self._keep(number))

    async def _keep(self, number: int) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            code = await self._live(number)
            if time.monotonic() - began > _HEALTHY_S:
                pause = _FIRST_PAUSE_S
            log.warning(
                "a gateway process ended and is started again",
                extra={"sibling": number, "status": code, "pause_s": pause},
            )
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _live(self, number: int) -> int:
        # Its stdin is how it learns that this process is gone, however that died.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llmos.servers.gateway", *sys.argv[1:], *self._flags),
            *("--sibling", str(number)),
            stdin=asyncio.subprocess.PIPE,
        )
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await _ended(process, self._drain_s + 2)


async def _ended(process: asyncio.subprocess.Process, within_s: float) -> None:
    try:
        async with asyncio.timeout(within_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def until_orphaned(announcement: Path, stop: Callable[[], None]) -> None:
    """Wait for the first process's end and for its successor, then `stop`.

    announcement: the file that a first process writes when it listens.
    """
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    before = _stamp(announcement)
    while await stdin.read(4096):
        pass
    log.warning("the first gateway process is gone")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_ORPHANED_S):
            while (now := _stamp(announcement)) is None or now == before:
                await asyncio.sleep(_LOOK_S)
    stop()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
