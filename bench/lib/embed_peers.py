"""Starts the peers of bench/embed.py, each in its own environment under bench/.peers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parents[1]
EMBED = Path(__file__).parent / "embed"


def free_port() -> int:
    """Return a TCP port that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def python_of(peer: str) -> Path | None:
    """Return a peer's interpreter; None when it is not installed (make bench-peers)."""
    folder = BENCH / ".peers" / peer
    return folder / "bin" / "python" if (folder / ".ready").exists() else None


@contextmanager
def triton(folder: Path, minilm: Path) -> Iterator[str]:
    """Run Triton; gives its gRPC address."""
    python = python_of("pytriton")
    assert python is not None
    site = next((python.parents[1] / "lib").glob("python3*/site-packages"))
    version = site.parent.name.removeprefix("python")
    root, backends = folder / "models", folder / "backends"
    (root / "minilm" / "1").mkdir(parents=True)
    shutil.copy(EMBED / "triton_model.py", root / "minilm" / "1" / "model.py")
    (root / "minilm" / "config.pbtxt").write_text(TRITON_CONFIG)
    server = site / "pytriton" / "tritonserver"
    shutil.copytree(server / "backends", backends)
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python" / "triton_python_backend_stub")
    http, grpc = free_port(), free_port()
    command = [str(server / "bin" / "tritonserver"), "--model-repository", str(root)]
    command += ["--backend-directory", str(backends), "--allow-metrics", "false"]
    command += ["--http-port", str(http), "--grpc-port", str(grpc)]
    environment = {
        "LD_LIBRARY_PATH": f"{site / 'nvidia_pytriton.libs'}:{python.parents[1] / 'lib'}",
        "EMBED_SITE": str(site),
    }
    with process(folder / "triton.log", command, minilm, environment) as alive:
        wait(f"http://127.0.0.1:{http}/v2/health/ready", alive)
        yield f"127.0.0.1:{grpc}"


@contextmanager
def mlserver(folder: Path, minilm: Path) -> Iterator[str]:
    """Run MLServer; gives its gRPC address."""
    python = python_of("mlserver")
    assert python is not None
    http, grpc = free_port(), free_port()
    (folder / "settings.json").write_text(
        f'{{"http_port": {http}, "grpc_port": {grpc}, "metrics_port": {free_port()}, '
        '"parallel_workers": 1, "debug": false}'
    )
    (folder / "model-settings.json").write_text(
        '{"name": "minilm", "implementation": "mlserver_model.MiniLMRuntime", '
        '"max_batch_size": 32, "max_batch_time": 0.005}'
    )
    command = [str(python.parent / "mlserver"), "start", str(folder)]
    with process(folder / "mlserver.log", command, minilm, {"PYTHONPATH": str(EMBED)}) as alive:
        wait(f"http://127.0.0.1:{http}/v2/health/ready", alive)
        yield f"127.0.0.1:{grpc}"


@contextmanager
def rayserve(folder: Path, minilm: Path) -> Iterator[str]:
    """Run Ray Serve; gives its HTTP address."""
    python = python_of("rayserve")
    assert python is not None
    port = free_port()
    command = [str(python), str(EMBED / "ray_app.py"), str(port)]
    environment = {"PYTHONPATH": str(EMBED), "RAY_USAGE_STATS_ENABLED": "0"}
    with process(folder / "ray.log", command, minilm, environment) as alive:
        wait(f"http://127.0.0.1:{port}/-/healthz", alive)
        yield f"http://127.0.0.1:{port}/"


PEERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "triton": ("pytriton", triton),
    "mlserver": ("mlserver", mlserver),
    "rayserve": ("rayserve", rayserve),
}

TRITON_CONFIG = """
backend: "python"
max_batch_size: 32
dynamic_batching { max_queue_delay_microseconds: 2000 }
input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "embedding" data_type: TYPE_FP32 dims: [ 384 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""


@contextmanager
def process(
    log: Path, command: list[str], minilm: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a peer in a process group of its own, which ends with it."""
    threads = {f"{n}_NUM_THREADS": "1" for n in ("OMP", "MKL", "OPENBLAS")}
    env = {**os.environ, **threads, **environment, "MINILM": str(minilm), "EMBED_LIB": str(EMBED)}
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, stdout=out, stderr=out, env=env, start_new_session=True, cwd=log.parent
        )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended on its own
            os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def wait(url: str, child: subprocess.Popen[bytes], seconds: float = 150) -> None:
    """Wait until a URL answers 200. Raises RuntimeError."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if child.poll() is not None:
            raise RuntimeError(f"ended with {child.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"does not answer within {seconds:g} s")
