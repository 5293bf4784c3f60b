"""A process held by a descriptor: no signal can hit another process that got its number."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal

import psutil


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

    def used_bytes(self) -> int:
        """Return its proportional set size, bytes; 0 when it has ended. Takes milliseconds."""
        try:
            return int(psutil.Process(self.pid).memory_full_info().pss)
        except psutil.Error:
            return 0

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
