"""A process held by a descriptor: no signal can hit another process that got its number."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import AsyncIterator, Callable

import psutil

_LISTEN_S = 0.5


class Process:
    """A running process that need not be our child."""

    def __init__(self, pid: int) -> None:
        """Hold process `pid`. Raises ProcessLookupError when there is none."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._fd, self._on_exit)

    def alive(self) -> bool:
        """Return whether it still runs (a zombie does not)."""
        if self._fd < 0:
            return False
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; does nothing when it has ended."""
        if self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    async def end(self, grace_s: float) -> None:
        """Ask it to end by SIGTERM, kill it after `grace_s`; returns when it has ended."""
        self.signal(signal.SIGTERM)
        done, _ = await asyncio.wait({self.exited}, timeout=grace_s)
        if not done:
            self.signal(signal.SIGKILL)
            await asyncio.wait({self.exited})

    async def kill(self) -> None:
        """Kill it; returns when it has ended."""
        await self.end(0)

    def activity(self) -> tuple[float, int]:
        """Return what grows while it works: CPU seconds used, and bytes read from disks."""
        try:
            process = psutil.Process(self.pid)
            with process.oneshot():
                times, io = process.cpu_times(), process.io_counters()
        except psutil.Error:
            return 0.0, 0
        return times.user + times.system, int(io.read_bytes)

    def close(self) -> None:
        """Let go of it; it goes on."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _on_exit(self) -> None:
        self.close()
        if not self.exited.done():
            self.exited.set_result(None)


@contextlib.asynccontextmanager
async def waiting_for(process: Process, progress: Callable[[], None]) -> AsyncIterator[None]:
    """Call `progress` from time to time inside the block, while the process computes or reads."""

    async def listen() -> None:
        before = process.activity()
        while True:
            await asyncio.sleep(_LISTEN_S)
            if before != (before := process.activity()):
                progress()

    task = asyncio.create_task(listen())
    try:
        yield
    finally:
        task.cancel()
