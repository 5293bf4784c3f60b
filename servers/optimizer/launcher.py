"""Starts, finds again and ends job processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from llmos.lib.host import ProcessRecord, records
from llmos.servers.optimizer.environment import environment
from llmos.servers.optimizer.folder import Folder
from llmos.servers.optimizer.nursery import Nursery, Process

_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND
COMMAND = (sys.executable, "-m", "llmos.servers.optimizer.job")


class Launcher:
    """Makes processes of `command` + the job's folder, each in a session of its own."""

    def __init__(
        self, run_dir: Path, command: Sequence[str] = COMMAND, nursery: Nursery | None = None
    ) -> None:
        """Keep process records under `run_dir`. nursery: forks what `command` would do."""
        self._run_dir = run_dir
        self._command = list(command)
        self._nursery = nursery

    def start(self, job: str, folder: Folder, modules: Sequence[str] = ()) -> Process:
        """Start a process. Raises OSError, e.g. when there is no room for its files.

        modules: what it is going to import, for the nursery.
        """
        # The lock goes along as its standard input: held from here to its end without a gap, also
        # when this server dies right now.
        with contextlib.ExitStack() as stack:
            lock = folder.lock()
            stack.callback(os.close, lock)
            log = os.open(folder.log, _APPEND | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, log)
            if self._nursery is not None:
                orphan = _Adopted(self._run_dir, job, folder)
                forked = self._nursery.start(folder, modules, lock, log, orphan)
                if forked is not None:
                    return forked
            pid = os.posix_spawn(
                self._command[0],
                [*self._command, str(folder.path)],
                environment(),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, lock, 0),
                    (os.POSIX_SPAWN_DUP2, log, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
            )
        with contextlib.suppress(OSError, psutil.Error):  # it writes its record itself as well
            ProcessRecord.of(pid, f"job/{job}", log=str(folder.log)).write(self._run_dir)
        return _Child(pid)

    def find(self, job: str, folder: Folder) -> Process | None:
        """Return the job's process that an earlier server started, if it still runs."""
        return _Adopted(self._run_dir, job, folder) if folder.locked() else None


class _Child:
    """A process that this server started."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._status: int | None = None  # negative: a signal

    def pid(self) -> int:
        return self._pid

    def alive(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is None

    def ending(self) -> str:
        if self._status is None or self._status >= 0:
            return f"with exit status {self._status}"
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-self._status).name}"
        return f"by signal {-self._status}"

    def signal(self, number: int) -> None:
        if self.alive():
            _to_group(self._pid, number)


class _Adopted:
    """A process that an earlier server started; it is known by its record and its lock."""

    def __init__(self, run_dir: Path, job: str, folder: Folder) -> None:
        self._run_dir = run_dir
        self._name = f"job/{job}"
        self._folder = folder
        self._signal = 0  # asked for before there was a record

    def pid(self) -> int:
        found = [r for r in records(self._run_dir) if r.name == self._name]
        pid = found[-1].pid if found else 0
        if pid and self._signal:
            number, self._signal = self._signal, 0
            _to_group(pid, number)
        return pid

    def alive(self) -> bool:
        return self._folder.locked()

    def ending(self) -> str:
        return "for a reason that only the server before this one could have seen"

    def signal(self, number: int) -> None:
        if pid := self.pid():
            _to_group(pid, number)
        else:
            self._signal = number


def _to_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def new_id(after: str) -> str:
    """Return a job id that sorts after `after` and by time: UTC to the millisecond."""
    while True:
        now = time.time()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}"
        if stamp > after:
            return stamp
        time.sleep(0.001)
