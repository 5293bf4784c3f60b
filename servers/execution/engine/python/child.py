"""A model's process as its worker sees it: started from its environment's zygote, asked, ended."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmos.lib import config
from llmos.lib.errors import Unavailable
from llmos.servers.execution.engine.python import host

_START_S = 60.0
_LOOK_S = 0.1
_MAX_HEADER = 1 << 20
_MAX_BODY = 2 << 30
_SIZES = host._SIZES


class Died(Exception):
    """The model's process ended; args[0] is its exit status, None when nobody knows."""


class Hung(Exception):
    """The model did nothing, or too much, with a call; args[0] says what."""


class Garbage(Exception):
    """What the model's process sent is no answer; args[0] says why."""


def socket_of(state_dir: Path, python: Path) -> Path:
    """Return where the zygote of an environment listens; another version of host.py has another."""
    said = f"{python}\0{Path(host.__file__).read_text()}".encode()
    return config.run_dir(state_dir) / f"py-{hashlib.sha256(said).hexdigest()[:10]}.sock"


class Child:
    """One process with one model. For one thread at a time, `pid`, `cpu` and `kill` apart."""

    def __init__(self, state_dir: Path, python: Path, order: Mapping[str, Any]) -> None:
        """Fork it from the zygote of its environment, which is started when there is none.

        Raises Unavailable LOAD_FAILED when the environment has no zygote.
        """
        self._line = _connect(socket_of(state_dir, python), python)
        self._sock, theirs = socket.socketpair()
        with theirs:
            said = [json.dumps(dict(order)).encode()]
            socket.send_fds(self._line, said, [theirs.fileno(), 1])
        self._said = b""
        self.pid = int(self._news().get("pid", 0))
        self._cpu = 0.0

    def ready(self, seconds: float) -> str:
        """Wait until its class is made; return "", or what it said instead.

        Raises Died, Hung, Garbage.
        """
        header, _ = self.receive(seconds, seconds)
        return str(header.get("failed", ""))

    def send(self, pieces: list[bytes], stall_s: float, call_s: float) -> None:
        """Send a message. Raises Died, Hung."""
        guard = _Guard(self, stall_s, call_s)
        for piece in pieces:
            view = memoryview(piece)
            while view:
                guard.wait(select.POLLOUT)
                try:
                    view = view[self._sock.send(view, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    continue
                except OSError:
                    raise Died(self._status()) from None

    def receive(self, stall_s: float, call_s: float) -> tuple[dict[str, Any], memoryview]:
        """Return a message: header and body. Raises Died, Hung, Garbage."""
        guard = _Guard(self, stall_s, call_s)
        head, tail = _SIZES.unpack(self._exactly(_SIZES.size, guard))
        if head > _MAX_HEADER or tail > _MAX_BODY:
            raise Garbage(f"a message of {head:,} and {tail:,} bytes")
        try:
            header = json.loads(bytes(self._exactly(head, guard)))
        except ValueError as exc:
            raise Garbage(f"a header that is no JSON ({exc})") from exc
        if not isinstance(header, dict) or not isinstance(header.get("tensors"), list):
            raise Garbage("a header without tensors")
        return header, memoryview(self._exactly(tail, guard))

    def cpu(self) -> float:
        """Return the CPU seconds it has used, to the hundredth; what it had used when it ended."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return self._cpu
        self._cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return self._cpu

    def kill(self) -> None:
        """End it: its zygote does, when the line goes."""
        self._line.close()
        self._sock.close()

    def fileno(self) -> int:
        """Return the descriptor of its socket."""
        return self._sock.fileno()

    def _exactly(self, size: int, guard: _Guard) -> bytearray:
        data = bytearray()
        while len(data) < size:
            guard.wait(select.POLLIN)
            try:
                part = self._sock.recv(min(size - len(data), 1 << 20), socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError:
                part = b""
            if not part:
                raise Died(self._status())
            data += part
            guard.moved()
        return data

    def _status(self) -> int | None:
        status = self._news().get("exited")
        return int(status) if status is not None else None

    def _news(self) -> dict[str, Any]:
        """Return the next line of the zygote; nothing when it is gone."""
        self._line.settimeout(5)
        try:
            while b"\n" not in self._said:
                if not (data := self._line.recv(4096)):
                    return {}
                self._said += data
        except OSError:
            return {}
        line, _, self._said = self._said.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found


class _Guard:
    """Whether a call gets on: it uses CPU, or bytes come."""

    def __init__(self, child: Child, stall_s: float, call_s: float) -> None:
        """Begin."""
        self._child = child
        self._stall_s, self._call_s = stall_s, call_s
        self._began = self._last = time.monotonic()
        self._cpu = -1.0

    def moved(self) -> None:
        """Note that bytes have come."""
        self._last = time.monotonic()

    def wait(self, event: int) -> None:
        """Return when the socket is ready. Raises Hung."""
        poll = select.poll()
        poll.register(self._child.fileno(), event)
        while not poll.poll(_LOOK_S * 1000):
            now, cpu = time.monotonic(), self._child.cpu()
            if cpu != self._cpu:
                self._cpu, self._last = cpu, now
            if now - self._last > self._stall_s:
                raise Hung(f"used no CPU for {self._stall_s:g} s")
            if now - self._began > self._call_s:
                raise Hung(f"was not done after {self._call_s:g} s")


def _connect(path: Path, python: Path) -> socket.socket:
    deadline = time.monotonic() + _START_S
    started = 0.0
    while True:
        line = socket.socket(socket.AF_UNIX)
        try:
            line.connect(str(path))
            return line
        except (FileNotFoundError, ConnectionRefusedError):
            line.close()
        if time.monotonic() > deadline:
            raise Unavailable(
                "LOAD_FAILED", f"The environment of {python} does not start within {_START_S:g} s."
            )
        if time.monotonic() - started > 5:  # also when one has ended just now
            _spawn(path, python)
            started = time.monotonic()
        time.sleep(0.02)


def _spawn(path: Path, python: Path) -> None:
    """Start a zygote; it goes to the background by itself."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LLMOS_"))}
    env["OPENBLAS_NUM_THREADS"] = "1"  # no thread may exist when it forks
    done = subprocess.run(
        [str(python), "-I", host.__file__, str(path)],
        env=env,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=_START_S,
        check=False,
    )
    if done.returncode:
        words = " ".join(done.stderr.decode(errors="replace").split())[-300:]
        raise Unavailable("LOAD_FAILED", f"{python} cannot run models: {words}.")


def how_it_ended(status: int | None) -> str:
    """Return it for people."""
    if status is None:
        return "ended"
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"exited with status {status}"
