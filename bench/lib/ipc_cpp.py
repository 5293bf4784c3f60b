"""The floor that asks most: a gRPC echo server in C++, loaded by h2load, itself in C++.

Debian has the parts: g++, pkg-config, libgrpc++-dev, nghttp2-client.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).with_name("echo.cc")
_RATE = re.compile(r"^finished in .*?, ([\d.]+) req/s", re.MULTILINE)
_DONE = re.compile(r"^requests: .* (\d+) succeeded, (\d+) failed", re.MULTILINE)


def _built(folder: Path) -> Path | None:
    if not all(map(shutil.which, ("g++", "pkg-config", "h2load"))):
        return None
    asked = ["pkg-config", "--cflags", "--libs", "grpc++"]
    flags = subprocess.run(asked, capture_output=True, text=True)
    if flags.returncode:
        return None
    binary = folder / "echo"
    subprocess.run(
        ["g++", "-O2", "-std=c++17", str(SOURCE), "-o", str(binary), *flags.stdout.split()],
        check=True,
    )
    return binary


@contextmanager
def cpp_echo(folder: Path) -> Iterator[Callable[[int, int], float] | None]:
    """Run the server; yield what loads it, or None where the parts are absent.

    load(outstanding, seconds) returns the calls a second, with 128-byte payloads.
    """
    binary = _built(folder)
    if binary is None:
        yield None
        return
    socket, body = folder / "cpp.sock", folder / "cpp.body"
    body.write_bytes(b"\0" + (128).to_bytes(4, "big") + bytes(128))
    process = subprocess.Popen([str(binary), f"unix:{socket}"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None

    def load(outstanding: int, seconds: int) -> float:
        command = ["h2load", "-c", "1", "-t", "1", "-m", str(outstanding), "-D", str(seconds)]
        command += ["-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers"]
        command += ["-B", f"unix:{socket}", "http://localhost/llmos.bench.Echo/Echo"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rate, done = _RATE.search(said), _DONE.search(said)
        if rate is None or done is None or not int(done[1]) or int(done[2]):
            raise RuntimeError(f"h2load did not get its answers: {said}")
        return float(rate[1])

    try:
        assert process.stdout.readline() == "ready\n"
        yield load
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
