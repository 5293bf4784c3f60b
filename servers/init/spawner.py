"""Starting processes and watching their end. Local processes now; other spawners may follow."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmos.lib.host import ProcessRecord


@dataclass(frozen=True)
class Exit:
    """How a process ended: its exit code, negative for a signal, None when nobody can know."""

    code: int | None

    def __str__(self) -> str:
        """Return it for people, e.g. `killed by SIGKILL`."""
        if self.code is None:
            return "ended (exit code unknown: it was adopted)"
        if self.code >= 0:
            return f"exit code {self.code}"
        try:
            return f"killed by {signal.Signals(-self.code).name}"
        except ValueError:
            return f"killed by signal {-self.code}"


class Handle(Protocol):
    """One running process."""

    @property
    def pid(self) -> int:
        """Its process id."""

    async def wait(self) -> Exit:
        """Return how it ended, as soon as it has; any number of callers may wait."""

    def signal(self, number: int) -> None:
        """Send it a signal; does nothing when it has ended."""


class Spawner(Protocol):
    """Where processes run."""

    def spawn(self, argv: Sequence[str], log: Path) -> Handle:
        """Start a process detached from init, its output appended to `log`. Raises OSError."""

    def adopt(self, record: ProcessRecord) -> Handle | None:
        """Return a handle to a process that another init started; None if it is gone."""


class LocalHandle:
    """A process of this host, child or not, held by a pidfd so that its pid cannot be mistaken."""

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None) -> None:
        """Open the pidfd and watch it. Needs a running loop. Raises ProcessLookupError."""
        self.pid = pid
        self._child = child
        self._fd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[Exit] = self._loop.create_future()
        self._loop.add_reader(self._fd, self._ended)

    def _ended(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        # The pidfd says that it has ended, so this reaps the child without waiting.
        self._exit.set_result(Exit(None if self._child is None else self._child.wait()))

    async def wait(self) -> Exit:
        """Return how it ended, as soon as it has."""
        return await asyncio.shield(self._exit)

    def signal(self, number: int) -> None:
        """Send it a signal; does nothing when it has ended."""
        if not self._exit.done():
            try:
                signal.pidfd_send_signal(self._fd, number)
            except ProcessLookupError:
                return  # it has ended and the loop has not seen it yet

    def release(self) -> None:
        """Stop watching; the process goes on."""
        if not self._exit.done():
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._exit.cancel()


class LocalSpawner:
    """Runs processes on this host, each in a session of its own so that it outlives init."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Give every process `environment` on top of init's own."""
        self._environment = {**os.environ, **environment}

    def spawn(self, argv: Sequence[str], log: Path) -> LocalHandle:
        """Start a process detached from init, its output appended to `log`. Raises OSError."""
        with log.open("ab") as output:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=self._environment,
            )
        return LocalHandle(child.pid, child)

    def adopt(self, record: ProcessRecord) -> LocalHandle | None:
        """Return a handle to a process that another init started; None if it is gone."""
        try:
            handle = LocalHandle(record.pid, None)
        except ProcessLookupError:
            return None
        if record.alive():  # checked with the pidfd open: from here on the pid cannot change hands
            return handle
        handle.release()
        return None
