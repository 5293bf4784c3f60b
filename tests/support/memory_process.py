"""Real kernel and memory processes for tests, which end with them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from llmos.lib.config import run_dir, socket_address
from llmos.servers.memory import shm


class Processes:
    """The processes of one state directory, by name. Use as a context."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.shm = shm.locate("", state_dir, run_dir(state_dir))
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.environment: dict[str, str] = {}  # of those that are started from now on

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for name in reversed(list(self._running)):
            self.stop(name)
        shutil.rmtree(self.shm, ignore_errors=True)

    def address(self, name: str) -> str:
        return socket_address(self.state_dir, name)

    def log(self, name: str) -> str:
        return (self.state_dir / f"{name}.log").read_text()

    def start(self, name: str, *flags: str) -> None:
        """Start `kernel` or a server; return when it listens."""
        module = "llmos.kernel" if name == "kernel" else f"llmos.servers.{name}"
        flags += ("--tcp", "none") if name == "kernel" else ()
        self.spawn(name, [sys.executable, "-m", module, "--state-dir", str(self.state_dir), *flags])
        until = time.monotonic() + 30
        while not _listens(self.address(name).removeprefix("unix:")):
            code = self._running[name].poll()
            assert code is None, f"{name} exited with {code}: {self.log(name)}"
            assert time.monotonic() < until, f"{name} does not listen: {self.log(name)}"
            time.sleep(0.02)

    def spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Start any program under a name; its stdout is a pipe. What it forks ends with it."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")}
        env |= self.environment
        with (self.state_dir / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=env, start_new_session=True
            )
        self._running[name] = process
        return process

    def runs(self, name: str) -> bool:
        """Return whether it was started and not ended by us."""
        return name in self._running

    def kill(self, name: str) -> None:
        self._end(name, signal.SIGKILL)

    def stop(self, name: str) -> int:
        return self._end(name, signal.SIGTERM)

    def _end(self, name: str, number: signal.Signals) -> int:
        process = self._running.pop(name)
        (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if process.stdout is not None:
                process.stdout.close()


async def line_of(pipe: IO[Any], seconds: float = 100.0) -> bytes:
    """Return the next line of a pipe that nobody else reads.

    Without a thread: one that waits for a line that never comes keeps pytest from ending the test.
    """
    loop, line = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(seconds):
        while not line.endswith(b"\n"):
            readable = asyncio.Event()
            loop.add_reader(pipe.fileno(), readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(pipe.fileno())
            if not (byte := os.read(pipe.fileno(), 1)):
                break
            line += byte
    return bytes(line)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
