"""Node.js processes for tests; the packages of clients/node are installed when they changed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kernel_process import end

FOLDER = Path(__file__).parents[2] / "clients/node"
CLI = FOLDER / "src/cli.js"


def require_node() -> None:
    """Skip without Node.js; install the packages where they are missing or out of date."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (`make system-deps` installs it)")
    installed, wanted = FOLDER / "node_modules/.package-lock.json", FOLDER / "package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= wanted.stat().st_mtime:
        return
    done = subprocess.run(["npm", "ci"], cwd=FOLDER, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, f"npm ci failed:\n{done.stdout}{done.stderr}"
    installed.touch()


def environment(address: str) -> dict[str, str]:
    """Return the environment of a node process that shall find the kernel at `address`."""
    return {**os.environ, "LLMOS_ADDRESS": address}


def run_node(*args: str | Path, address: str = "") -> subprocess.CompletedProcess[str]:
    """Run node to its end and return what came out."""
    return subprocess.run(
        ["node", *map(str, args)],
        cwd=FOLDER,
        env=environment(address),
        capture_output=True,
        text=True,
        timeout=100,
    )


@contextmanager
def echo_server(address: str, name: str, *keys: str) -> Iterator[subprocess.Popen[str]]:
    """Serve the echo service from node, under the keys (the empty one by default)."""
    flags = [part for key in keys for part in ("--key", key)]
    process = subprocess.Popen(
        ["node", str(CLI), "serve-echo", "--name", name, *flags],
        env=environment(address),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving"), f"the echo server said {line!r}"
        yield process
    finally:
        end(process, grace_s=10)
