"""A real gateway process for tests, which ends with them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmos.lib.config import run_dir


@dataclass
class Gateway:
    """A running gateway."""

    url: str
    process: subprocess.Popen[bytes]
    state_dir: Path
    log: Path

    def log_text(self) -> str:
        return self.log.read_text()


@contextmanager
def gateway(state_dir: Path, execution: str, *flags: str) -> Iterator[Gateway]:
    """Run a gateway against the Execution service at an address."""
    alone = ("--kernel", "none", "--peers", f"execution={execution}")
    with kernel_gateway(state_dir, *alone, *flags) as running:
        yield running


@contextmanager
def kernel_gateway(state_dir: Path, *flags: str) -> Iterator[Gateway]:
    """Run a gateway that attaches to the state directory's kernel."""
    state_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "llmos.servers.gateway", "--state-dir", str(state_dir)]
    command += ["--port", "0", *flags]
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")}
    log = state_dir / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output, stdout=output, env=env)
    try:
        yield Gateway(_wait_for_address(process, state_dir, log), process, state_dir, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_address(process: subprocess.Popen[bytes], state_dir: Path, log: Path) -> str:
    path = run_dir(state_dir) / "gateway.address"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if path.exists():
            return f"http://{path.read_text().strip()}"
        time.sleep(0.02)
    raise RuntimeError(f"the gateway did not start: {log.read_text()}")
