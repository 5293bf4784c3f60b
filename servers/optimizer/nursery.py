"""The server's end of the zygote: orders jobs from it, and knows how they are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Protocol

from llmos.api.optimizer.v1 import process_pb2 as pb
from llmos.servers.optimizer.environment import environment
from llmos.servers.optimizer.folder import Folder

COMMAND = (sys.executable, "-m", "llmos.servers.optimizer.zygote")
_REST_S = 60.0  # without an order: then its memory is given back
_LOOK_S = 1.0  # at one that is to end


logger = logging.getLogger(__name__)


class Process(Protocol):
    """A job's process."""

    def pid(self) -> int:
        """Return its id; 0 when it is not known (yet)."""

    def alive(self) -> bool:
        """Return whether it runs."""

    def ending(self) -> str:
        """Return how it ended, for people; call it when it does not run any more."""

    def signal(self, number: int) -> None:
        """Send a signal to it and its children; nothing happens when it has ended."""


class Nursery:
    """Owns one zygote at a time; used within an event loop."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        """Start nothing yet."""
        self._command = list(command)
        self._nest: _Nest | None = None
        self._dropped: list[_Nest] = []
        self._serial = 0
        self._useless = False
        self._timer: asyncio.TimerHandle | None = None

    def start(
        self, folder: Folder, modules: Sequence[str], lock: int, log: int, orphan: Process
    ) -> Forked | None:
        """Order a job; return None when that is not possible. The descriptors stay the caller's.

        orphan: the same job as one knows it that another server has started, by what it tells.
        """
        self._dropped = [nest for nest in self._dropped if not nest.gone()]
        self._serial += 1
        if self._nest is not None and self._nest.useless():
            logger.warning("jobs are spawned: the process that should fork them ends at once")
            self._useless = True
            self._drop()
        if self._useless:
            return None
        order = pb.ForkOrder(serial=self._serial, folder=str(folder.path), modules=modules)
        for _ in range(2):  # the zygote may have died since the last order
            try:
                if self._nest is None or self._nest.closed():
                    self._drop()
                    self._nest = _Nest(self._command)
                self._nest.order(order, lock, log)
            except BlockingIOError:
                return None
            except OSError:
                self._drop()
                continue
            self._rest_later()
            return Forked(self._nest, self._serial, orphan)
        return None

    def close(self) -> None:
        """Let the zygote end when its jobs have ended; they go on."""
        if self._timer is not None:
            self._timer.cancel()
        self._drop()

    def _drop(self) -> None:
        if self._nest is not None:
            self._nest.drop()
            self._dropped.append(self._nest)
            self._nest = None

    def _rest_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_REST_S, self._rest)

    def _rest(self) -> None:
        if self._nest is not None and self._nest.busy():
            self._rest_later()
        else:
            self.close()
            self._bury()

    def _bury(self) -> None:
        """See those that were told to end through to it; else they stay as zombies."""
        self._dropped = [nest for nest in self._dropped if not nest.gone()]
        if self._dropped and self._nest is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._bury)


class Forked:
    """A job's process that a zygote made, or is about to make (see Process)."""

    def __init__(self, nest: _Nest, serial: int, orphan: Process) -> None:
        """Take what orders and answers are known by. orphan: what it is without the zygote."""
        self._nest, self._serial, self._orphan = nest, serial, orphan
        self._signal = 0  # asked for before there was a process

    def pid(self) -> int:
        """Return its id; 0 when it is not known (yet)."""
        self._nest.read()
        pid = self._nest.pids.get(self._serial, 0)
        if not pid and self._nest.closed():  # it may have died before it could say
            pid = self._orphan.pid()
        if pid and self._signal:
            number, self._signal = self._signal, 0
            self.signal(number)
        return pid

    def alive(self) -> bool:
        """Return whether it runs, or will."""
        self.pid()
        if self._serial in self._nest.statuses:
            return False
        return self._orphan.alive() if self._nest.closed() else True

    def ending(self) -> str:
        """Return how it ended, for people."""
        status = self._nest.statuses.get(self._serial)
        if status is None:
            return "with the process that had started it"
        if status >= 0:
            return f"with exit status {status}"
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-status).name}"
        return f"by signal {-status}"

    def signal(self, number: int) -> None:
        """Send a signal to it and its children, as soon as there is one."""
        if (pid := self.pid()) == 0:
            self._signal = number
        elif self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)


class _Nest:
    """One zygote: its socket, and what it said by serial number."""

    def __init__(self, command: list[str]) -> None:
        """Start it. Raises OSError."""
        self.pids: dict[int, int] = {}
        self.statuses: dict[int, int] = {}
        self._ordered: set[int] = set()
        self._closed = self._reaped = False
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        try:
            # Not this server's output: whoever reads that must not wait for jobs.
            null = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
            actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0), null]
            self._pid = os.posix_spawn(command[0], command, environment(), file_actions=actions)
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()

    def order(self, order: pb.ForkOrder, lock: int, log: int) -> None:
        """Send it. Raises OSError, BlockingIOError while it has too much to do."""
        socket.send_fds(self._socket, [order.SerializeToString()], [lock, log])
        self._ordered.add(order.serial)

    def read(self) -> None:
        """Take in what it said."""
        while not self._closed:
            try:
                data = self._socket.recv(4096)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self._closed = True
                self._socket.close()
                break
            answer = pb.ForkAnswer.FromString(data)
            if answer.HasField("pid"):
                self.pids[answer.serial] = answer.pid
            else:
                self.statuses[answer.serial] = answer.status
        if self._closed and not self._reaped:
            self._reaped = os.waitpid(self._pid, os.WNOHANG)[0] != 0

    def gone(self) -> bool:
        """Say whether it has ended and nothing is left of it."""
        self.read()
        return self._reaped

    def closed(self) -> bool:
        """Say whether it is gone."""
        self.read()
        return self._closed

    def useless(self) -> bool:
        """Say whether it ended without having made a process."""
        return self.closed() and not self.pids

    def busy(self) -> bool:
        """Say whether it has jobs."""
        self.read()
        return not self._closed and bool(self._ordered - self.statuses.keys())

    def drop(self) -> None:
        """Order nothing more; it ends after its last job."""
        if self.busy():
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
        elif not self._closed:
            self._socket.close()
            self._closed = True
