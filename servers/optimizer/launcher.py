"""Starts, finds again and ends job processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from llmos.lib.host import ProcessRecord, records
from llmos.servers.optimizer.folder import Folder

COMMAND = (sys.executable, "-m", "llmos.servers.optimizer.job")


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


class Launcher:
    """Makes processes of `command` + the job's folder, each in a session of its own."""

    def __init__(self, run_dir: Path, command: Sequence[str] = COMMAND) -> None:
        """Keep process records under `run_dir`."""
        self._run_dir = run_dir
        self._command = list(command)

    def start(self, job: str, folder: Folder) -> Process:
        """Start a process. Raises OSError, e.g. when there is no room for its files."""
        lock = folder.lock()
        try:
            with folder.log.open("ab") as log:
                # The lock goes along as its standard input: held from here to its end without a
                # gap, also when this server dies right now.
                child = subprocess.Popen(
                    [*self._command, str(folder.path)],
                    stdin=lock,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        finally:
            os.close(lock)
        process = _Job(self._run_dir, job, folder, child)
        with contextlib.suppress(OSError):  # it writes its record itself as well
            ProcessRecord.of(child.pid, f"job/{job}", log=str(folder.log)).write(self._run_dir)
        return process

    def find(self, job: str, folder: Folder) -> Process | None:
        """Return the job's process that an earlier server started, if it still runs."""
        return _Job(self._run_dir, job, folder, None) if folder.locked() else None


class _Job:
    def __init__(
        self, run_dir: Path, job: str, folder: Folder, child: subprocess.Popen[bytes] | None
    ) -> None:
        self._run_dir = run_dir
        self._name = f"job/{job}"
        self._folder = folder
        self._child = child

    def pid(self) -> int:
        if self._child is not None:
            return self._child.pid
        record = self._record()
        return record.pid if record is not None else 0

    def alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return self._folder.locked()

    def ending(self) -> str:
        if self._child is None or self._child.returncode is None:
            return "for an unknown reason"
        code = self._child.returncode
        if code >= 0:
            return f"with exit status {code}"
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
        return f"by signal {-code}"

    def signal(self, number: int) -> None:
        if self._child is not None:
            pid = self._child.pid if self._child.poll() is None else 0
        else:
            record = self._record()
            pid = record.pid if record is not None else 0
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)

    def _record(self) -> ProcessRecord | None:
        found = [r for r in records(self._run_dir) if r.name == self._name]
        return found[-1] if found else None


def new_id(after: str) -> str:
    """Return a job id that sorts after `after` and by time: UTC to the millisecond."""
    while True:
        now = time.time()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}"
        if stamp > after:
            return stamp
        time.sleep(0.001)
