"""The real Triton Inference Server (of nvidia-pytriton) with a model of its Python backend."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

PEER = Path(__file__).parents[2] / "bench" / ".peers" / "tritonserver"


def installed() -> bool:
    """Return whether `sh scripts/bench-peers.sh tritonserver` has been run."""
    return (PEER / ".ready").exists()


@contextlib.contextmanager
def triton(folder: Path, name: str, model: str, config: str) -> Iterator[str]:
    """Serve one model; gives the gRPC address. Raises AssertionError with the log."""
    site = next((PEER / "lib").glob("python3*/site-packages"))
    server = site / "pytriton" / "tritonserver"
    version = folder / "models" / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(f"import sys\nsys.path.insert(0, {str(site)!r})\n{model}")
    (version.parent / "config.pbtxt").write_text(config)
    shutil.copytree(server / "backends", folder / "backends")
    stub = server / "python_backend_stubs" / site.parent.name.removeprefix("python")
    stub = stub / "triton_python_backend_stub"
    shutil.copy(stub, folder / "backends" / "python" / stub.name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(server / "bin" / "tritonserver"), "--model-repository", str(folder / "models")]
    command += ["--backend-directory", str(folder / "backends"), "--allow-metrics", "false"]
    command += ["--allow-http", "false", "--grpc-port", str(port), "--grpc-address", "127.0.0.1"]
    env = {**os.environ, "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs")}
    log = folder / "triton.log"
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)
    try:
        until = time.monotonic() + 60
        while True:
            assert child.poll() is None and time.monotonic() < until, log.read_text()[-4000:]
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                with contextlib.suppress(grpc.FutureTimeoutError):
                    grpc.channel_ready_future(channel).result(0.5)
                    break
        yield f"127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
