"""A real kernel process for tests, which ends with them and can be killed on the way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from llmos.lib.config import socket_address


class KernelProcess:
    """One kernel in a state directory; `start` again after `kill`."""

    def __init__(self, state_dir: Path, python: str | Path = sys.executable) -> None:
        self.state_dir = state_dir
        self.python = str(python)
        self.address = socket_address(state_dir, "kernel")
        self.log = state_dir / "kernel.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it listens."""
        command = [self.python, "-m", "llmos.kernel", "--tcp", "none"]
        command += ["--state-dir", str(self.state_dir)]
        env = {k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")}
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, env=env)
        deadline = time.monotonic() + 30
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the kernel did not start: {self.log.read_text()}")
            time.sleep(0.02)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.address.removeprefix("unix:"))
            except OSError:
                return False
            return True

    def kill(self) -> None:
        """As `kill -9`."""
        end(self._process, grace_s=0)

    def stop(self) -> None:
        """End it, whatever state it is in."""
        end(self._process, grace_s=10)


def end(process: subprocess.Popen[bytes] | subprocess.Popen[str] | None, grace_s: float) -> None:
    """Terminate a process, kill it after `grace_s`, and close its pipes."""
    if process is None:
        return
    if grace_s:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            pass
    process.kill()
    process.wait()
    pipes: list[IO[bytes] | IO[str] | None] = [process.stdin, process.stdout, process.stderr]
    for pipe in pipes:
        if pipe is not None:
            pipe.close()
