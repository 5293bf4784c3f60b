"""The zygote of one Python environment: forks a process for each model that brings a class.

    ENVIRONMENT/bin/python -I host.py SOCKET

Runs by the interpreter of that environment, so it needs nothing of LLM OS: Python 3.9 and NumPy
are enough. A worker connects to SOCKET and sends one line of JSON with two descriptors: the
socket on which the model will talk to it, and where the model's own output goes. It gets lines of
JSON: {"pid": ...}, and {"exited": ...} when the model's process ended (negative: by a signal).
When the worker hangs up its model is killed. Ends by itself when nobody was connected for a while.

On the socket of the model every message is the length of a header (4 bytes, little endian), the
length of a body (8 bytes), the header (JSON) and the body: the elements of the tensors that the
header lists, one after the other. Elements of text and bytes have their length (4 bytes) before
them.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any

_IDLE_S = 8.0
_SIZES = struct.Struct("<IQ")
_LENGTH = struct.Struct("<I")
_MAX_ORDER = 1 << 16
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


class Given:
    """What a model's class is made with.

    name: `name@version`. folder: the version's files, read-only. device: `cpu` or `cuda:0`.
    threads: how many it should compute with.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        """Take it from the worker's order."""
        self.name = str(order["name"])
        self.folder = Path(order["folder"])
        self.device = str(order["device"])
        self.threads = int(order["threads"])


def pack(array: Any) -> tuple[dict[str, Any], bytes]:
    """Return what a header says about an array (its name apart), and its elements."""
    if array.dtype == object:
        items = list(array.reshape(-1))
        text = all(isinstance(item, str) for item in items)
        parts = [item.encode() if isinstance(item, str) else bytes(item) for item in items]
        data = b"".join(_LENGTH.pack(len(part)) + part for part in parts)
        return {"dtype": "text" if text else "bytes", "shape": list(array.shape)}, data
    return {"dtype": array.dtype.str, "shape": list(array.shape)}, array.tobytes()


def unpack(numpy: Any, tensors: list[dict[str, Any]], body: Any) -> dict[str, Any]:
    """Return the arrays in a message. Raises ValueError, KeyError, TypeError when it is garbage."""
    found, at = {}, 0
    for tensor in tensors:
        data = body[at : at + tensor["size"]]
        at += tensor["size"]
        if tensor["dtype"] in ("text", "bytes"):
            items = _items(data, tensor["dtype"] == "text")
            array = numpy.empty(len(items), object)
            array[:] = items
        else:
            array = numpy.frombuffer(data, tensor["dtype"])
        found[tensor["name"]] = array.reshape(tensor["shape"])
    if at != len(body):
        raise ValueError(f"{len(body)} bytes for tensors of {at}")
    return found


def _items(data: Any, text: bool) -> list[Any]:
    items: list[Any] = []
    at = 0
    while at < len(data):
        if len(data) - at < _LENGTH.size:
            raise ValueError("elements end early")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if size > len(data) - at:
            raise ValueError("elements end early")
        part = bytes(data[at : at + size])
        items.append(part.decode() if text else part)
        at += size
    return items


def frame(header: dict[str, Any], arrays: dict[str, Any]) -> list[bytes]:
    """Return a message in pieces."""
    tensors, parts = [], []
    for name, array in arrays.items():
        said, data = pack(array)
        tensors.append({"name": name, "size": len(data), **said})
        parts.append(data)
    line = json.dumps({**header, "tensors": tensors}).encode()
    return [_SIZES.pack(len(line), sum(map(len, parts))), line, *parts]


class _Zygote:
    """One thread; the loop that forks, reaps and tells."""

    def __init__(self, path: str) -> None:
        """Listen. Raises OSError (BlockingIOError when another one serves)."""
        self._path = path
        self._lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.exists(path):
            os.unlink(path)  # of a dead one: the lock is ours
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._lines: dict[socket.socket, int] = {}  # connection -> pid, 0 before the order
        self._selector = selectors.DefaultSelector()
        for sock in (self._listener, self._wake):
            self._selector.register(sock, selectors.EVENT_READ)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        used = time.monotonic()
        while os.path.exists(self._path):
            for key, _ in self._selector.select(1.0):
                sock = key.fileobj
                if sock is self._listener:
                    line, _ = self._listener.accept()
                    self._lines[line] = 0
                    self._selector.register(line, selectors.EVENT_READ)
                elif sock is self._wake:
                    self._wake.recv(4096)
                    self._reap()
                elif isinstance(sock, socket.socket):
                    self._read(sock)
            if self._lines:
                used = time.monotonic()
            elif time.monotonic() - used > _IDLE_S:
                break
        if os.path.exists(self._path):
            os.unlink(self._path)

    def _read(self, line: socket.socket) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(line, _MAX_ORDER, 2)
        except OSError:
            data, fds = b"", []
        if not data or self._lines[line] or len(fds) != 2:
            for fd in fds:
                os.close(fd)
            self._hang_up(line)
            return
        order = json.loads(data)
        pid = os.fork()
        if pid == 0:
            self._forget()
            _be_model(order, *fds)  # never returns
        for fd in fds:
            os.close(fd)
        self._lines[line] = pid
        self._tell(line, {"pid": pid})

    def _hang_up(self, line: socket.socket) -> None:
        self._selector.unregister(line)
        line.close()
        if pid := self._lines.pop(line):
            os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for line, owned in list(self._lines.items()):
                if owned == pid:
                    self._lines[line] = 0  # the number may be another process's soon
                    self._tell(line, {"exited": _code(status)})
                    self._hang_up(line)

    def _tell(self, line: socket.socket, said: dict[str, int]) -> None:
        try:
            line.sendall(json.dumps(said).encode() + b"\n")
        except OSError:
            return  # its worker is gone; the next read says so

    def _forget(self) -> None:
        """In a child: let go of what is the zygote's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for sock in (self._listener, self._wake, self._waker, *self._lines):
            sock.close()
        self._selector.close()
        os.close(self._lock)


def _code(status: int) -> int:
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _be_model(order: dict[str, Any], data: int, out: int) -> None:
    code = 1
    try:
        libc = ctypes.CDLL(None)
        # When the zygote dies nobody else could end a model that its worker has left.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NAME, b"llmos-python", 0, 0, 0)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.close(null)
        os.close(out)
        os.environ["OMP_NUM_THREADS"] = str(order["threads"])
        if order["cpus"]:
            os.sched_setaffinity(0, order["cpus"])
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit = _data_bytes() + int(order["memory_bytes"])
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        code = _serve_model(order, socket.socket(fileno=data))
    except BaseException:  # outermost: nothing may return into the zygote's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _data_bytes() -> int:
    """Return what this process holds of what RLIMIT_DATA counts."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def _serve_model(order: dict[str, Any], sock: socket.socket) -> int:
    try:
        import numpy

        sys.dont_write_bytecode = True  # the folder is the version's, not ours to write into
        sys.path.insert(0, order["folder"])
        module, _, name = str(order["class"]).partition(":")
        model = getattr(importlib.import_module(module), name)(Given(order))
        predict = model.predict
    except BaseException as exc:  # whatever the model's code raises, its worker is told
        traceback.print_exc()
        _send(sock, {"failed": _line(exc)}, {})
        return 1
    _send(sock, {"ready": sys.version.split()[0]}, {})
    while (message := _receive(sock)) is not None:
        header, body = message
        try:
            given = unpack(numpy, header["tensors"], body)
            answer = predict(given)
            if not isinstance(answer, dict):
                raise TypeError(f"predict returned a {type(answer).__name__}, not a dict")
            arrays = {str(k): numpy.asarray(v) for k, v in answer.items()}
            pieces = frame({"ok": True}, arrays)
        except MemoryError as exc:
            pieces = frame({"error": "memory", "message": _line(exc)}, {})
        except ValueError as exc:
            traceback.print_exc()
            pieces = frame({"error": "value", "message": _line(exc)}, {})
        except Exception as exc:  # a model may raise what it likes; its worker is told
            traceback.print_exc()
            pieces = frame({"error": "other", "message": _line(exc)}, {})
        for piece in pieces:
            sock.sendall(piece)
    return 0


def _send(sock: socket.socket, header: dict[str, Any], arrays: dict[str, Any]) -> None:
    for piece in frame(header, arrays):
        sock.sendall(piece)


def _receive(sock: socket.socket) -> tuple[dict[str, Any], memoryview] | None:
    sizes = _read_exactly(sock, _SIZES.size)
    if sizes is None:
        return None
    head, tail = _SIZES.unpack(sizes)
    line, body = _read_exactly(sock, head), _read_exactly(sock, tail)
    if line is None or body is None:
        return None
    header: dict[str, Any] = json.loads(bytes(line))
    return header, memoryview(body)


def _read_exactly(sock: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        count = sock.recv_into(view[at:])
        if not count:
            return None
        at += count
    return data


def _line(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}"


def main() -> None:
    """Listen, go to the background, serve. What goes wrong before that is told on stderr."""
    import numpy  # noqa: F401  done once, so that every model starts with it

    try:
        zygote = _Zygote(sys.argv[1])
    except BlockingIOError:
        return  # another one serves this environment
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    zygote.serve()


if __name__ == "__main__":
    main()
