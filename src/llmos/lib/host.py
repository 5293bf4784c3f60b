"""Who and where this process is: host identity, instance id, and the records of processes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def host_id() -> str:
    """Return what two processes share when one can map the other's shared memory."""
    try:
        boot = _BOOT_ID.read_text().strip()
        mounts = os.readlink("/proc/self/ns/mnt")
    except OSError:
        boot, mounts = "", ""
    return f"{socket.gethostname()}/{boot}/{mounts}"


def new_instance() -> str:
    """Return a random id for one process life."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class ProcessRecord:
    """What is written about a running process so that another one can find and stop it.

    `started` is the process's start time: with it, a pid that the system gave to somebody else
    is not taken for ours.
    """

    name: str
    pid: int
    started: float
    address: str = ""
    log: str = ""

    @staticmethod
    def of(pid: int, name: str, address: str = "", log: str = "") -> ProcessRecord:
        """Return the record of a running process. Raises psutil.NoSuchProcess."""
        return ProcessRecord(name, pid, psutil.Process(pid).create_time(), address, log)

    def alive(self) -> bool:
        """Return whether this very process still runs (zombies do not)."""
        try:
            process = psutil.Process(self.pid)
            return (
                abs(process.create_time() - self.started) < 1
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False

    def write(self, run_dir: Path) -> Path:
        """Write it under `run_dir`/proc, atomically, and return the file."""
        folder = run_dir / "proc"
        folder.mkdir(exist_ok=True, mode=0o700)
        path = folder / f"{self.name.replace('/', '+')}.{self.pid}.json"
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(asdict(self)))
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return path

    def remove(self, run_dir: Path) -> None:
        """Remove the file."""
        name = f"{self.name.replace('/', '+')}.{self.pid}.json"
        with contextlib.suppress(FileNotFoundError):
            (run_dir / "proc" / name).unlink()


def records(run_dir: Path) -> Iterator[ProcessRecord]:
    """Yield the records of processes that still run; remove those of dead ones."""
    for path in sorted((run_dir / "proc").glob("*.json")):
        try:
            record = ProcessRecord(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            continue
        if record.alive():
            yield record
        else:
            record.remove(run_dir)
