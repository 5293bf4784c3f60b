"""A real OCI registry (Debian's docker-registry) and a real S3 server (moto) for tests."""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

# bcrypt of "secret"; docker-registry takes no other hash.
_HTPASSWD = "tester:$2b$05$gCBVNut5rHJqmkKy9c2FSOe99r3e.W4ZBz1/gcNycADhoDuuVDph.\n"
LOGIN = base64.b64encode(b"tester:secret").decode()


@contextmanager
def oci_registry(folder: Path, *, login: bool = False) -> Iterator[str]:
    """Run a registry with its state in `folder`; yield HOST:PORT. Skips where it is absent."""
    binary = shutil.which("docker-registry") or shutil.which("registry")
    if binary is None:
        pytest.skip("docker-registry is not installed (scripts/system-deps.sh installs it)")
    port = _free_port()
    config = (
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/r}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    if login:
        (folder / "htpasswd").write_text(_HTPASSWD)
        config += f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
    (folder / "config.yml").write_text(config)
    with _process([binary, "serve", str(folder / "config.yml")], folder, f":{port}/v2/"):
        yield f"127.0.0.1:{port}"


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Run moto's S3 server; yield its URL. Skips where it is not installed."""
    pytest.importorskip("moto")
    pytest.importorskip("flask_cors")
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _process(command, folder, f":{port}/moto-api/"):
        yield f"http://127.0.0.1:{port}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _process(command: list[str], folder: Path, probe: str) -> Iterator[None]:
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urlopen(f"http://127.0.0.1{probe}", timeout=5).close()
                break
            except HTTPError as exc:  # it answers, though it wants a login
                exc.close()
                break
            except (URLError, OSError):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(f"did not start: {log.read_text()}") from None
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
