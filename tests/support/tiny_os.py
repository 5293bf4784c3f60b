"""An LLM OS of tiny servers, driven by the real llmos-ctl and the real llmos-init."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ctl_forked
import grpc

from llmos.api.init.v1 import init_pb2, init_pb2_grpc
from llmos.clients.ctl.output import as_value
from llmos.clients.ctl.session import connects
from llmos.lib.config import run_dir
from llmos.lib.family import members

SERVER = Path(__file__).with_name("tiny_server.py")


def server(name: str, *after: str, dies_after_s: float | None = None) -> str:
    """Return the manifest's table of a tiny server."""
    words = ["{python}", str(SERVER), name, "{state_dir}"]
    if dies_after_s is not None:
        words.append(str(dies_after_s))
    return f"[processes.{name}]\nafter = {json.dumps(after)}\ncommand = {json.dumps(words)}\n"


class TinyOS:
    """One state directory with a manifest."""

    def __init__(self, folder: Path, manifest: str) -> None:
        self.state_dir = folder / "state"
        self.config = folder / "llmos.toml"
        self.config.write_text("version = 1\n" + manifest)

    def ctl(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run llmos-ctl to its end."""
        return ctl_forked.run(
            *("--state-dir", str(self.state_dir), *words),
            env={**os.environ, "LLMOS_CONFIG": str(self.config), **env},
            timeout=90,
        )

    def up(self) -> subprocess.CompletedProcess[str]:
        """Run `up`, which must succeed."""
        done = self.ctl("up")
        assert done.returncode == 0, done.stderr
        return done

    def ps(self) -> dict[str, dict[str, Any]]:
        """Return what init lists, by name."""
        with grpc.insecure_channel(f"unix:{run_dir(self.state_dir)}/init.sock") as channel:
            request = init_pb2.ListProcessesRequest()
            reply = init_pb2_grpc.InitStub(channel).ListProcesses(request, timeout=10)
        return {process.name: as_value(process) for process in reply.processes}

    def pid(self, name: str) -> int:
        """Return the pid of a running process, from its record."""
        (record,) = (r for r in members(run_dir(self.state_dir)) if r.name == name)
        return record.pid

    def until(self, what: Callable[[dict[str, dict[str, Any]]], bool], limit_s: float = 20) -> Any:
        """Wait until `ps` is so; return it."""
        deadline = time.monotonic() + limit_s
        while not what(processes := self.ps()):
            assert time.monotonic() < deadline, processes
            time.sleep(0.1)
        return processes

    def alive(self) -> list[str]:
        """Return the names of all its processes that run."""
        return sorted(r.name for r in members(run_dir(self.state_dir)))

    def end_init(self) -> None:
        """Kill init, and its stand-in first, so that nobody supervises."""
        for name in ("stand-in", "init"):
            os.kill(self.pid(name), signal.SIGKILL)

    def wait_for(self, names: list[str], limit_s: float = 20, gone: int = 0) -> None:
        """Wait until exactly these processes run and the pid `gone` does not.

        With init its stand-in is expected as well, and that it answers.
        """
        deadline = time.monotonic() + limit_s
        wanted = [*names, "stand-in"] if "init" in names else names
        while (
            self.alive() != wanted
            or gone in (record.pid for record in members(run_dir(self.state_dir)))
            or ("init" in names and not connects(run_dir(self.state_dir) / "init.sock"))
        ):
            assert time.monotonic() < deadline, self.alive()
            time.sleep(0.05)

    def log(self, name: str) -> str:
        """Return a log file's text."""
        return (self.state_dir / "logs" / f"{name}.log").read_text()

    def kill_all(self) -> None:
        """End everything, init first so that it restarts nothing."""
        if not self.state_dir.is_dir():
            return
        for record in sorted(self.found(), key=lambda r: r.name != "init"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGKILL)

    def found(self) -> list[Any]:
        """Return the records of all its processes."""
        return list(members(run_dir(self.state_dir)))


@contextlib.contextmanager
def tiny_os(folder: Path, manifest: str) -> Iterator[TinyOS]:
    """Make one; whatever the test does, nothing of it runs afterwards."""
    system = TinyOS(folder, manifest)
    try:
        yield system
    finally:
        system.kill_all()
