"""A kernel that cannot start says why in one sentence; what a dead one left is taken over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_process import KernelProcess


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[KernelProcess]:
    process = KernelProcess(tmp_path)
    process.start()
    try:
        yield process
    finally:
        process.stop()


def refused(*flags: str, state_dir: Path) -> str:
    """Start a kernel, which must fail; return its one sentence."""
    command = [sys.executable, "-m", "llmos.kernel", "--state-dir", str(state_dir), *flags]
    env = {k: v for k, v in os.environ.items() if not k.startswith("LLMOS_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=env)
    lines = done.stderr.splitlines()
    told = [line for line in lines if not line.startswith("{")]  # the rest is the log
    assert done.returncode == 1 and len(told) == 1, done.stderr
    assert told[0].startswith("llmos-kernel: ")
    return told[0]


def test_an_address_in_use(kernel: KernelProcess, tmp_path: Path) -> None:
    said = refused("--tcp", "none", state_dir=kernel.state_dir)
    assert "already listens" in said
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        said = refused("--tcp", address, state_dir=tmp_path / "other")
    assert address in said and "--tcp" in said
    assert not list((tmp_path / "other").glob("run/*.sock"))
    assert kernel._listens()


def test_a_socket_left_by_a_killed_kernel(kernel: KernelProcess) -> None:
    path = Path(kernel.address.removeprefix("unix:"))
    kernel.kill()
    assert path.exists()
    kernel.start()
    kernel.stop()
    assert not path.exists()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refused("--tcp", "none", state_dir=tmp_path / "file")
    assert str(tmp_path / "file") in said
    said = refused("--tcp", "none", "--listen", f"unix:{tmp_path}/no/k.sock", state_dir=tmp_path)
    assert f"{tmp_path}/no/k.sock" in said
    said = refused("--tcp", "none", "--record", f"{tmp_path}/no/x.rec", state_dir=tmp_path)
    assert f"{tmp_path}/no/x.rec" in said
