"""A real llmos-storage process for tests, which ends with them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import forked
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmos.lib.config import socket_address

Process = subprocess.Popen[bytes] | forked.Forked


def command(state_dir: Path, *flags: str) -> list[str]:
    """Return the command line of a storage server that runs alone."""
    python = [sys.executable, "-m", "llmos.servers.storage"]
    return [*python, "--state-dir", str(state_dir), "--kernel", "none", *flags]


def start(
    state_dir: Path,
    *flags: str,
    extra: Mapping[str, str] | None = None,
    fresh: bool = False,
) -> Process:
    """Start a server and return it when it serves.

    extra: environment variables. fresh: by exec, which takes a second of imports; else by fork.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")}
    env |= extra or {}
    log = state_dir / "storage.log"
    words = command(state_dir, *flags)
    process: Process
    with log.open("ab") as output, Path(os.devnull).open() as nothing:
        if fresh:
            process = subprocess.Popen(words, stdout=output, stderr=output, env=env)
        else:
            files = [nothing.fileno(), output.fileno(), output.fileno()]
            process = forked.start(words[2], words[3:], env, files)
    try:
        _wait(process, socket_address(state_dir, "storage"), log)
    except BaseException:  # also a failed assertion, a timeout or Ctrl-C: no server is left behind
        process.kill()
        process.wait()
        raise
    return process


@contextmanager
def storage(state_dir: Path, *flags: str) -> Iterator[Process]:
    """Run a server; end it in any case."""
    process = start(state_dir, *flags)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: Process, address: str, log: Path) -> None:
    deadline = time.monotonic() + 90
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < deadline and process.poll() is None:
            try:
                stub.Check(health_pb2.HealthCheckRequest(), timeout=5, wait_for_ready=True)
                return
            except grpc.RpcError:
                time.sleep(0.02)
    raise RuntimeError(f"storage did not start: {log.read_text()}")
